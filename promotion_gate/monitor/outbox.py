"""What is alarming and who was told of it: a file that survives every restart.

Each alarm that fires opens an episode. Each receiver has one word that it should have heard of the episode
(it fires, it still does, it is over) and one that it acknowledged; where they differ, something is to be
sent. So nothing is told twice, and nothing is lost when a process dies: killed between sending and writing
that down, the same message with the same id is sent again. Of an alarm that was over before anything was sent
of it, nothing is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from promotion_gate.core.errors import UsageError
from promotion_gate.core.writing import write_bytes
from promotion_gate.monitor.interface import Alarm, AlarmKind
from promotion_gate.monitor.notification import Notification, bounded, dedup_key
from promotion_gate.monitor.settings import Receiver

KEPT = timedelta(days=7)
"""How long it is tried to tell somebody of what is over."""

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=15)
MAX_STATE_BYTES = 50_000_000
MAX_ALARMS = 20_000

_Text = Annotated[str, Field(max_length=10_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Alarm(_Part):
    kind: AlarmKind
    model: str
    version: int | None
    subject: str
    state: Literal["firing", "resolved"]
    message: str
    since: AwareDatetime
    at: AwareDatetime
    sigma: float | None
    detail: dict[str, JsonValue]

    @classmethod
    def of(cls, alarm: Alarm) -> _Alarm:
        # A log may hold halves of characters, which no file can.
        return cls(
            kind=alarm.kind,
            model=_whole(alarm.model),
            version=alarm.version,
            subject=_whole(alarm.subject),
            state=alarm.state,
            message=_whole(alarm.message),
            since=alarm.since,
            at=alarm.at,
            sigma=alarm.sigma if math.isfinite(alarm.sigma) else None,
            detail=json.loads(_whole(json.dumps(bounded(alarm.detail), ensure_ascii=False))),
        )

    def back(self) -> Alarm:
        told = {name: getattr(self, name) for name in type(self).model_fields}
        return Alarm(**{**told, "sigma": self.sigma or 0.0})


class _Told(_Part):
    """The last word that a receiver took."""

    episode: str
    word: Literal["firing", "reminder", "resolved"]
    at: AwareDatetime
    reminders: int = 0


class _Episode(_Part):
    episode: str
    alarm: _Alarm
    opened: AwareDatetime
    told: dict[str, _Told] = {}
    tried: list[str] = []
    """To whom something of this episode was sent, or may have been."""
    remarks: list[_Text] = []
    """What was told beside it once, see :meth:`Outbox.notice`."""


class _Notice(_Part):
    id: str
    alarm: _Alarm
    at: AwareDatetime
    told: list[str] = []


class ReceiverState(_Part):
    """How a receiver fares: deliveries and failures since the file was made, and when it is tried again."""

    delivered: int = 0
    failed: int = 0
    failures_in_a_row: int = 0
    next_try: AwareDatetime | None = None
    problem: _Text = ""


class _State(_Part):
    schema_: Literal["promotion-gate-outbox/1"] = Field(default="promotion-gate-outbox/1", alias="schema")
    alarms: dict[str, _Episode] = {}
    notices: list[_Notice] = []
    receivers: dict[str, ReceiverState] = {}


@dataclass(frozen=True, slots=True)
class Pending:
    """One message that a receiver should have and has not acknowledged."""

    notification: Notification
    reminders: int = 0
    episode: str = ""


class Outbox:
    """The file, and every change of it. Several processes may use the same one.

    Parameters
    ----------
    path: the file; its folder is made.
    receivers: who is to be told.
    complain: takes one line about trouble with the file.

    Raises
    ------
    UsageError: the folder cannot be made or written.
    """

    def __init__(
        self,
        path: Path,
        receivers: Sequence[Receiver],
        *,
        environment: str = "",
        remind_after: timedelta | None = None,
        complain: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = path
        self.receivers = receivers
        self._environment = environment
        self._remind_after = remind_after
        self._complain = complain
        self._unwritten: _State | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"cannot make the folder {path.parent}: {error.strerror}") from None
        with self._changed():
            pass
        if self._unwritten is not None:
            raise UsageError(f"cannot write {path}", "name another file for the state of alarms")

    def take(
        self, alarms: Sequence[Alarm], at: datetime, *, everything: Sequence[str] = (), model: str = ""
    ) -> None:
        """Note what fires and what is over.

        Parameters
        ----------
        everything: kinds of which ``alarms`` is complete for ``model``: an open alarm of such a kind that
            does not fire in it is over, also where a restart made the monitor forget it.
        """
        with self._changed(at) as state:
            firing = {dedup_key(a, self._environment): a for a in alarms if a.state == "firing"}
            over = {dedup_key(a, self._environment): a for a in alarms if a.state == "resolved"}
            for key, alarm in firing.items():
                _fire(state, key, alarm, at)
            for key, entry in state.alarms.items():
                if key in firing or entry.alarm.state == "resolved":
                    continue
                if key in over:
                    entry.alarm = _Alarm.of(over[key])
                elif entry.alarm.kind in everything and entry.alarm.model == _whole(model):
                    entry.alarm = entry.alarm.model_copy(update={"state": "resolved", "at": at})

    def notice(self, alarm: Alarm, at: datetime, *, once: str, about: Alarm | None = None) -> bool:
        """Tell everybody something that is never over; says whether it is new.

        Parameters
        ----------
        once: what makes it the same notice: as long as the alarm ``about`` is open, or for good, it is told
            only once.
        """
        with self._changed(at) as state:
            entry = state.alarms.get(dedup_key(about, self._environment)) if about else None
            told = entry.episode if entry is not None else ""
            identity = _identity(dedup_key(alarm, self._environment), told, "notice", once)
            if any(n.id == identity for n in state.notices) or (entry is not None and once in entry.remarks):
                return False
            state.notices.append(_Notice(id=identity, alarm=_Alarm.of(alarm), at=at))
            if entry is not None:
                entry.remarks.append(once)
            return True

    def firing(self) -> list[Alarm]:
        """The alarms that are open, the strongest first."""
        with self._locked():
            state = self._read()
        found = [entry.alarm.back() for entry in state.alarms.values() if entry.alarm.state == "firing"]
        return sorted(found, key=lambda alarm: (-abs(alarm.sigma), alarm.key))

    def fares(self) -> dict[str, ReceiverState]:
        """Deliveries and failures of every receiver."""
        with self._locked():
            state = self._read()
        return {r.name: state.receivers.get(r.name, ReceiverState()) for r in self.receivers}

    def pending(self, at: datetime, *, only_due: bool = True) -> dict[str, list[Pending]]:
        """What each receiver is to be sent, the strongest alarm first; nobody who asked to be left alone."""
        with self._locked():
            state = self._read()
        found = {}
        for receiver in self.receivers:
            next_try = state.receivers.get(receiver.name, ReceiverState()).next_try
            if only_due and next_try is not None and at < next_try:
                continue
            waiting = self._waiting(state, receiver, at)
            if waiting:
                found[receiver.name] = waiting
        return found

    def trying(self, messages: Mapping[str, Sequence[Pending]]) -> None:
        """Write down what is about to be sent to whom: whoever may have heard an alarm must hear its end."""
        with self._changed() as state:
            for receiver, waiting in messages.items():
                for pending in waiting:
                    entry = state.alarms.get(pending.notification.dedup_key)
                    if entry is not None and entry.episode == pending.episode:
                        entry.tried = sorted({*entry.tried, receiver})

    def delivered(self, receiver: str, sent: Pending, at: datetime) -> None:
        """Write down that a receiver took a message."""
        with self._changed(at) as state:
            fare = state.receivers.setdefault(receiver, ReceiverState())
            fare.delivered += 1
            fare.failures_in_a_row, fare.next_try, fare.problem = 0, None, ""
            word = sent.notification.word
            if word == "notice":
                for notice in state.notices:
                    if notice.id == sent.notification.id:
                        notice.told.append(receiver)
                return
            entry = state.alarms.get(sent.notification.dedup_key)
            if entry is not None and word in ("firing", "reminder", "resolved"):
                entry.told[receiver] = _Told(episode=sent.episode, word=word, at=at, reminders=sent.reminders)

    def failed(self, receiver: str, problem: str, at: datetime, *, wait: float, leave_alone: bool) -> None:
        """Write down that a receiver did not take a message.

        With ``leave_alone`` it is tried again only after a pause that doubles with every failure, or after
        the ``wait`` seconds that it asked for.
        """
        with self._changed(at) as state:
            fare = state.receivers.setdefault(receiver, ReceiverState())
            fare.failed += 1
            fare.problem = problem[:1000]
            if leave_alone:
                fare.next_try = at + max(pause_after(fare.failures_in_a_row), timedelta(seconds=wait))
                fare.failures_in_a_row += 1

    @contextlib.contextmanager
    def sending(self, patience: float = 0.0) -> Iterator[bool]:
        """Whether this process may send now; another one on the same file may not meanwhile."""
        with self._lock_file(".sending").open("ab") as file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        yield False
                        return
                    time.sleep(0.05)
            yield True

    def _waiting(self, state: _State, receiver: Receiver, at: datetime) -> list[Pending]:
        found = []
        for notice in state.notices:
            alarm = notice.alarm.back()
            if receiver.name not in notice.told and alarm.kind in receiver.kinds:
                key = dedup_key(alarm, self._environment)
                found.append(Pending(Notification(notice.id, key, "notice", alarm, self._environment)))
        entries = sorted(state.alarms.items(), key=lambda item: -abs(item[1].alarm.sigma or 0.0))
        for key, entry in entries:
            if entry.alarm.kind in receiver.kinds:
                pending = self._due(key, entry, receiver.name, at)
                if pending is not None:
                    found.append(pending)
        return found

    def _due(self, key: str, entry: _Episode, receiver: str, at: datetime) -> Pending | None:
        told = entry.told.get(receiver)
        known = told is not None and told.episode == entry.episode
        reminders = told.reminders if told is not None and known else 0
        word: Literal["firing", "reminder", "resolved"]
        if entry.alarm.state == "resolved":
            is_told = told is not None and known and told.word == "resolved"
            if is_told or (receiver not in entry.tried and (told is None or told.word == "resolved")):
                return None
            word = "resolved"
        elif told is None or not known:
            word = "firing"
        elif self._remind_after is not None and at >= told.at + self._remind_after:
            word, reminders = "reminder", reminders + 1
        else:
            return None
        identity = _identity(key, entry.episode, word, str(reminders))
        notification = Notification(identity, key, word, entry.alarm.back(), self._environment)
        return Pending(notification, reminders, entry.episode)

    def _forget(self, state: _State, at: datetime) -> None:
        """Leave out what is over and was told, or could not be told for too long."""
        for key, entry in list(state.alarms.items()):
            if entry.alarm.state != "resolved":
                continue
            interested = [r.name for r in self.receivers if entry.alarm.kind in r.kinds]
            if all(self._due(key, entry, name, at) is None for name in interested):
                del state.alarms[key]
            elif at > entry.alarm.at + KEPT:
                self._complain(f"nobody could be told that an alarm is over: {entry.alarm.message}")
                del state.alarms[key]
        for notice in list(state.notices):
            interested = [r.name for r in self.receivers if notice.alarm.kind in r.kinds]
            told = all(name in notice.told for name in interested)
            # Kept for a while although it was told: it must not be told again.
            if at > notice.at + (KEPT if not told else timedelta(days=2)):
                state.notices.remove(notice)

    @contextlib.contextmanager
    def _changed(self, at: datetime | None = None) -> Iterator[_State]:
        with self._locked():
            state = self._read()
            yield state
            if at is not None:
                self._forget(state, at)
            try:
                write_bytes(self.path, state.model_dump_json(by_alias=True).encode())
                self._unwritten = None
            except UsageError as error:
                # Whoever is to be told is told all the same; only a restart would tell it again.
                self._unwritten = state
                self._complain(str(error))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            file = self._lock_file(".lock").open("ab")
        except OSError as error:
            raise UsageError(f"cannot write {self.path.parent}: {error.strerror}") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _read(self) -> _State:
        if self._unwritten is not None:
            return self._unwritten
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_STATE_BYTES + 1)
            if len(content) > MAX_STATE_BYTES:
                raise ValueError("too large")
            return _State.model_validate_json(content)
        except FileNotFoundError:
            return _State()
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from None
        except (ValidationError, ValueError):
            aside = self.path.with_name(f"{self.path.name}.broken")
            with contextlib.suppress(OSError):
                self.path.replace(aside)
            self._complain(f"{self.path} was unreadable and is now {aside.name}; open alarms are told again")
            return _State()


def pause_after(failures: int) -> timedelta:
    """How long to wait after one more failure: longer each time, to a bound."""
    return min(FIRST_PAUSE * (1 << min(failures, 10)), LONGEST_PAUSE)


def _fire(state: _State, key: str, alarm: Alarm, at: datetime) -> None:
    entry = state.alarms.get(key)
    if entry is not None and entry.alarm.state == "firing":
        # The first moment stays: the same alarm seen again did not begin anew.
        since = min(entry.alarm.since, alarm.since)
        entry.alarm = _Alarm.of(alarm).model_copy(update={"since": since})
    elif entry is not None or len(state.alarms) < MAX_ALARMS:
        told = {} if entry is None else entry.told
        state.alarms[key] = _Episode(
            episode=secrets.token_hex(8), alarm=_Alarm.of(alarm), opened=at, told=told
        )


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _identity(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
