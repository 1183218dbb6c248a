"""Whether the code that serves has followed a rollback: polls a health endpoint that reports its version.

The endpoint answers 200 with a JSON object that has a ``version``, or with the bare number as text. What it
sends is read up to a limit and believed for nothing but this: nothing is moved by it.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from promotion_gate import __version__
from promotion_gate.core.errors import ServingError, UsageError
from promotion_gate.core.types import ModelRef

MAX_BODY_BYTES = 65_536
POLL_SECONDS = 0.5
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL that can be polled, and how it may be shown: without its query, which may hold a token."""

    url: str
    shown: str


def endpoint(url: str) -> Endpoint:
    """Check a URL before anything is moved.

    Raises
    ------
    UsageError: it is not http or https, names no host, or holds credentials or characters that no URL has.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"not a URL to wait for: {error}") from None
    if not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"not a URL to wait for: {url[:80]!r}", "escape what is not plain ASCII")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UsageError(f"not a URL to wait for: {url[:80]!r}", "write http://… or https://…")
    if "@" in parts.netloc:
        raise UsageError("the URL to wait for holds credentials", "name an endpoint that needs none")
    return Endpoint(url, f"{parts.scheme}://{parts.netloc}{parts.path}"[:200])


def wait_until_served(place: Endpoint, ref: ModelRef, alias: str, seconds: float) -> float:
    """Poll until the endpoint reports the version; the seconds that it took.

    Redirects are not followed. An answer that takes more than 5 seconds, has more than 64 KiB or says nothing
    of a version counts as none.

    Raises
    ------
    ServingError: it did not within ``seconds``.
    """
    start = time.monotonic()
    while True:
        left = start + seconds - time.monotonic()
        said = _asked(place.url, max(0.1, min(ANSWER_SECONDS, left)))
        waited = time.monotonic() - start
        if said == ref.version:
            return waited
        if waited + POLL_SECONDS > seconds:
            last = f"version {said}" if isinstance(said, int) else said
            raise ServingError(
                f"alias {alias!r} of {ref.name!r} IS moved to version {ref.version}, but after {waited:.0f} s"
                f" {place.shown} said last: {last}",
                "look at the serving job",
            )
        time.sleep(POLL_SECONDS)


def _asked(url: str, seconds: float) -> int | str:
    """The version that the endpoint reports, or what is wrong with its answer.

    In a thread of its own: a server that sends a byte now and then would keep a socket from timing out.
    """
    answers: list[int | str] = []
    thread = threading.Thread(target=lambda: answers.append(_answer(url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"nothing within {seconds:.0f} s"


def _answer(url: str, seconds: float) -> int | str:
    opener = OpenerDirector()
    for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPErrorProcessor, HTTPDefaultErrorHandler):
        opener.add_handler(handler())
    request = Request(url, headers={"User-Agent": f"promotion-gate/{__version__}"})  # noqa: S310 - http(s) alone
    try:
        with opener.open(request, timeout=seconds) as answer:
            status, body = answer.status, answer.read(MAX_BODY_BYTES + 1)
    except HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except URLError as error:
        return f"no answer: {error.reason}"
    except Exception as error:  # http.client's, ssl's and the socket's own
        return f"no answer: {type(error).__name__}"
    if status != 200:
        return f"HTTP {status}"
    return reported_version(body)


def reported_version(body: bytes) -> int | str:
    """The version in an answer, or what is wrong with the answer."""
    if len(body) > MAX_BODY_BYTES:
        return f"more than {MAX_BODY_BYTES:,} bytes"
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return "no version"
    if isinstance(said, dict):
        said = said.get("version")
    if isinstance(said, str) and said.isascii() and said.isdigit() and len(said) <= 18:
        said = int(said)
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else "no version"
