"""Watching a model in production: read what was logged, hold it against the baseline, tell what changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.core.errors import (
    InputError,
    NotInRegistry,
    RegistryError,
    SigningError,
    UsageError,
)
from promotion_gate.core.types import ModelRef
from promotion_gate.monitor.baseline import load_baseline
from promotion_gate.monitor.interface import Alarm, Baseline, WindowOutcome
from promotion_gate.monitor.log_arrow import Wanted
from promotion_gate.monitor.log_reader import Position, advanced, read_log
from promotion_gate.monitor.state import (
    Remembered,
    default_folder,
    held,
    read_state,
    resume,
    standing,
    write_state,
)
from promotion_gate.monitor.tracker import Tracker, moment
from promotion_gate.vouching import DEFAULT_PRODUCTION

if TYPE_CHECKING:
    from promotion_gate.core.keys import TrustedKeys
    from promotion_gate.core.production import Production
    from promotion_gate.registry.interface import Registry

GRACE_SECONDS = 15.0
"""How long a window waits for predictions that were made in it and are still being written."""

LEAST_WINDOW, MOST_WINDOW = 60.0, 30 * 86_400.0
QUANTA = 64
_SAVE_SECONDS = 2.0
_LOOK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched, and how.

    ``logs`` are files, folders, patterns and URLs. ``window`` is in seconds. ``state`` is the folder that
    remembers between runs; one of its own is found for the model and its logs unless given. ``follow`` goes
    on until it is stopped, looking every ``poll`` seconds. ``note`` is told what a person should know.
    """

    name: str
    logs: Sequence[str]
    production: Production = DEFAULT_PRODUCTION
    window: float = 3600.0
    state: Path | None = None
    follow: bool = False
    poll: float = 5.0
    on_window: Sequence[Callable[[WindowOutcome], None]] = ()
    note: Callable[[str], None] = lambda _: None
    trusted: TrustedKeys | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)


def watch(registry: Registry, watched: Watched) -> Iterator[WindowOutcome]:
    """An outcome for every window that is over, every look that raises or resolves an alarm, and at the end.

    Each goes to every ``on_window`` first; then what was read is remembered, and the outcome yielded. A run
    that is killed reads again what it had not remembered, and may tell an alarm twice, but forgets none. The
    registry is only read.

    Raises
    ------
    UsageError: an option makes no sense, or the state is damaged.
    InputError: a log cannot be read, or holds no prediction of the version in production.
    RegistryError: the registry cannot be reached, or nothing is in production.
    SigningError: the baseline does not verify, or is older than the one used before.
    """
    require_window(watched.window)
    alias = watched.production.alias
    folder = watched.state or default_folder(registry.host, watched.name, alias, watched.logs)
    with held(folder):
        yield from _Watch(registry, watched, folder).outcomes()


def require_window(seconds: float) -> None:
    """Refuse a window that is too short to tell anything, or longer than alarms may take.

    Raises
    ------
    UsageError: it is.
    """
    if not LEAST_WINDOW <= seconds <= MOST_WINDOW:
        told = f"{seconds:g} s" if seconds < LEAST_WINDOW else f"{seconds / 86_400:g} days"
        raise UsageError(f"a window of {told} cannot be used", "give --window 1m to 30d")


def in_production(registry: Registry, name: str, alias: str) -> ModelRef:
    """The version that the alias names.

    Raises
    ------
    NotInRegistry: none.
    """
    version = registry.model(name).aliases.get(alias)
    if version is None:
        raise NotInRegistry(f"no version of {name!r} has the alias {alias!r}: nothing is in production")
    return ModelRef(name, version)


