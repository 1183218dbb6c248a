"""One model in a registry in memory, and somebody with a key who acts on it."""

from dataclasses import replace

from promotion_gate import transition
from promotion_gate.core.keys import own_keyring
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.memory import Killed, MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor, Judged

NAME = "signs"


def ref(version):
    return ModelRef(NAME, version)


def kill_at(number):
    def hook(call, name):
        if call == number:
            raise Killed

    return hook


class World:
    """A store with versions of one model; every call is a process of its own on it."""

    def __init__(self, keys, versions=4, stage=""):
        self.store = MemoryStore()
        for version in range(1, versions + 1):
            files = {"MLmodel": b"flavors", "data/model": b"%d" % version}
            self.store.add_version(ref(version), files, stage=stage)
        self.actor = Actor("ada", "ship", keys, lambda: self.store.clock)

    @property
    def registry(self):
        return MemoryRegistry(self.store)

    @property
    def alias(self):
        return self.store.aliases[NAME].get("production")

    @alias.setter
    def alias(self, version):
        """Moved by hand, past the gate."""
        self.store.aliases[NAME].pop("production", None)
        if version is not None:
            self.store.aliases[NAME]["production"] = version

    @property
    def staged(self):
        return [r.version for r, facts in self.store.versions.items() if facts.stage == "Production"]

    def stage(self, version, stage):
        """Set by hand, past the gate."""
        self.store.versions[ref(version)] = replace(self.store.versions[ref(version)], stage=stage)

    def judged(self, version, outcome=Outcome.PROMOTE, **changes):
        digest = transition.artifact_digest(self.registry, ref(version))
        verdict = Judged(ref(version), digest, outcome, f"verdict on {version}", self.alias, "a" * 64)
        return replace(verdict, **changes)

    def promote(self, *versions, registry=None):
        for version in versions:
            told = transition.promote(registry or self.registry, self.judged(version), actor=self.actor)
        return told

    def hold(self, version):
        return transition.record_verdict(self.registry, self.judged(version, Outcome.HOLD), actor=self.actor)

    def rollback(self, registry=None, **arguments):
        arguments = {"reason": "it stops at green", **arguments}
        return transition.rollback(registry or self.registry, NAME, actor=self.actor, **arguments)

    def plan(self, **arguments):
        return transition.plan_rollback(self.registry, NAME, actor=self.actor, **arguments)

    def approve(self, version, registry=None):
        return transition.approve(registry or self.registry, ref(version), reason="seen", actor=self.actor)

    def accept(self, registry=None, **arguments):
        arguments = {"reason": "it was me", **arguments}
        return transition.accept_foreign(registry or self.registry, NAME, actor=self.actor, **arguments)

    def note(self, registry=None):
        return transition.note_foreign_moves(registry or self.registry, NAME, actor=self.actor)

    def recover(self):
        return transition.recover(self.registry, NAME, actor=self.actor)

    def make_whole(self):
        return transition.make_whole(self.registry, NAME, actor=self.actor)

    def status(self):
        return transition.status(self.registry, NAME, trusted=self.actor.keys.trusted)

    def history(self):
        return transition.history(self.registry, NAME, self.actor.keys.trusted)

    def story(self):
        """Every finished event: what it was, and from where to where if it tells of a move."""
        told = [e for e in self.history() if e.event.state == "done"]
        assert not any(entry.problem for entry in told)
        lines = []
        for entry in told:
            record, move = entry.record, entry.record.transition or entry.record.foreign
            to = (move.from_version, move.to_version) if move else (record.ref.version,)
            lines.append((record.action, *to))
        return lines


def stranger(folder, world):
    """Somebody with another key, whom nobody trusts and who trusts nobody."""
    return replace(world.actor, user="eve", keys=own_keyring(folder / "eve.pem"))
