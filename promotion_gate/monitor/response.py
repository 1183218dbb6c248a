"""What follows a look at the predictions: people are told, a rollback is made, metrics are written.

No step keeps another from being taken, and none ends the monitor: what fails is said and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from promotion_gate.core.errors import GateError
from promotion_gate.core.production import Production
from promotion_gate.core.record import now
from promotion_gate.monitor.alerts import WATCHED, Alerts
from promotion_gate.monitor.automatic import FRESH, AutomaticRollback
from promotion_gate.monitor.interface import WindowOutcome
from promotion_gate.monitor.metrics import Board, Deliveries, write_metrics
from promotion_gate.monitor.standing import write_standing
from promotion_gate.registry.interface import Registry
from promotion_gate.status import status
from promotion_gate.vouching import DEFAULT_PRODUCTION, look


class Response:
    """A hook for the monitor: call it with every outcome, within ``with``.

    Parameters
    ----------
    alerts, board, automatic, metrics_file: what is not wanted is None.
    tagged: whether the registered model's tag says how things stand.
    complain: takes one line for the person at the terminal.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        *,
        alerts: Alerts,
        board: Board | None = None,
        automatic: AutomaticRollback | None = None,
        metrics_file: Path | None = None,
        tagged: bool = True,
        production: Production = DEFAULT_PRODUCTION,
        complain: Callable[[str], None],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._registry = registry
        self._name = name
        self._alerts = alerts
        self._board = board
        self._automatic = automatic
        self._metrics_file = metrics_file
        self._tagged = tagged
        self._production = production
        self._complain = complain
        self._clock = clock
        self._belated: WindowOutcome | None = None
        self._closing = False
        self._failed = 0
        self._known: list[str] | None = None

    def __call__(self, outcome: WindowOutcome) -> None:
        over = [alarm for alarm in outcome.alarms if alarm.state == "resolved"]
        told = [*over, *outcome.firing]
        self._step("noting alarms", lambda: self._alerts.take(told, everything=WATCHED, model=self._name))
        old, fresh = self._age(outcome)
        if old > fresh and not self._closing:
            # Belated reading: only what still stands when the present is reached is worth waking anybody.
            self._belated = outcome
            if self._board is not None:
                self._board.look(outcome)
            return
        self._belated = None
        # Nobody waits for a slow registry to be told of the alarm, nor the rollback for a slow receiver.
        with ThreadPoolExecutor(1) as pool:
            telling = pool.submit(self._step, "telling people", self._alerts.deliver)
            if self._automatic is not None:
                answer = self._automatic.answer
                self._step("the automatic rollback", lambda: answer(outcome.firing, old, fresh))
            telling.result()
        if self._automatic is not None:
            self._step("telling people", self._alerts.deliver)
        if self._tagged:
            self._step("tagging the model", lambda: self._tag(outcome))
        if self._board is not None:
            board = self._board
            self._step("the metrics", lambda: self._show(board, outcome))

    def failed(self) -> None:
        """Count a look that failed, in the metrics too."""
        self._failed += 1
        if self._board is not None:
            self._board.looks_failed = self._failed
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.failed()
        self.close()

    def close(self) -> None:
        """Send what is still due, once; it waits for another process on the same outbox."""
        self._closing = True
        if self._belated is not None:
            self(self._belated)
        self._alerts.close()
        self._step("telling people", lambda: self._alerts.deliver(patience=30.0))
        if self._board is not None:
            board = self._board
            self._step("the metrics", lambda: self._show(board, None))

    def _age(self, outcome: WindowOutcome) -> tuple[timedelta, timedelta]:
        """How old the window's newest predictions are at most, and how old they may be."""
        until = min(outcome.end, outcome.at)
        return self._clock() - until, max(FRESH, 2 * (outcome.end - outcome.start))

    def _tag(self, outcome: WindowOutcome) -> None:
        standing = [alarm for alarm in self._alerts.outbox.firing() if alarm.model == self._name]
        write_standing(self._registry, self._name, standing, outcome.at)

    def _show(self, board: Board, outcome: WindowOutcome | None) -> None:
        if outcome is not None:
            board.look(outcome)
        board.firing = Counter(alarm.kind for alarm in self._alerts.outbox.firing())
        waiting = self._alerts.waiting()
        board.deliveries = {
            name: Deliveries(fare.delivered, fare.failed, waiting.get(name, 0))
            for name, fare in self._alerts.fares().items()
        }
        if outcome is not None:
            self._step("the history", lambda: self._ask_registry(board))
        self._write()

    def _ask_registry(self, board: Board) -> None:
        facts, events = look(self._registry, self._name)
        board.production = facts.aliases.get(self._production.alias)
        known = [event.event_id for event in events if event.state == "done"]
        if known == self._known:
            return
        done = [event for event in events if event.state == "done" and event.pointer.action == "rollback"]
        board.rollbacks = len(done)
        if self._automatic is not None:
            board.automatic_rollbacks = len(self._automatic.automatic(done))
        if any(event.pointer.action == "restored" for event in events):
            board.time_to_recovery = status(self._registry, self._name, self._production).mttr
        self._known = known

    def _write(self) -> None:
        if self._board is not None and self._metrics_file is not None:
            write_metrics(self._board, self._metrics_file)

    def _step(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except GateError as error:
            self._trouble(f"{what}: {error}")
        except Exception as error:  # the next look must come; what an error says may hold a secret
            self._trouble(f"{what} failed: {type(error).__name__}")

    def _trouble(self, line: str) -> None:
        self._failed += 1
        if self._board is not None:
            self._board.looks_failed = self._failed
        self._complain(line)
