"""The MLflow registry on a sqlite store, and what it says when nobody answers."""

import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from promotion_gate.core.errors import ExitCode, NotInRegistry, RegistryConflict, RegistryError, UsageError
from promotion_gate.core.types import ModelRef
from promotion_gate.journal import next_sequence
from promotion_gate.registry import locks
from promotion_gate.registry.interface import EventPointer, LockHolder
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.registry.naming import lock_name, pointer_tags

NAME = "signs 'n\" more"
pytestmark = pytest.mark.filterwarnings("ignore:.*noload")  # MLflow's own use of sqlalchemy
HOSTILE = "<script>alert(1)</script>\x1b[2J'; drop table"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sqlite store with two versions of one model, and its URI."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    registry = MlflowRegistry(uri, artifact_location=f"file://{folder}/gate")
    client = registry._client
    from mlflow.entities import Dataset, DatasetInput, InputTag

    experiment = client.create_experiment("training", f"file://{folder}/runs")
    client.create_registered_model(NAME)
    for version in (1, 2):
        run_id = client.create_run(experiment, tags={"note": HOSTILE}).info.run_id
        source = folder / f"model-{version}"
        (source / "data").mkdir(parents=True)
        (source / "MLmodel").write_text("flavors: {}")
        (source / "data" / "weights").write_bytes(b"%d" % version)
        client.log_artifacts(run_id, str(source), "model")
        for step in (1, 0, 2):
            client.log_metric(run_id, "loss/stop", 1.0 - step / 10, step=step)
        client.log_metric(run_id, "accuracy", 0.9)
        client.log_param(run_id, "lr", "0.1")
        data = Dataset("gtsrb", "d" * 8, "local", "{}")
        client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
        location = client.get_run(run_id).info.artifact_uri
        client.create_model_version(NAME, f"{location}/model", run_id, await_creation_for=0)
    return uri, folder


@pytest.fixture
def registry(place):
    return MlflowRegistry(place[0], artifact_location=f"file://{place[1]}/gate")


def pointer(sequence=1, **changes):
    return EventPointer(
        **{
            "name": NAME,
            "version": 1,
            "action": "promote",
            "alias": "production",
            "sequence": sequence,
            "to_version": 1,
            **changes,
        }
    )


def holder(token, seconds=120.0):
    return LockHolder(token, f"{token}@ship", datetime.now(UTC) + timedelta(seconds=seconds))


def test_versions_and_aliases(registry):
    registry.set_alias(NAME, "candidate", 2)
    assert registry.resolve(f"models:/{NAME}@candidate") == ModelRef(NAME, 2)
    assert registry.resolve(f"{NAME}/1") == ModelRef(NAME, 1)
    assert registry.model(NAME).aliases["candidate"] == 2
    registry.delete_alias(NAME, "candidate")
    assert "candidate" not in registry.model(NAME).aliases
    facts = registry.version(ModelRef(NAME, 1))
    assert facts.status == "READY"
    assert facts.stage == ""
    registry.set_version_tag(facts.ref, "promotion_gate.outcome", HOSTILE)
    registry.set_model_tag(NAME, "promotion_gate.drift", HOSTILE)
    assert registry.model(NAME).tags["promotion_gate.drift"] == HOSTILE
    with pytest.raises(NotInRegistry):
        registry.set_model_tag("none", "promotion_gate.drift", "ok")
    assert registry.version(facts.ref).tags["promotion_gate.outcome"] == HOSTILE


@pytest.mark.parametrize("uri", ["ghost/1", f"{NAME}/99", f"models:/{NAME}@nobody", "models:/ghost@x"])
def test_what_is_not_there_is_one_line(registry, uri):
    with pytest.raises(NotInRegistry) as caught:
        registry.resolve(uri)
    assert str(caught.value).isprintable()
    assert registry.host in str(caught.value)
    assert caught.value.exit_code is ExitCode.REGISTRY


