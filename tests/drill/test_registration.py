"""The drills' registry, on an MLflow in a file."""

import os

import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import ModelRef
from promotion_gate.drill.registration import DRILL_TAG, DrillRegistry, Logged, model_name

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    made = DrillRegistry(tmp_path_factory.mktemp("drills"))
    with made.active():
        made.open()
    return made


@pytest.fixture(scope="module")
def client(registry):
    from mlflow import MlflowClient

    return MlflowClient(registry.uri, registry.uri)


def test_a_drill_gets_a_model_of_its_own_each_time(registry, client):
    first, second = (registry.claim("drill-own-1", "own") for _ in range(2))
    assert (first, second) == ("drill-own-1", "drill-own-1-2")
    assert client.get_registered_model(second).tags == {DRILL_TAG: "own"}


def test_a_model_that_no_drill_made_is_left_alone(registry, client):
    client.create_registered_model("drill-theirs-1")
    with pytest.raises(UsageError, match="that no drill made; rename the scenario"):
        registry.claim("drill-theirs-1", "theirs")
    assert client.get_registered_model("drill-theirs-1").tags == {}


def test_what_was_claimed_can_be_given_up(registry, client):
    name = registry.claim("drill-failed-1", "failed")
    registry.add_version(name, Logged("file:///models/m-123", ""))
    registry.discard(name)
    registry.discard(name)
    assert not [found for found in client.search_registered_models() if found.name == name]


def test_one_logged_model_serves_many_drills(registry):
    names = [registry.claim(f"drill-shared-{number}", "shared") for number in (1, 2)]
    refs = [registry.add_version(name, Logged("file:///models/m-123", "")) for name in names]
    assert refs == [ModelRef(name, 1) for name in names]
    assert registry.add_version(names[0], Logged("file:///models/m-456", "")).version == 2
    newest, logged = registry.newest_version(names[0])
    assert (newest.version, logged.source) == (2, "file:///models/m-456")
    assert registry.newest_version("drill-unheard-of") is None


def test_history_compares_with_another_round_of_the_same_name(registry):
    assert registry.earlier("campaign", "q", "one") is None
    registry.remember("campaign", "q", {"caught": 0.5}, {"campaign.md": b"# q"}, "one")
    registry.remember("campaign", "other", {"caught": 0.1}, {}, "zero")
    assert registry.earlier("campaign", "q", "one") is None
    at, metrics = registry.earlier("campaign", "q", "two")
    assert metrics == {"caught": 0.5}
    assert at.endswith("+00:00")


def test_training_under_mlflow_run_gets_a_run_of_its_own(registry, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with registry.active(), registry.training_run("candidate", {"seed": 1}) as run_id:
        pass
    run = client.get_run(run_id)
    assert run.data.params == {"seed": "1"}
    assert run.data.tags[DRILL_TAG] == "training"
    assert os.environ["MLFLOW_RUN_ID"] == "0" * 32


def test_no_drill_is_called_as_anything_in_production_would_be():
    assert model_name("stop sticker.v2", 3) == "drill-stop-sticker-v2-3"


def test_what_comes_after_goes_where_it_went_before(registry, monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    try:
        mlflow.set_registry_uri(None)
        mlflow.set_tracking_uri("http://theirs")
        with registry.active():
            assert mlflow.get_registry_uri() == registry.uri
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == "http://theirs"
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://theirs"
        assert "MLFLOW_REGISTRY_URI" not in os.environ
        mlflow.set_tracking_uri("http://elsewhere")
        assert mlflow.get_registry_uri() == "http://elsewhere"
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(None if before[1] == before[0] else before[1])
