from __future__ import annotations

import json

import numpy as np
import pytest

from promotion_gate.checks.training_curves import CLASS_NAMES_TAG
from promotion_gate.drill.recorder import PerClassLoss

# MLflow's database layer uses an option that newer SQLAlchemy releases deprecate.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

NAMES = ["stop", "yield", "<b>priority</b>"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An experiment on a database of its own."""
    import mlflow

    folder = tmp_path_factory.mktemp("recorder")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield mlflow.create_experiment("recorder", artifact_location=str(folder / "artifacts"))
    mlflow.set_tracking_uri(before)


@pytest.fixture
def run(experiment):
    """The id of an active run; what it logged is read back through a client."""
    import mlflow

    with mlflow.start_run(experiment_id=experiment) as active:
        yield active.info.run_id


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    import mlflow

    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, metric)]


def test_logs_the_mean_loss_of_every_class_each_epoch(run):
    import mlflow
    import torch

    recorder = PerClassLoss(NAMES)
    recorder.update(torch.tensor([1.0, 3.0, 5.0], requires_grad=True), torch.tensor([0, 0, 2]))
    recorder.update(np.array([2.0]), np.array([0]))
    recorder.log(0)
    recorder.update(torch.tensor([0.5, 0.25], dtype=torch.bfloat16), torch.tensor([1, 2]))
    recorder.log(1)
    assert history(run, "class_loss/0000") == [(0, 2.0)]
    assert history(run, "class_loss/0001") == [(1, 0.5)]
    assert history(run, "class_loss/0002") == [(0, 5.0), (1, 0.25)]
    assert json.loads(mlflow.get_run(run).data.tags[CLASS_NAMES_TAG]) == NAMES


def test_logs_more_classes_than_one_request_takes(run):
    recorder = PerClassLoss([f"class {i}" for i in range(1200)])
    recorder.update(np.arange(1200.0), np.arange(1200))
    recorder.log(3)
    assert history(run, "class_loss/0000") == [(3, 0.0)]
    assert history(run, "class_loss/1199") == [(3, 1199.0)]