class _Watch:
    """One run of :func:`watch`."""

    def __init__(self, registry: Registry, watched: Watched, folder: Path) -> None:
        self._registry = registry
        self._watched = watched
        self._folder = folder
        remembered = read_state(folder)
        self._positions: dict[str, Position] = remembered.positions
        self._left: list[Alarm] = []
        self._any = False
        self._tracker = self._tracker_of(in_production(registry, watched.name, watched.production.alias))
        self._take_up(remembered)
        self._saved = self._looked = time.monotonic()

    def outcomes(self) -> Iterator[WindowOutcome]:
        while True:
            yield from self._read()
            if self._is_over():
                yield self._told(self._tracker.close())
            if not self._watched.follow:
                break
            self._watched.sleep(self._watched.poll)
            self._look_again()
        if not self._any and self._tracker.current is None and (self._left or self._tracker.firing):
            self._tracker.open(self._watched.clock())
        if self._tracker.current is not None:
            yield self._told(self._tracker.outcome(complete=False))
        self._save()
        self._require_something()

    def _read(self) -> Iterator[WindowOutcome]:
        baseline = self._tracker.baseline
        wanted = Wanted(
            tuple(baseline.class_names),
            image=True,
            width=len(baseline.embedding_mean),
            clock=self._watched.clock,
        )
        pieces = read_log(
            self._watched.logs,
            wanted,
            dict(self._positions),
            quantum=self._watched.window / QUANTA,
            growing=self._watched.follow,
        )
        for piece in pieces:
            found = list(self._tracker.feed(piece))
            if self._tracker.news:
                found.append(self._tracker.outcome(complete=False))
            for outcome in found:
                self._call(self._with_left(outcome))
            advanced(self._positions, [piece])
            if found or time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save()
            yield from found

    def _told(self, outcome: WindowOutcome) -> WindowOutcome:
        outcome = self._with_left(outcome)
        self._call(outcome)
        self._save()
        return outcome

    def _with_left(self, outcome: WindowOutcome) -> WindowOutcome:
        """Add the end of alarms of a version that left production."""
        left, self._left = self._left, []
        self._any = True
        return replace(outcome, alarms=[*left, *outcome.alarms]) if left else outcome

    def _call(self, outcome: WindowOutcome) -> None:
        for hook in self._watched.on_window:
            hook(outcome)

    def _save(self) -> None:
        write_state(self._folder, self._tracker, self._positions)
        self._saved = time.monotonic()

    def _is_over(self) -> bool:
        current = self._tracker.current
        return current is not None and (
            self._watched.clock() > current.start + self._watched.window + GRACE_SECONDS
        )

    def _look_again(self) -> None:
        """In a long run: follow production to another version, or another baseline of the same."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            ref = in_production(self._registry, self._watched.name, self._watched.production.alias)
            if ref == self._tracker.baseline.ref:
                return
            tracker = self._tracker_of(ref)
        except RegistryError as error:
            self._watched.note(f"going on with {self._tracker.baseline.ref}: {error}")
            return
        self._watched.note(f"production is {ref} now, was {self._tracker.baseline.ref}")
        self._left += self._tracker.retire(self._watched.clock())
        self._tracker = tracker
        self._save()

    def _tracker_of(self, ref: ModelRef) -> Tracker:
        baseline = load_baseline(self._registry, ref, self._watched.trusted)
        return Tracker(baseline, self._watched.production.alias, self._watched.window)

    def _take_up(self, remembered: Remembered) -> None:
        baseline = self._tracker.baseline
        if resume(self._tracker, remembered):
            return
        _require_newer(remembered, baseline)
        at = moment(self._watched.clock())
        self._left = [
            replace(
                alarm, state="resolved", at=at, message=f"over: {alarm.message}; {_why(remembered, baseline)}"
            )
            for alarm in standing(remembered)
        ]

    def _require_something(self) -> None:
        if self._tracker.seen:
            return
        others = ", ".join(f"version {v}: {n:,}" for v, n in sorted(self._tracker.others.items())[:5])
        raise InputError(
            f"the log has no prediction of {self._tracker.baseline.ref}, which is in production"
            f" ({others or 'no prediction at all was read'})",
            "check --log, and the version given to PredictionLog",
        )


def _require_newer(remembered: Remembered, baseline: Baseline) -> None:
    """An older baseline than the one used before was put in its place."""
    about = remembered.about
    if about.get("ref") != str(baseline.ref) or about.get("digest") != baseline.digest:
        return
    if datetime.fromisoformat(about["baseline_at"]) > baseline.at:
        raise SigningError(
            f"the baseline of {baseline.ref} is older than the one used before, of"
            f" {about['baseline_at'][:19]}",
            "make a new one, or remove the state folder if that is right",
        )


def _why(remembered: Remembered, baseline: Baseline) -> str:
    if remembered.about.get("ref") != str(baseline.ref):
        return "the version left production"
    return "the baseline or the window is another one now"
