"""A registry in memory, a gate that only writes its verdict down, deliveries signed by MLflow's own code."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from promotion_gate import transition
from promotion_gate.core.keys import Keyring, load_signing_key, load_trusted_keys
from promotion_gate.core.policy import load_policy
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.listening.counts import Counts
from promotion_gate.listening.gating import OUTCOMES, Gatekeeper
from promotion_gate.listening.pending import Ledger
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor, Judged

SECRET = "correct horse battery staple"
POLICY = """
version = 1
data.holdout.path = "holdout.npz"
checks.per-class.bounds.accuracy.min = 0.9
"""


@pytest.fixture(autouse=True)
def _own_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("PROMOTION_GATE_KEY", "PROMOTION_GATE_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def store():
    store = MemoryStore()
    for version in (1, 2, 3):
        store.add_version(ModelRef("signs", version), {"MLmodel": b"flavors", "model": b"%d" % version})
    return store


@pytest.fixture
def actor(store):
    return Actor("ada", "ship", Keyring(load_signing_key(), load_trusted_keys()), lambda: store.clock)


@pytest.fixture
def judge(store, actor, policy):
    """Write a verdict on a version into history, as a gate run does; promotes where it is PROMOTE."""

    def write(version, outcome=Outcome.PROMOTE, policy_digest=None, *, promoting=True):
        registry = MemoryRegistry(store)
        ref = ModelRef("signs", version)
        champion = store.aliases["signs"].get("production")
        judged = Judged(
            ref,
            transition.artifact_digest(registry, ref),
            outcome,
            "because",
            champion,
            policy_digest or load_policy(policy).digest,
        )
        act = transition.promote if promoting and outcome == "PROMOTE" else transition.record_verdict
        return act(registry, judged, actor=actor)

    return write


class FakeGate:
    """Ends with the code that it is told to, for each version, and leaves that verdict behind."""

    def __init__(self, judge):
        self.judge = judge
        self.codes = {}
        self.ran = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, ref, ended, meanwhile):
        self.ran.append(ref.version)
        self.hold.wait(20)
        code = self.codes.get(ref.version, 0)
        if code in OUTCOMES:
            self.judge(ref.version, Outcome(OUTCOMES[code].upper()))
        return code


@pytest.fixture
def gate(judge):
    return FakeGate(judge)


@pytest.fixture
def listener(store, policy, gate):
    """Makes gatekeepers on the one store: ``listener(pause=0).gatekeeper``; they are ended with the test."""
    made = []

    def make(room=10, pause=0.0):
        counts, lines, registry = Counts(), [], MemoryRegistry(store)
        ledger = Ledger(registry)
        keeper = Gatekeeper(registry, ledger, policy, gate, counts, lines.append, room=room, pause=pause)
        made.append(keeper)
        return SimpleNamespace(
            gatekeeper=keeper, counts=counts, lines=lines, ledger=ledger, registry=registry
        )

    yield make
    gate.hold.set()
    for keeper in made:
        keeper.end()
        if keeper.ident is not None:
            keeper.join(20)


@pytest.fixture
def deliver():
    """Headers and body of a delivery, signed by MLflow's own code."""

    def make(
        kind="model_version.created",
        *,
        secret=SECRET,
        delivery="d-1",
        stamp=None,
        name="signs",
        version="1",
        **data,
    ):
        entity, _, action = kind.partition(".")
        told = {"name": name, "version": version, **data}
        body = json.dumps(
            {"entity": entity, "action": action, "timestamp": "2026-01-01T00:00:00+00:00", "data": told}
        )
        stamp = str(int(time.time())) if stamp is None else stamp
        headers = {
            "content-type": "application/json",
            "x-mlflow-delivery-id": delivery,
            "x-mlflow-timestamp": stamp,
            "x-mlflow-signature": _generate_hmac_signature(secret, delivery, stamp, body),
        }
        return headers, body.encode()

    return make


@pytest.fixture
def eventually():
    def wait(condition, seconds=20):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.01)
        pytest.fail("it never came true")

    return wait
