"""One POST of JSON: bounded, without redirects, and with errors that show no secret."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from promotion_gate import __version__
from promotion_gate.monitor.confidential import Secret, host_in, redacted
from promotion_gate.monitor.sinks.interface import DeliveryError
from promotion_gate.operators import plain

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
MAX_ANSWER_BYTES = 4096
MAX_WAIT = 3600.0


def post(
    url: Secret, content: bytes, secrets: Sequence[Secret], headers: Mapping[str, str] | None = None
) -> None:
    """Send ``content``, JSON, to an http(s) URL; returns when it was taken with a 2xx.

    Raises
    ------
    DeliveryError: it was not; ``refused`` for an answer that another try would get again.
    """
    import requests

    address = url.reveal()
    host = host_in(address)
    sent = {"Content-Type": "application/json", "User-Agent": f"promotion-gate/{__version__}"}
    try:
        with requests.Session() as session:
            session.auth = _nobody
            with session.post(
                address,
                data=content,
                headers={**sent, **(headers or {})},
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                allow_redirects=False,
                stream=True,
            ) as response:
                status = response.status_code
                wait = _seconds(response.headers.get("Retry-After", ""))
                said = "" if status < 400 else _beginning(response)
    except requests.exceptions.RequestException as error:
        raise DeliveryError(f"{host}: {_why(error)}") from None
    if 200 <= status < 300:
        return
    if status < 400:
        raise DeliveryError(f"{host} answered {status}: redirects are not followed", refused=True)
    told = f": {plain(redacted(said, secrets), 200)}" if said.strip() else ""
    is_trouble = status in (408, 425, 429) or status >= 500
    raise DeliveryError(f"{host} answered {status}{told}", refused=not is_trouble, wait=wait)


def as_json(document: Mapping[str, Any]) -> bytes:
    """Strict JSON in ASCII, so that no receiver meets a character it takes for a line's end."""
    return json.dumps(document, allow_nan=False).encode()


def _nobody(request: Any) -> Any:
    """Requests would else send the password that ``.netrc`` holds for the host."""
    return request


def _beginning(response: Any) -> str:
    try:
        return bytes(response.raw.read(MAX_ANSWER_BYTES, decode_content=False)).decode("utf-8", "replace")
    except Exception:  # whatever the transport raises: the status has been read
        return ""


def _seconds(text: str) -> float:
    return min(float(text), MAX_WAIT) if text.isascii() and text.isdigit() else 0.0


def _why(error: Exception) -> str:
    """The kind of trouble; the exceptions' own texts hold the whole URL."""
    from requests import exceptions

    kinds = (
        (exceptions.ProxyError, "the proxy cannot be reached"),
        (exceptions.SSLError, "its TLS certificate is not accepted"),
        (exceptions.ConnectTimeout, f"no connection within {CONNECT_SECONDS:g} s"),
        (exceptions.ReadTimeout, f"no answer within {READ_SECONDS:g} s"),
        (exceptions.ConnectionError, "cannot be reached"),
        (exceptions.InvalidURL, "the URL cannot be used"),
    )
    return next((said for kind, said in kinds if isinstance(error, kind)), type(error).__name__)
