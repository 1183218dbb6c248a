"""Sending what waits in the outbox: every receiver in a thread of its own, so that none holds up another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from promotion_gate.core.record import now
from promotion_gate.monitor.outbox import Outbox, Pending, pause_after
from promotion_gate.monitor.settings import Receiver
from promotion_gate.monitor.sinks.interface import DeliveryError

AT_ONCE = 20
"""Messages to one receiver in one round; in a storm the strongest alarms come first and the rest later."""

PAUSES = (1.0, 3.0)
"""Seconds before a receiver in trouble is tried again within a round."""

ROUND_SECONDS = 20.0
"""How long a round is waited for. A receiver that takes longer goes on alone and counts as failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A message that a receiver did not take, or that it took too long over."""

    receiver: str
    reason: str


@dataclass
class _Round:
    delivered: list[tuple[str, Pending]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Courier:
    """Delivers from one outbox.

    Parameters
    ----------
    pauses: see :data:`PAUSES`.
    seconds: see :data:`ROUND_SECONDS`.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        pauses: Sequence[float] = PAUSES,
        seconds: float = ROUND_SECONDS,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._outbox = outbox
        self._pauses = pauses
        self._seconds = seconds
        self._clock = clock
        self._running: dict[str, threading.Thread] = {}
        self._refused: dict[tuple[str, str], tuple[int, datetime]] = {}
        """How often a receiver refused a message, and from when on it is sent to it again."""

    def deliver(self, patience: float = 0.0) -> list[Failure]:
        """Send what is due; says what failed.

        Another process that is sending from the same outbox is waited for ``patience`` seconds; after that it
        is left to it.
        """
        with self._outbox.sending(patience) as is_ours:
            if not is_ours:
                return []
            due = self._rested(self._outbox.pending(self._clock()))
            waiting = {name: found[:AT_ONCE] for name, found in due.items() if not self._is_busy(name)}
            if waiting:
                self._outbox.trying(waiting)
            progress = _Round()
            for receiver in self._outbox.receivers:
                if receiver.name in waiting:
                    self._start(receiver, waiting[receiver.name], progress)
            return self._awaited(progress)

    def _rested(self, due: Mapping[str, Sequence[Pending]]) -> dict[str, list[Pending]]:
        """Without the messages that were refused a moment ago: only these wait, not the others."""
        at = self._clock()
        pending = {(name, one.notification.id) for name, found in due.items() for one in found}
        for key in [key for key in self._refused if key[0] in due and key not in pending]:
            del self._refused[key]
        resting = {key for key, (_, until) in self._refused.items() if at < until}
        kept = {
            name: [one for one in found if (name, one.notification.id) not in resting]
            for name, found in due.items()
        }
        return {name: found for name, found in kept.items() if found}

    def _is_busy(self, name: str) -> bool:
        thread = self._running.get(name)
        return thread is not None and thread.is_alive()

    def _start(self, receiver: Receiver, messages: Sequence[Pending], progress: _Round) -> None:
        thread = threading.Thread(
            target=self._serve, args=(receiver, messages, progress), name=f"to {receiver.name}", daemon=True
        )
        self._running[receiver.name] = thread
        thread.start()

    def _awaited(self, progress: _Round) -> list[Failure]:
        until = time.monotonic() + self._seconds
        for name, thread in list(self._running.items()):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                reason = f"not done within {self._seconds:g} s"
                self._outbox.failed(name, reason, self._clock(), wait=0.0, leave_alone=False)
                progress.failures.append(Failure(name, reason))
            else:
                del self._running[name]
        return list(progress.failures)

    def _serve(self, receiver: Receiver, messages: Sequence[Pending], progress: _Round) -> None:
        pauses = iter(self._pauses)
        queue = list(messages)
        while queue:
            error = attempt(receiver, queue[0])
            if error is None:
                self._outbox.delivered(receiver.name, queue.pop(0), self._clock())
                continue
            pause = None if error.refused or error.wait else next(pauses, None)
            if pause is not None:
                time.sleep(pause)
                continue
            # One message that is never taken must not keep the others back.
            self._outbox.failed(
                receiver.name, error.reason, self._clock(), wait=error.wait, leave_alone=not error.refused
            )
            progress.failures.append(Failure(receiver.name, error.reason))
            if not error.refused:
                return
            key = receiver.name, queue.pop(0).notification.id
            count = self._refused.get(key, (0, None))[0]
            self._refused[key] = count + 1, self._clock() + pause_after(count)


def attempt(receiver: Receiver, message: Pending) -> DeliveryError | None:
    """Send one message once; None when it was taken. Whatever goes wrong shows no secret."""
    try:
        receiver.sink.send(message.notification)
    except DeliveryError as error:
        return error
    except Exception as error:  # a sink must not end the monitor, and its text may hold anything
        return DeliveryError(f"sending failed: {type(error).__name__}")
    return None
