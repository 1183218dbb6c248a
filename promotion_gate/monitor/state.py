"""What monitoring remembers between two runs: how far each file was read, and the evidence so far."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from promotion_gate.core.errors import RegistryConflict, UsageError
from promotion_gate.core.places import base_folder, expanded
from promotion_gate.core.writing import write_bytes
from promotion_gate.monitor.interface import Alarm
from promotion_gate.monitor.log_reader import Position
from promotion_gate.monitor.tracker import Tracker, WindowCounts

SCHEMA = "promotion-gate-monitor-state/1"
STATE_FILE = "monitor.npz"
_LOCK_FILE = "monitor.lock"
_ARRAYS = ("sums", "shown", "since", "hits", "trials")


@dataclass(slots=True)
class Remembered:
    """The state as it was read: ``positions`` by file, ``about`` and ``arrays`` of the tracker."""

    positions: dict[str, Position] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)


def default_folder(host: str, name: str, alias: str, logs: Sequence[str]) -> Path:
    """Where state lies unless a folder is named: one of its own for each model, alias and set of logs."""
    places = sorted(log if "://" in log else str(expanded(log).absolute()) for log in logs)
    text = "\0".join([host, name, alias, *places])
    key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return base_folder("XDG_STATE_HOME") / "promotion-gate" / "monitor" / key


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other monitor off this state.

    Raises
    ------
    RegistryConflict: one is at work.
    UsageError: the folder cannot be made or written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot use the state folder {folder}: {error.strerror}", "name another with --state"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RegistryConflict(
                f"another monitor works with the state in {folder}", "stop one of them"
            ) from None
        yield
    finally:
        os.close(descriptor)


def read_state(folder: Path) -> Remembered:
    """The state in a folder; an empty one where there is none.

    Raises
    ------
    UsageError: it is damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return Remembered()
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["schema"] != SCHEMA:
                raise ValueError(about["schema"])
            arrays = {name: np.array(stored[name], dtype=np.float64) for name in _ARRAYS if name in stored}
        positions = {key: Position(**value) for key, value in about["positions"].items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        said = f"the state in {path} cannot be read ({type(error).__name__})"
        raise UsageError(said, "remove it to begin anew") from None
    return Remembered(positions, about, arrays)


def write_state(folder: Path, tracker: Tracker, positions: Mapping[str, Position]) -> None:
    """Write the state whole.

    Raises
    ------
    UsageError: it cannot be written.
    """
    current = tracker.current
    about = {
        "schema": SCHEMA,
        "ref": str(tracker.baseline.ref),
        "digest": tracker.baseline.digest,
        "baseline_at": tracker.baseline.at.isoformat(),
        "alias": tracker.alias,
        "window": tracker.window,
        "seen": tracker.seen,
        "open_from": tracker.open_from,
        "others": list(tracker.others.items()),
        "firing": [_alarm_json(alarm) for alarm in tracker.firing.values()],
        "positions": {key: asdict(position) for key, position in positions.items()},
        "current": None
        if current is None
        else {
            "start": current.start,
            "rows": current.rows,
            "late": current.late,
            "spent": current.spent,
            "others": list(current.others.items()),
            "unseen": list(current.unseen.items()),
        },
    }
    detector = tracker.detector
    arrays = {"sums": detector.sums, "shown": detector.shown, "since": tracker.since}
    if current is not None:
        arrays |= {"hits": current.hits, "trials": current.trials}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    write_bytes(folder / STATE_FILE, content.getvalue())


def resume(tracker: Tracker, remembered: Remembered) -> bool:
    """Put a tracker where it was; False where the state is of another version, baseline or window.

    Raises
    ------
    UsageError: the state is damaged.
    """
    about, arrays = remembered.about, remembered.arrays
    if not about or any(about.get(key) != value for key, value in _identity(tracker).items()):
        return False
    try:
        questions, shape = len(tracker.questions), tracker.detector.sums.shape
        if arrays["sums"].shape != shape or arrays["shown"].shape != shape:
            raise ValueError("shape")
        tracker.detector.sums, tracker.detector.shown = arrays["sums"], arrays["shown"]
        tracker.since = arrays["since"].reshape(questions)
        tracker.seen, tracker.open_from = int(about["seen"]), float(about["open_from"])
        tracker.others = Counter(dict(about["others"]))
        tracker.firing = {(a.kind, a.subject): a for a in map(_alarm, about["firing"])}
        said = about["current"]
        if said is not None:
            hits, trials = (arrays[name].reshape(questions) for name in ("hits", "trials"))
            others, unseen = Counter(dict(said["others"])), Counter(dict(said["unseen"]))
            counts = (int(said["rows"]), int(said["late"]), float(said["spent"]))
            tracker.current = WindowCounts(float(said["start"]), hits, trials, *counts, others, unseen)
    except (KeyError, ValueError, TypeError, IndexError):
        raise UsageError("the state of monitoring is damaged", "remove its folder to begin anew") from None
    return True


def standing(remembered: Remembered) -> list[Alarm]:
    """The alarms that stood when the state was written."""
    return [_alarm(said) for said in remembered.about.get("firing", ())]


def _identity(tracker: Tracker) -> dict[str, Any]:
    return {
        "ref": str(tracker.baseline.ref),
        "digest": tracker.baseline.digest,
        "baseline_at": tracker.baseline.at.isoformat(),
        "alias": tracker.alias,
        "window": tracker.window,
    }


def _alarm_json(alarm: Alarm) -> dict[str, Any]:
    return {**asdict(alarm), "since": alarm.since.isoformat(), "at": alarm.at.isoformat()}


def _alarm(said: Mapping[str, Any]) -> Alarm:
    times = {key: datetime.fromisoformat(said[key]) for key in ("since", "at")}
    return Alarm(**{**said, **times})
