"""``mlflow.models.evaluate`` with the gate, on a real server, seen by MLflow's own means."""

import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def evaluate(at_the_server, gate_environment, home, monkeypatch):
    """``mlflow.models.evaluate`` against the server, with the evaluator that the package declares."""
    import mlflow
    from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry

    (declared,) = PROJECT["entry-points"]["mlflow.model_evaluator"].items()
    plugin = importlib.metadata.EntryPoint(*declared, "mlflow.model_evaluator").load()
    monkeypatch.setitem(_model_evaluation_registry._registry, declared[0], plugin)
    monkeypatch.setenv("XDG_CONFIG_HOME", gate_environment["XDG_CONFIG_HOME"])

    def run(config, model=None, model_id=None):
        rows = pd.DataFrame({"row": range(90)})
        with mlflow.start_run() as active:
            made = mlflow.models.evaluate(
                model,
                rows,
                model_type="image-classifier",
                evaluators="promotion-gate",
                evaluator_config=config,
                model_id=model_id,
            )
        return made, active.info.run_id

    return run


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # MLflow's own, of types and stages
def test_metrics_of_the_evaluator_can_be_validated(evaluate, register, home, cli, mlflow_server):
    from mlflow import MlflowClient, validate_evaluation_results
    from mlflow.models import MetricThreshold
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    client = MlflowClient(mlflow_server)
    name = register("evaluated", "right", "wrong")
    model_id = client.get_model_version(name, "1").source.removeprefix("models:/")
    policy = str(home / "gate.toml")
    right, run_id = evaluate({"policy": policy, "model": f"models:/{name}/1"}, model_id=model_id)
    wrong, _ = evaluate({"policy": policy, "model": f"{name}/2"})
    assert (right.metrics["per-class.accuracy"], right.metrics["gate.promote"]) == (1, 1)
    assert (wrong.metrics["per-class.accuracy"], wrong.metrics["gate.promote"]) == (0, 0)

    bounds = {
        "per-class.accuracy": MetricThreshold(threshold=0.9, greater_is_better=True),
        "gate.promote": MetricThreshold(threshold=1, greater_is_better=True),
    }
    validate_evaluation_results(bounds, right)
    with pytest.raises(ModelValidationFailedException, match=r"per-class\.accuracy"):
        validate_evaluation_results(bounds, wrong)

    logged = {(m.key, m.value, m.run_id) for m in client.get_logged_model(model_id).metrics}
    assert ("per-class.accuracy", 1.0, run_id) in logged
    assert ("gate.promote", 1.0, run_id) in logged
    other = client.get_model_version(name, "2").source.removeprefix("models:/")
    assert ("gate.promote", 0.0) in {(m.key, m.value) for m in client.get_logged_model(other).metrics}
    run = client.get_run(run_id)
    assert run.data.metrics["per-class.accuracy"] == 1
    paths = {f.path for f in client.list_artifacts(run_id, "promotion-gate")}
    assert paths == {
        f"promotion-gate/{f}" for f in ("card.html", "findings.json", "policy.toml", "verdict.json")
    }
    assert right.artifacts["card.html"].content.startswith("<!DOCTYPE html>")
    verdict = json.loads(right.artifacts["verdict.json"].content)
    assert verdict == {"model": f"{name}/1", "outcome": "PROMOTE"}
    assert json.loads(cli("history", name, "--json"))["events"] == []
    assert client.get_registered_model(name).aliases == {}


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_what_the_evaluator_refuses(evaluate, register, home, mlflow_server):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.models.evaluation.base import ModelEvaluator

    name = register("evaluated-wrongly", "right")
    policy, model = str(home / "gate.toml"), f"models:/{name}/1"

    def refused(why, config, **given):
        with pytest.raises(MlflowException, match=f"promotion-gate: .*{why}"):
            evaluate(config, **given)

    refused("cannot read the policy", {"policy": "no-such.toml", "model": model})
    refused("names no model version", {"policy": policy})
    refused("unknown in evaluator_config: polices", {"policy": policy, "model": model, "polices": 1})
    refused("not a model version", {"policy": policy, "model": "nonsense"})
    refused("no such thing", {"policy": policy, "model": f"models:/{name}/77"})
    other = MlflowClient(mlflow_server).get_model_version("logged-wrong", "1").source
    other = other.removeprefix("models:/")
    config = {"policy": policy, "model": model}
    refused(f"is not the logged model .{other}.", config, model_id=other)
    refused("its code is not confined", config, model=lambda rows: [0] * len(rows))
    # Whoever evaluates something else is left alone.
    plugin = sys.modules["promotion_gate.evaluator"].GateEvaluator
    assert issubclass(plugin, ModelEvaluator)
    for config in (None, {}, {"explainability_algorithm": "exact"}):
        assert not plugin.can_evaluate(model_type="classifier", evaluator_config=config)
