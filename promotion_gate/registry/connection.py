"""MLflow's client, made on first use, and asked with patience.

MLflow repeats every failed request by itself, also one whose repeat does harm: a run is created twice, the
next holder's lock is deleted. So its own repeats are switched off while the gate asks, and
:class:`~promotion_gate.registry.patience.Patience` repeats what may be repeated. The user's
``MLFLOW_HTTP_REQUEST_TIMEOUT`` and ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` keep their meaning, for each call.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from promotion_gate.core.errors import GateError, UsageError
from promotion_gate.registry.naming import host_of
from promotion_gate.registry.patience import (
    CALL_SECONDS,
    PATIENCE_SECONDS,
    GaveUp,
    Patience,
)
from promotion_gate.registry.trouble import Unreached, explained, kind_of, unanswered

CONNECT_SECONDS = 5.0
IMPORT_SECONDS = 300.0
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"

_ENVIRONMENT = {
    _TIMEOUT: str(int(CALL_SECONDS)),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set before MLflow is imported, unless the user set them."""

T = TypeVar("T")


class Connection:
    """A tracking server and a registry, through MLflow's client.

    Parameters
    ----------
    tracking_uri, registry_uri: as MLflow takes them; None for MLflow's own default.
    patience: how long to wait, and how often to ask.
    """

    def __init__(
        self, tracking_uri: str | None, registry_uri: str | None, patience: Patience | None = None
    ) -> None:
        self._tracking_uri = tracking_uri
        self._registry_uri = registry_uri
        self.host = host_of(registry_uri) if registry_uri else "the local MLflow store"
        self.concurrent = (tracking_uri or "").startswith(("http://", "https://"))
        self.patience = patience or _patience()
        self._starting = threading.Lock()
        self._made: Any = None

    @property
    def client(self) -> Any:
        """MLflow's client. Whatever imports from MLflow asks for it first: two threads that import
        MLflow for the first time stumble over its circular imports.
        """
        with self._starting:
            if self._made is None:
                self._made = self._connect()
            return self._made

    def ask(
        self,
        about: str,
        call: Callable[[Any], T],
        *,
        seconds: float | None = None,
        within: float = PATIENCE_SECONDS,
        before_repeat: Callable[[Any], tuple[T] | None] | None = None,
    ) -> T:
        """What ``call`` makes of the client; asked again while there is trouble that may pass.

        Parameters
        ----------
        about: what is asked for, as it stands in an error's line.
        seconds, within, before_repeat: see :meth:`~promotion_gate.registry.patience.Patience.ask`.

        Raises
        ------
        NotInRegistry: there is no such thing.
        NoAnswer: whether the call took effect is not known.
        RegistryError: the server refuses it, or was not reached.
        """
        with_client = self._quietly(call)
        first_looks = None if before_repeat is None else self._quietly(before_repeat)
        try:
            if self._made is None:
                self.patience.ask(lambda: self.client, kind_of, seconds=IMPORT_SECONDS)
            return self.patience.ask(
                with_client, kind_of, seconds=seconds, within=within, before_repeat=first_looks
            )
        except GaveUp as given_up:
            raise unanswered(
                given_up.last, about, self.host, given_up.attempts, unknown=given_up.unknown
            ) from None
        except GateError:
            raise
        except Exception as error:
            raise explained(error, about, self.host) from None

    def _quietly(self, call: Callable[[Any], T]) -> Callable[[], T]:
        def attempt() -> T:
            client = self.client
            with _NO_REPEATS:
                return call(client)

        return attempt

    def _connect(self) -> Any:
        for uri in {self._tracking_uri, self._registry_uri} - {None}:
            _knock(str(uri))
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        with _without_collection():
            from mlflow.tracking import MlflowClient
        return MlflowClient(self._tracking_uri, self._registry_uri)


class _NoRepeats:
    """While anybody is inside, MLflow makes every request once."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._inside = 0
        self._before: str | None = None

    def __enter__(self) -> None:
        with self._mutex:
            if self._inside == 0:
                self._before = os.environ.get(_RETRIES)
                os.environ[_RETRIES] = "0"
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._mutex:
            self._inside -= 1
            if self._inside == 0:
                if self._before is None:
                    os.environ.pop(_RETRIES, None)
                else:
                    os.environ[_RETRIES] = self._before


_NO_REPEATS = _NoRepeats()


def _patience() -> Patience:
    seconds, repeats = _number(_TIMEOUT), _number(_RETRIES)
    return Patience(CALL_SECONDS if seconds is None else max(1.0, seconds), repeats)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 6:
        raise UsageError(f"{variable} is no whole number: {text[:40]!r}")
    return int(text)


def _knock(uri: str) -> None:
    """Find out within seconds whether anybody listens there; behind a proxy only the request can tell."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreached(
            f"cannot reach {host_of(uri)}: {reason}", "check that the server is up and the URI right"
        ) from None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Importing MLflow makes no garbage worth a fifth of its time to look for."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
