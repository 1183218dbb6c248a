"""A real MLflow server, a model with versions on it, and what must hold of both after any fault."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from promotion_gate import transition
from promotion_gate.core.keys import Keyring
from promotion_gate.core.production import Production
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.locks import _search as locks_of
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.registry.naming import LOCK_UNTIL
from promotion_gate.transition import Actor, Judged
from promotion_gate.vouching import entries

PRODUCTION = Production(mirror_stage="always")
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Without it a server starts eight more processes, which run nothing that is asked for here."""
PATIENT = "--timeout-worker-healthcheck 120"
"""A worker that a busy machine lets start slowly is not to be taken for dead, and killed while it starts."""
_names = itertools.count(1)


class Server:
    """An ``mlflow server`` on sqlite in ``folder``, which can be killed and started again on its port."""

    def __init__(self, folder, *options, environment=None, workers=2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = Path(folder)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._workers = workers
        self._options = options or (
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        )
        self._environment = environment or {}
        self._process = None

    def start(self, *, wait=True):
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--workers", str(self._workers), *self._options),
            *("--uvicorn-opts", PATIENT),
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", **NO_JOBS, **self._environment}
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait()
        return self

    def wait(self, seconds=180):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.1)
        raise RuntimeError(f"no MLflow server:\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def kill(self):
        """As a crash: every process of it, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    stop = kill

    def __enter__(self):
        return self.start()

    def __exit__(self, *error):
        self.kill()


class World:
    """The server, seen directly, and the files of four versions that its models share.

    ``artifacts`` is where a training run keeps its files; None leaves it to the server.
    """

    def __init__(self, uri, folder, *, size=1000, keys=None, artifacts=None):
        self.uri = uri
        self.actor = Actor("ada", "ship", keys or Keyring())
        assert self.actor.keys.signing.key_id in self.actor.keys.trusted.keys
        self.registry = MlflowRegistry(uri)
        self._sources = []
        client = self.registry._client
        experiment = "0" if artifacts is None else client.create_experiment("training", artifacts)
        for version in (1, 2, 3, 4):
            run = client.create_run(experiment)
            model = Path(folder) / f"model-{uuid.uuid4().hex[:6]}"
            (model / "data").mkdir(parents=True)
            (model / "MLmodel").write_text("flavors: {}")
            (model / "data" / "model.pt2").write_bytes(bytes([version]) * size)
            client.log_artifacts(run.info.run_id, str(model), "model")
            self._sources.append((f"{run.info.artifact_uri}/model", run.info.run_id))

    def model(self):
        return Model(self)

    def judged(self, name, version):
        champion = self.registry.model(name).aliases.get("production")
        return Judged(
            ModelRef(name, version), self.digest(version), Outcome.PROMOTE, "fault", champion, "a" * 64
        )

    def digest(self, version):
        return self._digests[version - 1]

    @property
    def _digests(self):
        if not hasattr(self, "_known"):
            name = Model(self).name
            self._known = [transition.artifact_digest(self.registry, ModelRef(name, v)) for v in (1, 2, 3, 4)]
        return self._known


class Model:
    """A registered model with four versions, and everything that its history has ever shown."""

    def __init__(self, world):
        self.world = world
        self.name = f"signs-{next(_names)}-{uuid.uuid4().hex[:6]}"
        client = world.registry._client
        client.create_registered_model(self.name)
        for source, run_id in world._sources:
            client.create_model_version(self.name, source, run_id, await_creation_for=0)
        self._seen = {}

    @property
    def production(self):
        return self.world.registry.model(self.name).aliases.get("production")

    def promote(self, version, registry=None):
        world = self.world
        judged = world.judged(self.name, version)
        return transition.promote(registry or world.registry, judged, PRODUCTION, world.actor)

    def roll_back(self, registry=None):
        world = self.world
        return transition.rollback(
            registry or world.registry, self.name, reason="fault", production=PRODUCTION, actor=world.actor
        )

    def next_version(self):
        return (self.production or 0) % 4 + 1

    def ready_to_roll_back(self):
        """Promote until there are two good versions."""
        while len(transition.good_versions(self.events(), "production", None)) < 2:
            self.promote(self.next_version())

    def events(self):
        return self.world.registry.events(self.name)

    def let_the_lease_pass(self):
        """The lock of whoever died falls."""
        client = self.world.registry._client
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        for lock in locks_of(client, self.name):
            client.set_registered_model_tag(lock, LOCK_UNTIL, past)

    def recover(self):
        """What the next command does first; the clock of whoever runs it is past every lease."""
        actor = self.world.actor
        later = Actor(actor.user, actor.host, actor.keys, lambda: datetime.now(UTC) + timedelta(seconds=5))
        return transition.recover(self.world.registry, self.name, PRODUCTION, later)

    def violations(self):
        """What does not hold, a line each: one production version, one story, nothing lost, all signed."""
        registry = self.world.registry
        alias, events = self.production, self.events()
        moves = [e for e in events if e.state == "done" and e.pointer.moves]
        told = moves[-1].pointer.to_version if moves else None
        staged = list(registry.production_stage(self.name))
        wrong = []
        if alias != told:
            wrong.append(f"alias at {alias}, history ends at {told}")
        if staged != ([] if told is None else [told]):
            wrong.append(f"stage Production holds {staged}, history ends at {told}")
        if any(e.state == "begun" for e in events):
            wrong.append("an event is still open")
        now = {e.event_id: e.state for e in events}
        wrong += [f"event {i} was {s} and is {now.get(i)}" for i, s in self._seen.items() if now.get(i) != s]
        new = [e for e in events if e.event_id not in self._seen and e.state == "done"]
        keys = self.world.actor.keys.trusted
        wrong += [e.problem for e in entries(registry, new, keys) if e.problem]
        numbers = [e.pointer.sequence for e in moves]
        if len(set(numbers)) != len(numbers):
            wrong.append(f"two moves with one number: {numbers}")
        live = [
            lock for lock in locks_of(registry._client, self.name).values() if lock.until > datetime.now(UTC)
        ]
        if live:
            wrong.append(f"locked until {live[0].until}")
        self._seen = {i: s for i, s in now.items() if s != "begun"}
        return wrong
