"""What the gate asks of a model registry and of the tracking server behind it.

Every method raises :class:`~promotion_gate.core.errors.RegistryError` when the registry cannot be
reached or refuses, and :class:`~promotion_gate.core.errors.NotInRegistry` when what is named is not
there. All strings that come back were written by others and are hostile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from promotion_gate.core.types import Action, ModelRef, RunFacts

EXPERIMENT = "promotion-gate"
"""The experiment that holds every gate run and every event of history."""

RECORD_FILE = "record.dsse.json"
"""The artifact of an event that holds its signed record."""

VERDICT_FILE = "verdict.dsse.json"
"""The artifact of an event that holds the signed verdict it rests on."""

MAX_SEQUENCE = 10**15
"""No history has so many events; a number beyond is no place in one."""

ATTESTATION_FILE = "attestation.dsse.json"
"""The artifact of a training run that holds the trainer's signed statement of its data and code."""

EventState = Literal["begun", "done", "undone"]


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What the registry says of one model version.

    ``stage`` is empty where the version is in none. ``status`` is ``READY`` once it can be used.
    """

    ref: ModelRef
    run_id: str | None
    source: str
    status: str
    stage: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the registry says of a registered model: its aliases, whether it uses legacy stages, its tags."""

    name: str
    aliases: Mapping[str, int]
    uses_stages: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventPointer:
    """Where an event of history stands in the registry, in tags; the facts are in its signed record.

    ``from_version`` and ``to_version`` are None for events that move nothing, ``from_version`` also for
    the first promotion. Those of a foreign entry are what it tells; the gate moved nothing. ``sequence``
    orders events; ``mirror_stage`` says whether the legacy stage follows the alias in this move.
    """

    name: str
    version: int
    action: Action
    alias: str
    sequence: int
    from_version: int | None = None
    to_version: int | None = None
    mirror_stage: bool = False
    gate_run_id: str = ""

    @property
    def moves(self) -> bool:
        return self.to_version is not None and self.action != "foreign"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as found in the registry.

    ``note`` says who finished or undid an event whose own process had died. ``supposed`` marks a state that
    a plan foresees; a registry never says so.
    """

    event_id: str
    pointer: EventPointer
    state: EventState
    at: datetime
    note: str = ""
    supposed: bool = False


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a model's lock, and until when; ``token`` is unique to one acquisition."""

    token: str
    who: str
    until: datetime


class Registry(Protocol):
    """A registry. ``host`` names it in messages, without credentials.

    ``concurrent`` says whether calls from several threads at once gain anything.
    """

    host: str
    concurrent: bool

    def resolve(self, uri: str) -> ModelRef:
        """The version that ``models:/name/7``, ``models:/name@alias`` or ``name/7`` stands for.

        Raises
        ------
        UsageError: the text is none of these.
        """
        ...

    def version(self, ref: ModelRef) -> VersionFacts: ...

    def versions(self, name: str) -> Sequence[VersionFacts]:
        """Every version of a model, in order of their numbers."""
        ...

    def model(self, name: str) -> ModelFacts: ...

    def registered_models(self) -> Sequence[str]:
        """The names of every registered model, locks left out."""
        ...

    def run_facts(self, run_id: str, curves: str = "") -> RunFacts:
        """A run's facts, with the history of every metric whose name starts with ``curves``.

        An empty prefix fetches no history.
        """
        ...

    def download(self, ref: ModelRef, folder: Path) -> None:
        """Copy a version's artifacts into an empty folder.

        Raises
        ------
        ArtifactError: they are no plain files.
        """
        ...

    def set_version_tag(self, ref: ModelRef, key: str, value: str) -> None: ...

    def set_model_tag(self, name: str, key: str, value: str) -> None: ...

    def start_gate_run(self, ref: ModelRef, tags: Mapping[str, str]) -> str:
        """Open the MLflow run of one gate run and return its id."""
        ...

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None: ...

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None: ...

    def log_file(self, run_id: str, path: str, content: bytes) -> None:
        """Store ``content`` as the run's artifact ``path``, which is a plain file name."""
        ...

    def read_file(self, run_id: str, path: str) -> bytes: ...

    def finish_run(self, run_id: str, *, failed: bool = False) -> None: ...

    def last_gate_run(self, ref: ModelRef) -> str:
        """The id of the newest gate run of a version."""
        ...

    def set_alias(self, name: str, alias: str, version: int) -> None: ...

    def delete_alias(self, name: str, alias: str) -> None: ...

    def set_production_stage(self, ref: ModelRef) -> None:
        """Move a version to the legacy stage ``Production`` and archive all others there."""
        ...

    def production_stage(self, name: str) -> Sequence[int]:
        """Every version in the legacy stage ``Production``."""
        ...

    def events(self, name: str) -> Sequence[Event]:
        """The model's whole history in order, events that were only begun included."""
        ...

    def begin_event(self, pointer: EventPointer, record: bytes, verdict: bytes = b"") -> str:
        """Write down what is about to happen, and return the event's id.

        ``verdict`` is stored first: an event with a record is whole.
        """
        ...

    def finish_event(self, event_id: str, state: Literal["done", "undone"], note: str = "") -> None: ...

    def acquire_lock(self, name: str, holder: LockHolder) -> None:
        """Take the model's lock, also from a holder whose lease is over.

        Raises
        ------
        RegistryConflict: somebody else holds it.
        """
        ...

    def renew_lock(self, name: str, holder: LockHolder) -> None:
        """Hold the lock on, until ``holder.until``.

        Raises
        ------
        RegistryConflict: ``holder`` no longer has it.
        """
        ...

    def lock_holder(self, name: str) -> LockHolder | None: ...

    def release_lock(self, name: str, holder: LockHolder) -> None:
        """Give the lock back; does nothing when ``holder`` no longer has it."""
        ...