def test_a_version_that_is_not_ready_is_refused(registry, monkeypatch):
    found = registry._client.get_model_version(NAME, "1")
    found._status = "PENDING_REGISTRATION"
    monkeypatch.setattr(registry._client, "get_model_version", lambda *args: found)
    with pytest.raises(RegistryError, match=r"not ready.*PENDING_REGISTRATION"):
        registry.resolve(f"{NAME}/1")


def test_the_facts_of_a_run(registry):
    run_id = registry.version(ModelRef(NAME, 1)).run_id
    facts = registry.run_facts(run_id, "loss/")
    assert facts.params == {"lr": "0.1"}
    assert list(facts.curves) == ["loss/stop"]
    assert [(p.step, p.value) for p in facts.curves["loss/stop"]] == [(0, 1.0), (1, 0.9), (2, 0.8)]
    assert facts.tags["note"] == HOSTILE
    assert [(d.name, d.context, d.digest) for d in facts.datasets] == [("gtsrb", "training", "d" * 8)]
    assert facts.started_at.tzinfo is not None
    assert registry.run_facts(run_id).curves == {}
    with pytest.raises(NotInRegistry):
        registry.run_facts("0" * 32)


def test_artifacts_come_into_an_empty_folder_only(registry, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    registry.download(ModelRef(NAME, 2), target)
    assert (target / "data" / "weights").read_bytes() == b"2"
    with pytest.raises(RegistryError, match="not empty"):
        registry.download(ModelRef(NAME, 2), target)


def test_a_gate_run_keeps_its_files(registry):
    ref = ModelRef(NAME, 2)
    with pytest.raises(NotInRegistry, match="no gate run"):
        registry.last_gate_run(ref)
    registry.start_gate_run(ref, {})
    run_id = registry.start_gate_run(ref, {"promotion_gate.outcome": "HOLD"})
    registry.log_params(run_id, {f"p{i}": "x" * 10_000 for i in range(120)})
    registry.log_metrics(run_id, {f"m{i}": float(i) for i in range(250)})
    registry.log_file(run_id, "card.html", b"<html>")
    registry.finish_run(run_id)
    assert registry.last_gate_run(ref) == run_id
    assert registry.read_file(run_id, "card.html") == b"<html>"
    run = registry._client.get_run(run_id)
    assert (run.info.status, len(run.data.params), len(run.data.metrics)) == ("FINISHED", 120, 250)
    with pytest.raises(NotInRegistry, match="no file"):
        registry.read_file(run_id, "nothing.txt")


def test_events_in_order_with_their_records_even_when_deleted(registry):
    first = registry.begin_event(pointer(1), b"one")
    second = registry.begin_event(pointer(2, from_version=1, to_version=2, version=2), b"two")
    registry.begin_event(pointer(1, name="another"), b"other")
    assert [e.state for e in registry.events(NAME)] == ["begun", "begun"]
    registry.finish_event(first, "done")
    registry.finish_event(second, "undone", "closed by hand")
    registry._client.delete_run(first)
    found = registry.events(NAME)
    assert [(e.event_id, e.state, e.note) for e in found] == [
        (first, "done", ""),
        (second, "undone", "closed by hand"),
    ]
    assert found[1].pointer == pointer(2, from_version=1, to_version=2, version=2)
    assert registry.read_file(first, "record.dsse.json") == b"one"


@pytest.mark.parametrize(
    ("start", "tags"),
    [(10**17, {}), (-(10**17), {}), (0, {"promotion_gate.sequence": "9" * 4300})],
    ids=["in-the-far-future", "before-all-time", "after-all-places"],
)
def test_a_run_that_no_gate_made_keeps_nobody_from_the_history(registry, start, tags):
    name = f"forged-{start}"
    first = registry.begin_event(pointer(name=name), b"first")
    client = registry._client
    experiment = client.get_run(first).info.experiment_id
    forged = pointer_tags(pointer(sequence=2, name=name)) | tags
    client.create_run(experiment, start_time=start, tags=forged)
    assert [event.event_id for event in registry.events(name)] == [first]
    assert next_sequence(registry.events(name)) == 2


def test_stages_are_set_without_a_warning_and_archive_the_rest(registry):
    assert not registry.model(NAME).uses_stages
    registry.set_production_stage(ModelRef(NAME, 1))
    registry.set_production_stage(ModelRef(NAME, 2))
    assert registry.production_stage(NAME) == [2]
    assert registry.model(NAME).uses_stages
    assert registry.version(ModelRef(NAME, 1)).stage == "Archived"


@pytest.mark.parametrize("name", ["plain", "it's", 'a "b" c', "100% \\ _"])
def test_the_stage_is_read_back_whatever_the_name(registry, name):
    registry._client.create_registered_model(name)
    registry._client.create_model_version(name, "file:///nowhere", await_creation_for=0)
    registry.set_production_stage(ModelRef(name, 1))
    assert registry.production_stage(name) == [1]


def test_a_lock_excludes_until_it_is_released(registry):
    mine, other = holder("mine"), holder("other")
    registry.acquire_lock(NAME, mine)
    registry.acquire_lock(NAME, mine)
    with pytest.raises(RegistryConflict, match="mine@ship is changing"):
        registry.acquire_lock(NAME, other)
    assert registry.lock_holder(NAME).token == "mine"
    registry.release_lock(NAME, mine)
    assert registry.lock_holder(NAME) is None
    registry.acquire_lock(NAME, other)
    registry.release_lock(NAME, other)


def test_a_lock_falls_with_its_lease_and_its_late_owner_takes_nothing(registry, monkeypatch):
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0)
    dead, heir = holder("dead", seconds=-1), holder("heir")
    registry.acquire_lock(NAME, dead)
    registry.acquire_lock(NAME, heir)
    registry.release_lock(NAME, dead)
    assert registry.lock_holder(NAME).token == "heir"
    registry.release_lock(NAME, heir)


