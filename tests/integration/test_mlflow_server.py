"""The whole transition against a real MLflow server over HTTP."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from promotion_gate import operators, transition
from promotion_gate.core.errors import ArtifactError, ExitCode, RegistryConflict, RegistryError
from promotion_gate.core.keys import Keyring
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.interface import LockHolder
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.registry.naming import lock_name
from promotion_gate.registry.patience import Patience
from promotion_gate.transition import Actor, Judged

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def actor(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        keys = Keyring()
        assert keys.signing.key_id in keys.trusted.keys
        return Actor("ada", "ship", keys)


@pytest.fixture
def registry(mlflow_server):
    return MlflowRegistry(mlflow_server)


@pytest.fixture
def name(registry, tmp_path):
    """A fresh registered model with three versions."""
    name = f"traffic-signs-{uuid.uuid4().hex[:8]}"
    client = registry._client
    client.create_registered_model(name)
    for version in (1, 2, 3):
        run = client.create_run("0")
        folder = tmp_path / str(version)
        (folder / "data").mkdir(parents=True)
        (folder / "MLmodel").write_text("flavors: {}")
        (folder / "data" / "model.pt2").write_bytes(b"%d" % version * 1000)
        client.log_artifacts(run.info.run_id, str(folder), "model")
        client.create_model_version(
            name, f"{run.info.artifact_uri}/model", run.info.run_id, await_creation_for=0
        )
    return name


def judged(registry, name, version, outcome=Outcome.PROMOTE):
    ref = ModelRef(name, version)
    champion = registry.model(name).aliases.get("production")
    digest = transition.artifact_digest(registry, ref)
    return Judged(ref, digest, outcome, "integration", champion, "a" * 64)


def test_promote_hold_approve_rollback_and_history(registry, name, actor):
    transition.promote(registry, judged(registry, name, 1), actor=actor)
    transition.record_verdict(registry, judged(registry, name, 2, Outcome.HOLD), actor=actor)
    transition.approve(registry, ModelRef(name, 2), reason="looked at it", actor=actor)
    transition.record_verdict(registry, judged(registry, name, 3, Outcome.REJECT), actor=actor)
    assert registry.model(name).aliases == {"production": 2}

    recorded = transition.rollback(registry, name, reason="stops at green", actor=actor)
    assert recorded.record.ref == ModelRef(name, 1)
    assert registry.model(name).aliases == {"production": 1}
    with pytest.raises(RegistryConflict, match="nothing was moved"):
        transition.rollback(registry, name, reason="once more", actor=actor)

    entries = transition.history(registry, name, actor.keys.trusted)
    assert [(e.record.action, e.event.pointer.version) for e in entries] == [
        ("promote", 1), ("hold", 2), ("approve", 2), ("reject", 3), ("rollback", 1)
    ]  # fmt: skip
    assert [e.event.state for e in entries] == ["done"] * 5
    facts = transition.status(registry, name, trusted=actor.keys.trusted)
    assert (facts.version, facts.moved_elsewhere) == (1, False)
    assert json.loads(operators.history_json(name, entries))["events"][4]["from"] == 2
    assert registry.lock_holder(name) is None


def test_stages_follow_where_they_are_in_use(registry, name, actor):
    registry.set_production_stage(ModelRef(name, 3))
    transition.promote(registry, judged(registry, name, 1), actor=actor)
    assert registry.production_stage(name) == [1]
    transition.promote(registry, judged(registry, name, 2), actor=actor)
    transition.rollback(registry, name, reason="back", actor=actor)
    assert registry.production_stage(name) == [1]
    assert registry.resolve(f"models:/{name}@production") == ModelRef(name, 1)


def test_a_change_by_hand_is_told_once_and_settled_by_a_rollback(registry, name, actor):
    registry.set_production_stage(ModelRef(name, 3))
    for version in (1, 2):
        transition.promote(registry, judged(registry, name, version), actor=actor)
    registry.set_alias(name, "production", 3)
    registry._client.set_registered_model_tag(name, "promotion_gate.drift", "class 'Stop' by 6 sigma")
    facts = transition.status(registry, name, trusted=actor.keys.trusted)
    assert (facts.foreign.to_version, facts.last_good, facts.drift) == (3, 2, "class 'Stop' by 6 sigma")
    (told,) = transition.note_foreign_moves(registry, name, actor=actor)
    assert transition.note_foreign_moves(registry, name, actor=actor) == []
    with pytest.raises(RegistryConflict, match="past the gate"):
        transition.promote(registry, judged(registry, name, 1), actor=actor)
    plan = transition.plan_rollback(registry, name, actor=actor)
    recorded = transition.rollback(registry, name, reason="by hand", actor=actor, alarm_at=told.record.at)
    assert recorded.record.ref == plan.ref == ModelRef(name, 2)
    assert registry.production_stage(name) == [2]
    transition.note_restored(registry, recorded, "back", actor)
    entries = transition.history(registry, name, actor.keys.trusted)
    assert [e.record.action for e in entries] == ["promote", "promote", "foreign", "rollback", "restored"]
    facts = transition.status(registry, name, trusted=actor.keys.trusted)
    assert (facts.foreign, facts.version, len(facts.recovery_seconds)) == (None, 2, 1)


def test_bytes_changed_on_the_server_after_review_are_noticed(registry, name, actor, tmp_path):
    verdict = judged(registry, name, 1)
    other = tmp_path / "model.pt2"
    other.write_bytes(b"other weights")
    run_id = registry.version(ModelRef(name, 1)).run_id
    registry._client.log_artifact(run_id, str(other), "model/data")
    with pytest.raises(ArtifactError, match="changed since they were examined"):
        transition.promote(registry, verdict, actor=actor)
    assert registry.model(name).aliases == {}
    assert registry.events(name) == []


def test_of_two_promoters_at_once_one_wins_and_the_other_is_told(mlflow_server, registry, name, actor):
    transition.promote(registry, judged(registry, name, 1), actor=actor)
    verdicts = [judged(registry, name, version) for version in (2, 3)]
    start = threading.Barrier(2)
    told = []

    def run(verdict):
        own = MlflowRegistry(mlflow_server)
        own.model(name)
        start.wait()
        try:
            transition.promote(own, verdict, actor=actor)
            told.append(verdict.ref.version)
        except RegistryConflict:
            told.append(None)

    threads = [threading.Thread(target=run, args=(verdict,)) for verdict in verdicts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [version for version in told if version is not None]
    assert len(told) == 2
    assert winners == [registry.model(name).aliases["production"]]
    done = [e for e in registry.events(name) if e.state == "done"]
    assert [e.pointer.to_version for e in done] == [1, *winners]


def test_of_several_who_break_one_stale_lock_at_once_one_holds_it(mlflow_server, registry, name):
    now = datetime.now(UTC)
    registry.acquire_lock(name, LockHolder("dead", "dead@ship", now - timedelta(seconds=1)))
    heirs = [LockHolder(f"heir {i}", f"heir{i}@ship", now + timedelta(seconds=120)) for i in range(4)]
    start = threading.Barrier(len(heirs))
    won, told = [], []

    def run(heir):
        own = MlflowRegistry(mlflow_server)
        own.model(name)
        start.wait()
        try:
            own.acquire_lock(name, heir)
            won.append(heir.token)
        except RegistryConflict as conflict:
            told.append(str(conflict))

    threads = [threading.Thread(target=run, args=(heir,)) for heir in heirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(told) == len(heirs)
    assert won == [registry.lock_holder(name).token]
    registry.release_lock(name, next(heir for heir in heirs if heir.token == won[0]))
    assert registry.lock_holder(name) is None


KILLED = """
import os, signal, sys
from promotion_gate import transition
from promotion_gate.registry.mlflow import MlflowRegistry
class Dying(MlflowRegistry):
    def set_alias(self, *arguments):
        if sys.argv[3] == "after":
            super().set_alias(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
transition.rollback(Dying(sys.argv[1]), sys.argv[2], reason="killed")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_rollback_is_closed_by_the_next_command(mlflow_server, registry, name, actor, moment):
    for version in (1, 2, 3):
        transition.promote(registry, judged(registry, name, version), actor=actor)
    environment = {**os.environ, "PROMOTION_GATE_KEY": str(actor.keys.signing.name)}
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, mlflow_server, name, moment], env=environment, check=False
    )
    assert dead.returncode == -signal.SIGKILL
    expected = 2 if moment == "after" else 3
    assert registry.model(name).aliases == {"production": expected}
    with pytest.raises(RegistryConflict, match="is changing the production version"):
        transition.rollback(registry, name, reason="too early", actor=actor)

    registry._client.delete_registered_model(lock_name(name))
    recorded = transition.rollback(registry, name, reason="again", actor=actor)
    assert len(recorded.notes) == 1
    assert "begun by a process that died" in recorded.notes[0]
    assert registry.model(name).aliases == {"production": expected - 1}
    told = [(e.pointer.action, e.state) for e in registry.events(name)][3:]
    closed = "done" if moment == "after" else "undone"
    assert told == [("rollback", closed), ("recover", "done"), ("rollback", "done")]


