"""Alarms on their way to people: noted in the outbox first, then delivered."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from promotion_gate.core.places import base_folder
from promotion_gate.core.record import now
from promotion_gate.monitor.delivery import PAUSES, ROUND_SECONDS, Courier, attempt
from promotion_gate.monitor.interface import Alarm
from promotion_gate.monitor.notification import Notification, dedup_key, deviation_message
from promotion_gate.monitor.outbox import Outbox, Pending, ReceiverState
from promotion_gate.monitor.settings import AlertSettings

WATCHED = ("class-share", "confidence", "embedding", "unseen-class")
"""The kinds of which a look at a window names every alarm that stands."""

RETRY_SECONDS = 15.0


class Alerts:
    """What the monitor hands its alarms to.

    Parameters
    ----------
    settings: who is told.
    state: the outbox's file.
    complain: takes one line for the person at the terminal, without secrets.

    Raises
    ------
    UsageError: the file of the outbox cannot be written.
    """

    def __init__(
        self,
        settings: AlertSettings,
        state: Path,
        *,
        complain: Callable[[str], None],
        clock: Callable[[], datetime] = now,
        pauses: Sequence[float] = PAUSES,
        seconds: float = ROUND_SECONDS,
    ) -> None:
        self._complain = complain
        self._clock = clock
        self.outbox = Outbox(
            state,
            settings.receivers,
            environment=settings.environment,
            remind_after=settings.remind_after,
            complain=complain,
        )
        self._courier = Courier(self.outbox, pauses=pauses, seconds=seconds, clock=clock)
        self._delivering = threading.Lock()
        self._over = threading.Event()
        self._retrying: threading.Thread | None = None

    def take(self, alarms: Sequence[Alarm], *, everything: Sequence[str] = (), model: str = "") -> None:
        """Note alarms; see :meth:`Outbox.take`. Nothing is sent yet."""
        self.outbox.take(alarms, self._clock(), everything=everything, model=model)

    def notice(self, alarm: Alarm, *, once: str, about: Alarm | None = None) -> bool:
        """Note something that is told once; see :meth:`Outbox.notice`."""
        return self.outbox.notice(alarm, self._clock(), once=once, about=about)

    def deliver(self, patience: float = 0.0) -> None:
        """Send what is due, and say on the terminal what failed."""
        with self._delivering:
            failures = Counter((each.receiver, each.reason) for each in self._courier.deliver(patience))
        for (receiver, reason), count in failures.items():
            more = f" ({count} messages)" if count > 1 else ""
            self._complain(f"alarms to {receiver!r} failed: {reason}{more}")

    def fares(self) -> dict[str, ReceiverState]:
        """Deliveries and failures of every receiver."""
        return self.outbox.fares()

    def waiting(self) -> dict[str, int]:
        """How many messages each receiver has still to be sent."""
        found = self.outbox.pending(self._clock(), only_due=False)
        return {receiver.name: len(found.get(receiver.name, ())) for receiver in self.outbox.receivers}

    def keep_retrying(self, every: float = RETRY_SECONDS) -> None:
        """From now on send what is due also between two looks, in a thread, until :meth:`close`."""

        def retry() -> None:
            while not self._over.wait(every):
                try:
                    self.deliver()
                except Exception as error:  # the next round may fare better; silence would not
                    self._complain(f"alarms cannot be sent: {type(error).__name__}")

        self._retrying = threading.Thread(target=retry, name="alarms", daemon=True)
        self._retrying.start()

    def close(self) -> None:
        """End the thread of :meth:`keep_retrying`."""
        self._over.set()


def default_state(host: str, name: str) -> Path:
    """Where the outbox of a model at a registry is kept, unless told otherwise."""
    key = hashlib.sha256(json.dumps([host, name]).encode()).hexdigest()[:16]
    return base_folder("XDG_STATE_HOME") / "promotion-gate" / f"alerts-{key}.json"


@dataclass(frozen=True, slots=True)
class Tried:
    """How a test alarm went; ``problem`` is empty where it was taken."""

    receiver: str
    problem: str


def try_receivers(settings: AlertSettings, clock: Callable[[], datetime] = now) -> list[Tried]:
    """Send a test alarm, and that it is over, to every receiver at once; says how each went.

    Nothing is kept: a receiver that fails is not tried again.
    """
    at = clock()
    alarm = Alarm(
        kind="class-share",
        model="test-of-alarms",
        version=None,
        subject="test",
        state="firing",
        message="this is a test of promotion-gate's alarms, nothing is wrong; a real one reads: "
        + deviation_message("Speed limit 80", 7.3),
        since=at,
        at=at,
        detail={"test": True},
    )
    key = dedup_key(alarm, settings.environment)
    message = Pending(Notification(secrets.token_hex(16), key, "test", alarm, settings.environment))
    problems: dict[str, str] = {}

    def one(index: int) -> None:
        receiver = settings.receivers[index]
        error = attempt(receiver, message)
        problems[receiver.name] = "" if error is None else error.reason

    threads = [
        threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(settings.receivers))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ROUND_SECONDS)
    late = f"not done within {ROUND_SECONDS:g} s"
    return [Tried(receiver.name, problems.get(receiver.name, late)) for receiver in settings.receivers]
