"""Transitions on an MLflow server as teams run it: PostgreSQL, artifacts in S3, and users with rights."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from promotion_gate import transition
from promotion_gate.core.errors import ArtifactError, RegistryConflict
from promotion_gate.core.types import ModelRef
from promotion_gate.registry.interface import LockHolder
from promotion_gate.registry.locks import _search as locks_of
from promotion_gate.registry.mlflow import MlflowRegistry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def own_keys(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("configuration")
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        yield folder


@pytest.fixture(scope="module")
def parts(faults, parts_of, own_keys, tmp_path_factory):
    """A world on PostgreSQL and S3: the gate's files go through the server, a model's straight to S3."""
    folder = tmp_path_factory.mktemp("parts")
    with (
        parts_of.postgres() as database,
        parts_of.s3("models") as (environment, bucket),
        pytest.MonkeyPatch.context() as patch,
    ):
        for variable, value in environment.items():
            patch.setenv(variable, value)
        options = ("--backend-store-uri", database, "--artifacts-destination", "s3://models/served")
        with faults.Server(folder, *options, environment=environment) as server:
            yield faults.World(server.uri, folder, artifacts="s3://models/training"), bucket


def test_promote_roll_back_and_verify_on_postgres_and_s3(parts):
    world, bucket = parts
    model = world.model()
    for version in (1, 2, 3):
        model.promote(version)
    assert model.roll_back().record.ref.version == 2
    assert model.violations() == []
    told = transition.history(world.registry, model.name, world.actor.keys.trusted)
    assert [(e.record.action, e.record.ref.version) for e in told] == [
        ("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2)
    ]  # fmt: skip
    assert promotion_gate(world.uri, "verify", model.name).returncode == 0

    keys = [item["Key"] for item in bucket.list_objects_v2(Bucket="models")["Contents"]]
    assert any(key.startswith("served/") and key.endswith("record.dsse.json") for key in keys)
    source = world.registry.version(ModelRef(model.name, 1)).source.removeprefix("s3://models/")
    assert f"{source}/data/model.pt2" in keys

    kept = bucket.get_object(Bucket="models", Key=f"{source}/data/model.pt2")["Body"].read()
    bucket.put_object(Bucket="models", Key=f"{source}/data/model.pt2", Body=b"other weights")
    try:
        with pytest.raises(ArtifactError, match="changed since they were examined"):
            transition.rollback(world.registry, model.name, to=1, reason="r", actor=world.actor)
        assert promotion_gate(world.uri, "verify", f"{model.name}/1").returncode == 3
    finally:
        bucket.put_object(Bucket="models", Key=f"{source}/data/model.pt2", Body=kept)
    assert model.violations() == []


def test_of_four_promoters_at_once_on_postgres_one_wins(faults, parts):
    tally = faults.four_promoters(parts[0], rounds=5)
    assert tally.violations == []
    assert tally.ended == {"1 won and 3 told": 5}


INI = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = root
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 600
"""
PASSWORD = "a long enough passphrase"


@pytest.fixture(scope="module")
def guarded(faults, own_keys, tmp_path_factory):
    """A world on a server with basic-auth, as its administrator, and a way to act as somebody else."""
    pytest.importorskip("flask_wtf", reason="mlflow's basic-auth needs Flask-WTF: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(INI.format(folder=folder))
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for tests",
    }
    options = ("--app-name", "basic-auth", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db")
    options += ("--artifacts-destination", str(folder / "artifacts"))
    with (
        faults.Server(folder, *options, environment=environment, workers=1) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_TRACKING_USERNAME", "root")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        world = faults.World(server.uri, folder)
        from mlflow.server.auth.client import AuthServiceClient

        users = AuthServiceClient(server.uri)
        model = world.model()
        for version in (1, 2, 3):
            model.promote(version)
        experiment = world.registry._client.get_experiment_by_name("promotion-gate").experiment_id
        for user in ("reader", "writer", "ada", "bob"):
            users.create_user(user, PASSWORD)
        for user in ("writer", "ada", "bob"):
            users.grant_user_permission(user, "experiment", experiment, "EDIT")
        for user in ("ada", "bob"):
            users.grant_user_permission(user, "registered_model", model.name, "EDIT")
        yield model


@pytest.fixture
def acting_as(monkeypatch):
    def act(user):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)

    return act


@pytest.mark.parametrize(
    ("user", "about"), [("reader", "a new run in experiment"), ("writer", "the alias 'production' of model")]
)
def test_who_may_read_but_not_promote_is_refused_and_leaves_nothing_behind(guarded, acting_as, user, about):
    model = guarded
    before = model.production
    history = {event.event_id for event in model.events()}
    acting_as(user)
    done = promotion_gate(model.world.uri, "rollback", model.name, "--reason", "not mine to do")
    acting_as("root")
    assert done.returncode == 5, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("promotion-gate: ")]
    assert f"denies access to {about}" in line
    assert "Traceback" not in done.stderr
    assert model.production == before
    assert locks_of(model.world.registry._client, model.name) == {}
    moves = [e for e in model.events() if e.event_id not in history and e.pointer.moves]
    assert all(move.state == "undone" for move in moves)

    acting_as("ada")
    model.promote(model.next_version(), MlflowRegistry(model.world.uri))
    acting_as("root")
    assert model.production != before


def test_the_lock_of_somebody_who_died_blocks_nobody_who_may_not_delete_it(guarded, acting_as):
    model = guarded
    now = datetime.now(UTC)
    acting_as("ada")
    ada = MlflowRegistry(model.world.uri)
    ada.acquire_lock(model.name, LockHolder("dead", "ada@ship", now + timedelta(seconds=60)))
    acting_as("bob")
    bob = MlflowRegistry(model.world.uri)
    with pytest.raises(RegistryConflict, match="ada@ship is changing"):
        model.promote(model.next_version(), bob)

    acting_as("root")
    model.let_the_lease_pass()
    acting_as("bob")
    holder = LockHolder("bob", "bob@ship", now + timedelta(seconds=60))
    bob.acquire_lock(model.name, holder)
    acting_as("ada")
    ada.release_lock(model.name, LockHolder("dead", "ada@ship", now))
    with pytest.raises(RegistryConflict, match="bob@ship is changing"):
        ada.acquire_lock(model.name, LockHolder("ada", "ada@ship", now + timedelta(seconds=60)))
    acting_as("bob")
    bob.release_lock(model.name, holder)
    acting_as("ada")
    model.promote(model.next_version(), MlflowRegistry(model.world.uri))
    acting_as("root")
    assert model.violations() == []


def promotion_gate(uri, *arguments):
    command = [sys.executable, "-m", "promotion_gate", *arguments]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