@pytest.mark.parametrize(
    "call", ["model", "events", "acquire_lock", "begin_event", "set_alias", "finish_event"]
)
def test_a_server_that_is_gone_at_any_step_ends_with_exit_code_5(mlflow_server, registry, name, actor, call):
    for version in (1, 2):
        transition.promote(registry, judged(registry, name, version), actor=actor)
    gone = MlflowRegistry(mlflow_server)
    nowhere = MlflowRegistry("http://127.0.0.1:9", patience=Patience(repeats=0))

    def cut(*arguments, **keywords):
        for method in ("model", "events", "set_alias", "finish_event", "release_lock", "read_file"):
            setattr(gone, method, getattr(nowhere, method))
        return getattr(nowhere, call)(*arguments, **keywords)

    setattr(gone, call, cut)
    with pytest.raises(RegistryError) as caught:
        transition.rollback(gone, name, reason="server gone", actor=actor)
    assert caught.value.exit_code is ExitCode.REGISTRY
    assert str(caught.value).isprintable()
    aliases = registry.model(name).aliases
    assert aliases == {"production": 1 if call == "finish_event" else 2}


def test_rollback_imports_none_of_the_heavy_libraries(mlflow_server, registry, name, actor):
    for version in (1, 2):
        transition.promote(registry, judged(registry, name, version), actor=actor)
    code = (
        "import sys; from promotion_gate import transition;"
        "from promotion_gate.registry.mlflow import MlflowRegistry;"
        "transition.rollback(MlflowRegistry(sys.argv[1]), sys.argv[2], reason='fast');"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "PROMOTION_GATE_KEY": str(actor.keys.signing.name)}
    done = subprocess.run(
        [sys.executable, "-c", code, mlflow_server, name],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert registry.model(name).aliases == {"production": 1}
    assert not {"torch", "shap", "umap", "sklearn", "matplotlib"} & set(done.stdout.split())
