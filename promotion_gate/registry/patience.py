"""How long the gate waits for a registry, and what it asks a second time.

Three limits, each for another kind of trouble:

- every attempt ends after its seconds, also one that a server feeds a byte at a time;
- all attempts of one call share a time, within which a call that failed is made again after growing pauses;
- all trouble of the last minutes together has a budget. When it is spent, each call is made once and briefly,
  so that a command against a failing server ends, whatever it still has to ask.

Whether an attempt that failed took effect is the caller's question: see :class:`Trouble`.
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

T = TypeVar("T")

CALL_SECONDS = 30.0
"""One attempt at a small request."""

TRANSFER_SECONDS = 3600.0
"""One attempt at a file of a model, which may be large."""

PATIENCE_SECONDS = 60.0
"""All attempts of one call, and the budget for all trouble of the last :data:`MEMORY_SECONDS`."""

STRANGER_SECONDS = 4.0
"""The same for a server that has not answered yet: more likely its address is wrong."""

SPENT_SECONDS = 5.0
"""One attempt when the budget is spent. A small request that takes longer than this counts as trouble."""

MEMORY_SECONDS = 300.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 4.0


class Trouble(Enum):
    """What a failed attempt leaves behind.

    ``REFUSED``: an answer, and a no; asking again changes nothing. ``UNHEARD``: the server did not get it,
    or put it off. ``UNKNOWN``: it may have taken effect, may take effect yet, or nothing sensible came back.
    """

    REFUSED = "refused"
    UNHEARD = "unheard"
    UNKNOWN = "unknown"


class AttemptTimedOut(Exception):
    """An attempt took longer than its seconds; its thread is left behind."""


class GaveUp(Exception):
    """A call that was made until its time was over.

    ``last`` is what the last attempt failed with; ``unknown`` says whether any attempt may have taken effect.
    """

    def __init__(self, last: Exception, attempts: int, seconds: float, *, unknown: bool) -> None:
        super().__init__(str(last))
        self.last = last
        self.attempts = attempts
        self.seconds = seconds
        self.unknown = unknown


@dataclass
class Patience:
    """Makes calls within their time, again where they may be made again.

    Parameters
    ----------
    call_seconds: the limit of one attempt at a small request.
    repeats: how often one call is made again; None for as often as its time allows.
    """

    call_seconds: float = CALL_SECONDS
    repeats: int | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _trouble: deque[tuple[float, float]] = field(default_factory=deque)
    _answered: bool = False
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        call: Callable[[], T],
        kind: Callable[[Exception], Trouble],
        *,
        seconds: float | None = None,
        within: float = PATIENCE_SECONDS,
        before_repeat: Callable[[], tuple[T] | None] | None = None,
    ) -> T:
        """What ``call`` answers.

        Parameters
        ----------
        kind: what a failure means.
        seconds: the limit of one attempt; that of small requests unless given.
        within: the time of all attempts together.
        before_repeat: for a call that a repeat would do harm: asked after an attempt of unknown effect, and
            what it returns (in a tuple) is the answer; None says that the call took no effect.

        Raises
        ------
        GaveUp: the time is over.
        Exception: the server's own no, as ``kind`` tells it from trouble.
        """
        started = self.clock()
        limit = self.call_seconds if seconds is None else seconds
        attempts, unknown = 0, False
        while True:
            begun = self.clock()
            allowed = limit if self._left() > 0 else min(limit, SPENT_SECONDS)
            if seconds is None:
                allowed = min(allowed, max(within - (begun - started), 1.0))
            try:
                if unknown and before_repeat is not None:
                    found = within_seconds(before_repeat, allowed)
                    if found is not None:
                        return found[0]
                answer = within_seconds(call, allowed)
            except Exception as error:
                trouble = kind(error)
                if trouble is Trouble.REFUSED:
                    self._answered = True
                    raise
                attempts += 1
                unknown = unknown or trouble is Trouble.UNKNOWN
                self._count(begun, self.clock() - begun)
                pause = self._pause(attempts)
                over = self.clock() + pause - started > min(within, self._most()) or self._left() <= pause
                if over or (self.repeats is not None and attempts > self.repeats):
                    raise GaveUp(error, attempts, self.clock() - started, unknown=unknown) from error
                self._count(begun, pause)
                self.sleep(pause)
                continue
            self._answered = True
            if seconds is None:
                self._count(begun, self.clock() - begun - SPENT_SECONDS)
            return answer

    def _most(self) -> float:
        return PATIENCE_SECONDS if self._answered else STRANGER_SECONDS

    def _left(self) -> float:
        """What is left of the budget for trouble."""
        with self._mutex:
            while self._trouble and self._trouble[0][0] < self.clock() - MEMORY_SECONDS:
                self._trouble.popleft()
            return PATIENCE_SECONDS - sum(lost for _, lost in self._trouble)

    def _count(self, moment: float, lost: float) -> None:
        if lost > 0:
            with self._mutex:
                self._trouble.append((moment, lost))

    @staticmethod
    def _pause(attempts: int) -> float:
        longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts - 1, 10))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads clients, guards nothing


def within_seconds(call: Callable[[], T], seconds: float) -> T:
    """What ``call`` answers, if it does within ``seconds``.

    Raises
    ------
    AttemptTimedOut: it does not. It goes on in a thread that does not keep the process alive.
    """
    answers: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            answers.append(context.run(call))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="registry call")
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    if errors:
        raise errors[0]
    raise AttemptTimedOut(f"no whole answer within {seconds:.0f} s")
