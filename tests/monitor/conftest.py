"""A promoted version with a signed baseline, on a registry in memory, and logs to hold against it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest

from promotion_gate.core.keys import Keyring, own_keyring
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.evidence.interface import ForwardPass
from promotion_gate.monitor.baseline import holdout_baseline, sign_baseline
from promotion_gate.monitor.interface import BASELINE_FILE
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor, Judged, promote
from promotion_gate.vouching import artifact_digest

NAME = "signs"
CLASSES = ("Stop", "Yield", "Speed limit 80")
SHARES = (0.7, 0.295, 0.005)
NOW = 1_780_000_000.0 // 3600 * 3600


def answers(rng, rows=20_000, shares=SHARES, width=4):
    """A forward pass whose classes have these shares."""
    label = rng.choice(len(shares), rows, p=shares)
    logits = rng.normal(0, 1, (rows, len(shares))).astype(np.float32)
    logits[np.arange(rows), label] = logits.max(axis=1) + rng.exponential(2, rows).astype(np.float32)
    return ForwardPass(logits, rng.normal(0, 1, (rows, width)).astype(np.float32))


@dataclass
class World:
    """A store, an actor with keys, and the version in production."""

    store: MemoryStore
    actor: Actor
    keys: Keyring
    of_holdout: Callable
    ref: ModelRef

    @property
    def registry(self):
        return MemoryRegistry(self.store)

    def promote(self, ref, baseline=None, *, keys=None, named=True):
        """Promote a version with its baseline; ``named`` says whether the record names it."""
        registry = self.registry
        self.store.add_version(ref, {"model.bin": str(ref).encode()})
        digest = artifact_digest(registry, ref)
        champion = registry.model(ref.name).aliases.get("production")
        run = registry.start_gate_run(ref, {})
        content = b""
        if baseline is not None:
            content = sign_baseline(baseline(ref, digest), (keys or self.keys).signing)
            registry.log_file(run, BASELINE_FILE, content)
        judged = Judged(
            ref=ref,
            digest=digest,
            outcome=Outcome.PROMOTE,
            reason="good",
            champion=champion,
            policy_digest="1" * 64,
            gate_run_id=run,
            baseline_sha256=hashlib.sha256(content).hexdigest() if content and named else "",
        )
        promote(registry, judged, actor=self.actor)
        return run


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return own_keyring(tmp_path_factory.mktemp("keys") / "key.pem")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    return own_keyring(tmp_path_factory.mktemp("strange-keys") / "key.pem")


def of_holdout(ref, digest, **changes):
    given = answers(np.random.default_rng(7), **changes)
    names = CLASSES[: given.logits.shape[1]]
    return holdout_baseline(ref, digest, names, given, datetime.fromtimestamp(NOW - 90_000, UTC))


@pytest.fixture
def world(keys):
    store = MemoryStore()
    actor = Actor("ann", "host", keys, clock=lambda: store.clock)
    made = World(store, actor, keys, of_holdout, ModelRef(NAME, 1))
    made.promote(made.ref, of_holdout)
    return made
