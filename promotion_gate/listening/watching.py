"""Looking at the registry without being told: versions that no delivery came for, and foreign moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promotion_gate.core.errors import GateError, NotInRegistry
from promotion_gate.core.policy import Policy, load_policy
from promotion_gate.core.record import now
from promotion_gate.foreign import SETTLE, Position, difference, foreign_line, look_for, note_foreign_moves
from promotion_gate.journal import LEASE
from promotion_gate.listening.counts import Counts
from promotion_gate.listening.gating import Gatekeeper, Log
from promotion_gate.listening.pending import Ledger
from promotion_gate.monitor.interface import Alarm
from promotion_gate.registry.interface import Event, Registry
from promotion_gate.vouching import done_moves, look

SECOND_LOOK_SECONDS = 20.0
"""A move of the gate's own is not finished when its delivery comes: look again after this."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where production was found when the alarm was raised; None where an earlier process raised it."""

    found: Position | None
    alarm: Alarm


class Watcher(threading.Thread):
    """Polls the registry, and looks at a model at once when it is told that its alias was set.

    Parameters
    ----------
    models: the names to watch; empty for every registered model.
    poll: seconds between two looks at everything.
    alarm: called with each alarm that begins or ends.
    standing: the alarms that an earlier process raised and nobody has ended.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        gatekeeper: Gatekeeper,
        policy: Path,
        counts: Counts,
        log: Log,
        alarm: Callable[[Alarm], None],
        *,
        models: Sequence[str],
        poll: float,
        standing: Sequence[Alarm] = (),
    ) -> None:
        super().__init__(name="watcher", daemon=True)
        self._registry = registry
        self._ledger = ledger
        self._gatekeeper = gatekeeper
        self._policy = policy
        self._counts = counts
        self._log = log
        self._alarm = alarm
        self._models = tuple(models)
        self._poll = poll
        self._due: dict[str, float] = {}
        self._foreign = {each.model: _Seen(None, each) for each in standing if each.kind == "foreign-move"}
        self._moving_since: dict[str, float] = {}
        self._change = threading.Condition()
        self._ended = False

    def look_at(self, name: str, after: float = 0.0) -> None:
        """Look at a model's alias, in ``after`` seconds."""
        with self._change:
            at = time.monotonic() + after
            self._due[name] = min(at, self._due.get(name, at))
            self._change.notify()

    def end(self) -> None:
        with self._change:
            self._ended = True
            self._change.notify()

    def run(self) -> None:
        next_poll = time.monotonic()
        while True:
            with self._change:
                due = min([next_poll, *self._due.values()])
                while not self._ended and (left := due - time.monotonic()) > 0:
                    self._change.wait(left)
                    due = min([next_poll, *self._due.values()])
                if self._ended:
                    return
                clock = time.monotonic()
                names = [name for name, at in self._due.items() if at <= clock]
                for name in names:
                    del self._due[name]
            for name in names:
                self._guarded(lambda name=name: self.find_foreign_move(name, load_policy(self._policy)))  # type: ignore[misc]
            if clock >= next_poll:
                answered = self._guarded(self.poll)
                self._counts.polls.labels("answered" if answered else "failed").inc()
                if answered:
                    self._counts.last_poll.set_to_current_time()
                next_poll = time.monotonic() + self._poll

    def poll(self) -> None:
        """Look at every model: its alias, and versions that are still to be gated.

        A model that cannot be looked at keeps no other from it.

        Raises
        ------
        GateError: the policy cannot be read, or the registry cannot be reached.
        """
        policy = load_policy(self._policy)
        room = True
        trouble: Exception | None = None
        for name in self._models or self._registry.registered_models():
            try:
                self.find_foreign_move(name, policy)
                pending = self._ledger.pending(name, policy) if room else []
            except NotInRegistry as error:
                self._log(str(error))
                continue
            except Exception as error:  # of its history, which others may write to, or of the registry
                trouble = trouble or error
                continue
            for ref in pending:
                room = room and self._gatekeeper.offer(ref) != "full"  # the next poll goes on
        if trouble is not None:
            raise trouble

    def find_foreign_move(self, name: str, policy: Policy) -> None:
        """Raise the alarm where production is not where the gate's history left it, or end it.

        History is told of it too, as a signed entry.
        """
        production = policy.production
        facts, events = look(self._registry, name)
        if self._is_moving(name, events):
            self.look_at(name, SECOND_LOOK_SECONDS)
            return
        found = facts.aliases.get(production.alias)
        # A gate that died after it had moved the alias left a record that proves it.
        events = [
            replace(event, state="done", supposed=True)
            if event.state == "begun"
            and event.pointer.moves
            and event.pointer.to_version == found
            and self._ledger.is_proven(event)
            else event
            for event in events
        ]
        seen = look_for(self._registry, name, found, events, production)
        forged = [e for e in done_moves(events, production.alias)[-1:] if not self._ledger.is_proven(e)]
        before = self._foreign.pop(name, None)
        if seen is None or (seen.settled and not forged):
            if before is not None:
                message = f"production of {name!r} is where the gate left it again"
                past = before.alarm.since
                self._alarm(Alarm("foreign-move", name, found, "", "resolved", message, past, now()))
            return
        if before is not None and before.found == seen.found:
            self._foreign[name] = before
            return
        line = foreign_line(name, difference(production.alias, seen.left, seen.found))
        if seen.settled:
            line = (
                f"the history of {name!r} says that the gate moved {production.alias!r} to version {found},"
                f" and no record in run {forged[0].event_id} that a trusted key has signed proves it"
            )
        alarm = Alarm("foreign-move", name, found, "", "firing", f"{line}; {SETTLE}", now(), now())
        self._foreign[name] = _Seen(seen.found, alarm)
        self._counts.foreign_moves.inc()
        self._alarm(alarm)
        note_foreign_moves(self._registry, name, production)

    def _is_moving(self, name: str, events: Sequence[Event]) -> bool:
        """Whether a move that was begun may still end; one that does not hides nothing for long."""
        if not any(event.state == "begun" and event.pointer.moves for event in events):
            self._moving_since.pop(name, None)
            return False
        clock = time.monotonic()
        return clock < self._moving_since.setdefault(name, clock) + LEASE.total_seconds()

    def _guarded(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except GateError as error:
            self._log(f"cannot look at the registry: {error}")
            return False
        except Exception as error:  # the watch goes on whatever one look ran into
            self._log(f"cannot look at the registry: {type(error).__name__}: {error}")
            return False
        return True
