"""The listener as a whole: what ``promotion-gate listen`` runs."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from promotion_gate.core.policy import load_policy
from promotion_gate.listening.counts import Counts
from promotion_gate.listening.deliveries import AliasSet, Doorkeeper
from promotion_gate.listening.gating import Gate, Gatekeeper
from promotion_gate.listening.pending import Ledger
from promotion_gate.listening.server import Recipients, application, bind, server
from promotion_gate.listening.watching import Watcher
from promotion_gate.monitor.interface import Alarm
from promotion_gate.operators import plain
from promotion_gate.registry.interface import Registry

END_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to listen. ``models`` empty means every registered model; times are in seconds."""

    policy: Path
    secrets: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 0
    models: Sequence[str] = ()
    poll: float = 300.0
    max_age: float = 300.0
    room: int = 100


def log_line(line: str) -> None:
    """One line on standard error with the time, in UTC."""
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {plain(line, 500)}\n")
    sys.stderr.flush()


def listen(
    registry: Registry,
    gate: Gate,
    settings: Settings,
    alarm: Callable[[Alarm], None] = lambda _: None,
    standing: Sequence[Alarm] = (),
) -> None:
    """Gate every version that is created, until SIGTERM or SIGINT; then the running gate is ended too.

    ``alarm`` is told what begins and ends; ``standing`` are the alarms that it was told before, and not the
    end of.

    Raises
    ------
    PolicyError: the policy cannot be used.
    UsageError: the port cannot be listened on.
    """
    load_policy(settings.policy)
    sock = bind(settings.host, settings.port)
    counts = Counts()
    ledger = Ledger(registry)
    gatekeeper = Gatekeeper(
        registry,
        ledger,
        settings.policy,
        gate,
        counts,
        log_line,
        room=settings.room,
        pause=settings.poll,
    )

    def told(event: Alarm) -> None:
        log_line(f"{'ALARM' if event.state == 'firing' else 'resolved'}: {event.message}")
        try:
            alarm(event)
        except Exception as error:  # what nobody could be told of is still told to history
            log_line(f"the alarm could not be passed on: {error}")

    watcher = Watcher(
        registry,
        ledger,
        gatekeeper,
        settings.policy,
        counts,
        log_line,
        told,
        models=settings.models,
        poll=settings.poll,
        standing=standing,
    )

    def look(notice: AliasSet) -> None:
        watcher.look_at(notice.ref.name)

    recipients = Recipients(
        gate=lambda notice: gatekeeper.offer(notice.ref),
        look=look,
        knows=lambda name: not settings.models or name in settings.models,
        alive=lambda: gatekeeper.is_alive() and watcher.is_alive(),
    )
    app = application(recipients, Doorkeeper(settings.secrets, settings.max_age), counts, log_line)
    # Uvicorn raises the signal that ended it once more, to let others know; here nobody else needs to.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    gatekeeper.start()
    watcher.start()
    log_line(f"listening on {_address(sock)} for {', '.join(settings.models) or 'every registered model'}")
    try:
        server(app, counts).run([sock])
    finally:
        watcher.end()
        gatekeeper.end()
        gatekeeper.join(END_SECONDS)
        sock.close()
    log_line("ended")


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
