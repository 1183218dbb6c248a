"""The gate as an evaluator of MLflow: ``mlflow.models.evaluate(..., evaluators="promotion-gate")``.

Given a model's URI, ``evaluate`` loads the model into its own process before it asks any evaluator, with
whatever code the model brings. So the version goes by the evaluator's configuration instead, ``model`` stays
None, and the candidate is loaded in the gate's sandbox alone.

MLflow imports this module with its own evaluators, so that it must be quick and fail at nothing.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models.evaluation.base import EvaluationArtifact, EvaluationResult, ModelEvaluator

if TYPE_CHECKING:
    from promotion_gate.core.types import ModelRef
    from promotion_gate.gate import Preview

FOLDER = "promotion-gate"
"""The folder of the run's artifacts that takes the card, the findings and the policy."""

PROMOTE_METRIC = "gate.promote"
"""1 where the verdict is PROMOTE, else 0."""

_OPTIONS = {"policy", "model"}


class GateFile(EvaluationArtifact):  # type: ignore[misc]
    """A file of the gate run, as text."""

    def _load_content_from_file(self, local_artifact_path: str) -> str:
        self._content = Path(local_artifact_path).read_text(encoding="utf-8")
        return self._content

    def _save(self, output_artifact_path: str) -> None:
        Path(output_artifact_path).write_text(self._content, encoding="utf-8")


class GateEvaluator(ModelEvaluator):  # type: ignore[misc]
    """Examines a registered version as the gate does, and promotes and records nothing.

    ``evaluator_config`` has ``policy``, the policy's path, and ``model``, the version: ``models:/name/7`` or
    ``models:/name@alias``. The data that MLflow asks for is not looked at: the policy names the holdout.
    """

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: object, **_: object) -> bool:
        """Only where it is asked for by a policy: MLflow offers every evaluation to every evaluator."""
        return isinstance(evaluator_config, Mapping) and "policy" in evaluator_config

    def evaluate(
        self,
        *,
        run_id: str,
        evaluator_config: Mapping[str, Any],
        model: object = None,
        model_id: str | None = None,
        **_: object,
    ) -> EvaluationResult:
        """Examine, judge, and log metrics, card, findings and policy to the run.

        Raises
        ------
        MlflowException: the configuration is wrong, or what the gate refuses, in one line.
        """
        from mlflow.exceptions import MlflowException

        from promotion_gate.core.errors import GateError

        try:
            return _evaluated(run_id, evaluator_config, model, model_id)
        except GateError as error:
            raise MlflowException.invalid_parameter_value(f"promotion-gate: {error}") from None


def _evaluated(
    run_id: str, config: Mapping[str, Any], model: object, model_id: str | None
) -> EvaluationResult:
    import mlflow

    from promotion_gate.core.errors import UsageError
    from promotion_gate.core.policy import load_policy
    from promotion_gate.gate import preview
    from promotion_gate.registry.mlflow import MlflowRegistry

    if model is not None:
        raise UsageError(
            "MLflow has loaded the model into this process, where its code is not confined",
            "leave out the model and name it in evaluator_config={'policy': …, 'model': 'models:/name/7'}",
        )
    if unknown := sorted(map(str, config.keys() - _OPTIONS)):
        raise UsageError(f"unknown in evaluator_config: {', '.join(unknown)}", "it has 'policy' and 'model'")
    named = config.get("model")
    if not isinstance(named, str):
        raise UsageError("evaluator_config names no model version", "add 'model': 'models:/name/7'")
    policy = load_policy(Path(str(config["policy"])))
    registry = MlflowRegistry(mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    ref = registry.resolve(named)
    source = registry.version(ref).source.removeprefix("models:/")
    if model_id is not None and model_id != source:
        raise UsageError(f"{ref} is not the logged model {model_id!r}", f"its model_id is {source!r}")
    seen = preview(registry, ref, policy, run_id)
    metrics = {name: value for name, value in seen.metrics.items() if math.isfinite(value)}
    metrics[PROMOTE_METRIC] = float(seen.report.verdict.outcome == "PROMOTE")
    # MLflow logs them to the model too where it was told the model_id.
    mlflow.log_metrics(metrics, run_id=run_id, model_id=None if model_id else _logged_model(source))
    return EvaluationResult(metrics, _files(run_id, ref, seen), run_id)


def _logged_model(source: str) -> str | None:
    return source if source.startswith("m-") else None


def _files(run_id: str, ref: ModelRef, seen: Preview) -> dict[str, EvaluationArtifact]:
    import mlflow

    verdict = {"model": str(ref), "outcome": seen.report.verdict.outcome.value}
    contents = {
        "card.html": seen.card.decode(),
        "findings.json": seen.findings.decode(),
        "policy.toml": seen.report.policy_text,
        "verdict.json": json.dumps(verdict),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        mlflow.log_artifacts(folder, FOLDER, run_id=run_id)
    base = mlflow.get_run(run_id).info.artifact_uri
    return {name: GateFile(f"{base}/{FOLDER}/{name}", content) for name, content in contents.items()}
