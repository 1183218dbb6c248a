"""The HTTP side of the listener: takes deliveries, and shows health and counts.

Uvicorn reads requests without a thread for each, so that a slow client costs a socket and no more. What it
does not limit by itself is limited here: how many connections there are, and how long one may last in all.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from promotion_gate.core.errors import UsageError
from promotion_gate.listening.counts import Counts
from promotion_gate.listening.deliveries import (
    MAX_BODY,
    AliasSet,
    Doorkeeper,
    OtherEvent,
    Refusal,
    Refused,
    VersionCreated,
    read_notice,
)
from promotion_gate.listening.gating import Log

MAX_CONNECTIONS = 64
CONNECTION_SECONDS = 15.0
SILENT_SECONDS = 60.0
"""A refusal of the same kind is counted, but not said again for so long."""
MAX_HEADER_BYTES = 16_384
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Recipients:
    """Where genuine deliveries go.

    ``gate`` answers as :meth:`~promotion_gate.listening.gating.Gatekeeper.offer` does; ``alive`` says whether
    the threads behind it live.
    """

    gate: Callable[[VersionCreated], str]
    look: Callable[[AliasSet], None]
    knows: Callable[[str], bool]
    alive: Callable[[], bool]


def application(recipients: Recipients, doorkeeper: Doorkeeper, counts: Counts, log: Log) -> Starlette:
    """The ASGI application: ``POST /`` takes deliveries, ``GET /healthz`` and ``GET /metrics`` tell."""
    said: dict[Refusal, float] = {}

    def now_and_then(refusal: Refusal, line: str) -> None:
        """Anybody can be refused as often as they like; that must not fill the disk with lines."""
        clock = time.monotonic()
        if clock >= said.get(refusal, clock):
            said[refusal] = clock + SILENT_SECONDS
            log(line)

    async def deliver(request: Request) -> Response:
        try:
            body = await _body(request)
            answer = _taken(body, request, recipients, doorkeeper)
        except Refused as refused:
            counts.refused.labels(refused.refusal).inc()
            now_and_then(refused.refusal, f"refused: {refused.refusal.replace('_', ' ')}: {refused}")
            return _answer(f"refused: {refused}", refused.refusal.status)
        except ClientDisconnect:
            counts.refused.labels(Refusal.MALFORMED).inc()
            return _answer("refused: the body is not whole", 400)
        counts.deliveries.labels(answer).inc()
        return _answer(answer, 202 if answer == "accepted" else 200)

    async def health(request: Request) -> Response:
        alive = recipients.alive()
        told = {"status": "ok" if alive else "dead", "counts": counts.totals()}
        return Response(
            json.dumps(told, indent=2) + "\n",
            200 if alive else 503,
            {"Connection": "close"},
            "application/json",
        )

    async def metrics(request: Request) -> Response:
        return Response(counts.text(), headers={"Connection": "close"}, media_type=METRICS_TYPE)

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = Refusal.METHOD if error.status_code == 405 else Refusal.NOT_FOUND
        counts.refused.labels(refusal).inc()
        return _answer("refused: POST / takes deliveries; GET /healthz and /metrics tell", refusal.status)

    async def crashed(request: Request, error: Exception) -> Response:
        log(f"a request could not be answered: {type(error).__name__}: {error}")
        return _answer("the gate could not answer", 500)

    routes = [
        Route("/", deliver, methods=["POST"]),
        Route("/healthz", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: elsewhere, Exception: crashed})


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(Refusal.CONTENT_TYPE, "a delivery is application/json")
    too_large = Refused(Refusal.TOO_LARGE, f"the body is larger than {MAX_BODY:,} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 18 or int(declared) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


def _taken(body: bytes, request: Request, recipients: Recipients, doorkeeper: Doorkeeper) -> str:
    """Nothing in here waits, so that of two equal deliveries one is the first."""
    clock = time.time()
    delivery = doorkeeper.check(request.headers, body, clock)
    notice = read_notice(body)
    if isinstance(notice, OtherEvent):
        answer = "ignored"
    elif not recipients.knows(notice.ref.name):
        raise Refused(Refusal.UNKNOWN_MODEL, f"no model {notice.ref.name!r} is listened for")
    elif isinstance(notice, AliasSet):
        recipients.look(notice)
        answer = "accepted"
    else:
        answer = recipients.gate(notice)
        if answer == "full":
            raise Refused(Refusal.QUEUE_FULL, "too many versions wait")
    doorkeeper.take(delivery, clock)
    return answer


def _answer(text: str, status: int) -> Response:
    return PlainTextResponse(f"{text}\n", status, {"Connection": "close"})


def _protocol(counts: Counts, max_connections: int, seconds: float) -> type[H11Protocol]:
    class Limited(H11Protocol):
        """One connection, which lasts so long and no longer, however it spends the time."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            over = len(self.connections) >= max_connections
            super().connection_made(transport)
            if over:
                self._close("too_many")
            else:
                self._deadline = self.loop.call_later(seconds, self._close, "too_slow")

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            counts.refused.labels(Refusal.MALFORMED).inc()
            super().send_400_response(msg)

        def _close(self, reason: str) -> None:
            counts.connections.labels(reason).inc()
            self.transport.abort()

    return Limited


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises
    ------
    UsageError: the port is taken, or the address is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else error
        raise UsageError(f"cannot listen on {host}:{port}: {why}", "name another --host or --port") from None


def server(
    app: Any,
    counts: Counts,
    *,
    max_connections: int = MAX_CONNECTIONS,
    seconds: float = CONNECTION_SECONDS,
) -> uvicorn.Server:
    """A server whose ``run([socket])`` answers requests until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        http=_protocol(counts, max_connections, seconds),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