def test_a_lock_with_unreadable_tags_holds_for_a_lease(registry):
    registry._client.create_registered_model(lock_name(NAME), {"promotion_gate.lock_until": "soon"})
    with pytest.raises(RegistryConflict, match="somebody is changing"):
        registry.acquire_lock(NAME, holder("mine"))
    registry._client.delete_registered_model(lock_name(NAME))


def test_a_deleted_experiment_is_not_mistaken_for_an_empty_history(place, tmp_path):
    registry = MlflowRegistry(f"sqlite:///{tmp_path}/other.db", artifact_location=f"file://{tmp_path}/gate")
    assert registry.events(NAME) == []
    registry.finish_event(registry.begin_event(pointer(), b"x"), "done")
    experiment = registry._client.get_experiment_by_name("promotion-gate")
    registry._client.delete_experiment(experiment.experiment_id)
    with pytest.raises(RegistryError, match=r"was deleted.*mlflow experiments restore"):
        MlflowRegistry(f"sqlite:///{tmp_path}/other.db").events(NAME)


def test_nobody_listening_is_told_at_once_without_credentials():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    registry = MlflowRegistry(f"http://ada:secret@127.0.0.1:{port}")
    with pytest.raises(RegistryError, match=r"cannot reach http://127.0.0.1") as caught:
        registry.resolve("signs/1")
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.REGISTRY


def test_a_server_that_hangs_up_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            for _ in range(2):
                connection, _ = server.accept()
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        registry = MlflowRegistry(f"http://ada:secret@127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(RegistryError, match=r"no answer from http://127.0.0.1") as caught:
            registry.resolve("signs/1")
        thread.join(10)
    assert "secret" not in str(caught.value)


def test_usage_errors_come_before_any_connection():
    with pytest.raises(UsageError):
        MlflowRegistry("http://127.0.0.1:9").resolve("models:/signs/Production")


def test_naming_the_registry_imports_no_mlflow():
    code = (
        "import sys, promotion_gate.operators, promotion_gate.registry.mlflow as r;"
        "r.MlflowRegistry('http://localhost:1'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"mlflow", "torch", "numpy", "pandas", "sklearn", "shap", "umap"}
    assert not heavy & set(loaded.stdout.split())
