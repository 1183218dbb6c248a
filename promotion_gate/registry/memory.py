"""A whole registry in memory, for tests, that can be made to fail or to die at any call.

Several :class:`MemoryRegistry` over one :class:`MemoryStore` are several processes on one server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from promotion_gate.core.errors import NotInRegistry, RegistryConflict
from promotion_gate.core.types import ModelRef, RunFacts
from promotion_gate.registry.interface import (
    RECORD_FILE,
    VERDICT_FILE,
    Event,
    EventPointer,
    LockHolder,
    ModelFacts,
    VersionFacts,
)
from promotion_gate.registry.naming import parse_model_uri


class Killed(BaseException):
    """The process that made the call is gone; nothing it would have done afterwards happens."""


@dataclass
class StoredRun:
    """One MLflow run: status, tags, params, metrics and artifacts."""

    ref: ModelRef | None = None
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class MemoryStore:
    """What a server holds. ``clock`` is moved by hand."""

    clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    versions: dict[ModelRef, VersionFacts] = field(default_factory=dict)
    artifacts: dict[ModelRef, dict[str, bytes]] = field(default_factory=dict)
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)
    model_tags: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: dict[str, StoredRun] = field(default_factory=dict)
    run_facts: dict[str, RunFacts] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    locks: dict[str, LockHolder] = field(default_factory=dict)
    mutex: threading.RLock = field(default_factory=threading.RLock)

    def add_version(
        self, ref: ModelRef, files: Mapping[str, bytes], *, run_id: str = "", stage: str = ""
    ) -> None:
        """Register a version with these artifacts."""
        self.versions[ref] = VersionFacts(ref, run_id or None, f"memory:/{ref}", "READY", stage)
        self.artifacts[ref] = dict(files)
        self.aliases.setdefault(ref.name, {})

    def wait(self, seconds: float) -> None:
        """Move the clock forward."""
        self.clock += timedelta(seconds=seconds)


class MemoryRegistry:
    """One client of a :class:`MemoryStore`.

    Parameters
    ----------
    store: what the server holds.
    before, after: called with the call's number (from 1) and name, before and after it takes effect;
        what they raise is the call's failure. After :class:`Killed` every further call is killed too.
    """

    host = "memory"
    concurrent = False

    def __init__(
        self,
        store: MemoryStore,
        before: Callable[[int, str], None] = lambda number, name: None,
        after: Callable[[int, str], None] = lambda number, name: None,
    ) -> None:
        self.store = store
        self.calls: list[str] = []
        self._before = before
        self._after = after
        self._dead = False

    def resolve(self, uri: str) -> ModelRef:
        name, version = parse_model_uri(uri)
        with _Call(self, "resolve"):
            if isinstance(version, str):
                aliases = self.store.aliases.get(name, {})
                if version not in aliases:
                    raise NotInRegistry(f"model {name!r} has no alias {version!r}")
                version = aliases[version]
            return self._known(ModelRef(name, version))

    def version(self, ref: ModelRef) -> VersionFacts:
        with _Call(self, "version"):
            return self.store.versions[self._known(ref)]

    def versions(self, name: str) -> Sequence[VersionFacts]:
        with _Call(self, "versions"):
            found = [facts for ref, facts in self.store.versions.items() if ref.name == name]
            return sorted(found, key=lambda facts: facts.ref.version)

    def model(self, name: str) -> ModelFacts:
        with _Call(self, "model"):
            if name not in self.store.aliases:
                raise NotInRegistry(f"no registered model {name!r} at {self.host}")
            staged = any(v.stage for v in self.store.versions.values() if v.ref.name == name)
            tags = dict(self.store.model_tags.get(name, {}))
            return ModelFacts(name, dict(self.store.aliases[name]), staged, tags)

    def run_facts(self, run_id: str, curves: str = "") -> RunFacts:
        with _Call(self, "run_facts"):
            if run_id not in self.store.run_facts:
                raise NotInRegistry(f"no run {run_id!r} at {self.host}")
            facts = self.store.run_facts[run_id]
            kept = {k: v for k, v in facts.curves.items() if curves and k.startswith(curves)}
            return replace(facts, curves=kept)

    def download(self, ref: ModelRef, folder: Path) -> None:
        with _Call(self, "download"):
            for path, content in self.store.artifacts[self._known(ref)].items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    def set_version_tag(self, ref: ModelRef, key: str, value: str) -> None:
        with _Call(self, "set_version_tag"):
            facts = self.store.versions[self._known(ref)]
            self.store.versions[ref] = replace(facts, tags={**facts.tags, key: value})

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        with _Call(self, "set_model_tag"):
            if name not in self.store.aliases:
                raise NotInRegistry(f"no registered model {name!r} at {self.host}")
            self.store.model_tags.setdefault(name, {})[key] = value

    def start_gate_run(self, ref: ModelRef, tags: Mapping[str, str]) -> str:
        with _Call(self, "start_gate_run"):
            run_id = f"gate-run-{len(self.store.runs) + 1}"
            self.store.runs[run_id] = StoredRun(ref, tags=dict(tags))
            return run_id

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        with _Call(self, "log_params"):
            self._run(run_id).params.update(params)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        with _Call(self, "log_metrics"):
            self._run(run_id).metrics.update(metrics)

    def log_file(self, run_id: str, path: str, content: bytes) -> None:
        with _Call(self, "log_file"):
            self._run(run_id).files[path] = content

    def read_file(self, run_id: str, path: str) -> bytes:
        with _Call(self, "read_file"):
            run = self._run(run_id)
            if path not in run.files:
                raise NotInRegistry(f"run {run_id} has no file {path!r}")
            return run.files[path]

    def finish_run(self, run_id: str, *, failed: bool = False) -> None:
        with _Call(self, "finish_run"):
            self._run(run_id).status = "FAILED" if failed else "FINISHED"

    def last_gate_run(self, ref: ModelRef) -> str:
        with _Call(self, "last_gate_run"):
            found = [run_id for run_id, run in self.store.runs.items() if run.ref == ref]
            if not found:
                raise NotInRegistry(f"{ref} has no gate run", "run 'promotion-gate run' on it first")
            return found[-1]

    def set_alias(self, name: str, alias: str, version: int) -> None:
        with _Call(self, "set_alias"):
            self._known(ModelRef(name, version))
            self.store.aliases[name][alias] = version

    def delete_alias(self, name: str, alias: str) -> None:
        with _Call(self, "delete_alias"):
            self.store.aliases.get(name, {}).pop(alias, None)

    def set_production_stage(self, ref: ModelRef) -> None:
        with _Call(self, "set_production_stage"):
            self._known(ref)
            for other, facts in self.store.versions.items():
                if other.name == ref.name and facts.stage == "Production":
                    self.store.versions[other] = replace(facts, stage="Archived")
            self.store.versions[ref] = replace(self.store.versions[ref], stage="Production")

    def production_stage(self, name: str) -> Sequence[int]:
        with _Call(self, "production_stage"):
            return [
                ref.version
                for ref, facts in self.store.versions.items()
                if ref.name == name and facts.stage == "Production"
            ]

    def events(self, name: str) -> Sequence[Event]:
        with _Call(self, "events"):
            found = [event for event in self.store.events.values() if event.pointer.name == name]
            return sorted(found, key=lambda event: (event.pointer.sequence, event.at, event.event_id))

    def begin_event(self, pointer: EventPointer, record: bytes, verdict: bytes = b"") -> str:
        with _Call(self, "begin_event"):
            event_id = f"event-{len(self.store.events) + 1}"
            self.store.events[event_id] = Event(event_id, pointer, "begun", self.store.clock)
            self.store.runs[event_id] = StoredRun()
        if verdict:
            with _Call(self, "begin_event.verdict"):
                self.store.runs[event_id].files[VERDICT_FILE] = verdict
        with _Call(self, "begin_event.record"):
            self.store.runs[event_id].files[RECORD_FILE] = record
            return event_id

    def finish_event(self, event_id: str, state: Literal["done", "undone"], note: str = "") -> None:
        with _Call(self, "finish_event"):
            self.store.events[event_id] = replace(self.store.events[event_id], state=state, note=note)

    def acquire_lock(self, name: str, holder: LockHolder) -> None:
        with _Call(self, "acquire_lock"):
            current = self.store.locks.get(name)
            if current is not None and current.until > self.store.clock:
                raise RegistryConflict(f"{current.who} is changing the production version of {name!r}")
            self.store.locks[name] = holder

    def lock_holder(self, name: str) -> LockHolder | None:
        with _Call(self, "lock_holder"):
            return self.store.locks.get(name)

    def release_lock(self, name: str, holder: LockHolder) -> None:
        with _Call(self, "release_lock"):
            if self.store.locks.get(name) == holder:
                del self.store.locks[name]

    def _known(self, ref: ModelRef) -> ModelRef:
        if ref not in self.store.versions:
            raise NotInRegistry(f"no model version {ref} at {self.host}")
        return ref

    def _run(self, run_id: str) -> StoredRun:
        if run_id not in self.store.runs:
            raise NotInRegistry(f"no run {run_id!r} at {self.host}")
        return self.store.runs[run_id]


class _Call:
    """One call: counted, atomic, and killed or failed where the test asks for it."""

    def __init__(self, registry: MemoryRegistry, name: str) -> None:
        self._registry = registry
        self._name = name

    def __enter__(self) -> None:
        registry = self._registry
        if registry._dead:
            raise Killed
        registry.calls.append(self._name)
        self._hook(registry._before)
        registry.store.mutex.acquire()

    def __exit__(self, kind: object, *rest: object) -> None:
        self._registry.store.mutex.release()
        if kind is None:
            self._hook(self._registry._after)

    def _hook(self, hook: Callable[[int, str], None]) -> None:
        try:
            hook(len(self._registry.calls), self._name)
        except Killed:
            self._registry._dead = True
            raise
