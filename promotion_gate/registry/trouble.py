"""What an error from MLflow's client means, and how it is told in one line.

MLflow wraps what happened to a request in exceptions of its own; the cause stands in their chain. Text is
looked at only where MLflow leaves nothing else.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from promotion_gate.core.errors import GateError, NoAnswer, NotInRegistry, RegistryError
from promotion_gate.registry.patience import AttemptTimedOut, Trouble

_PUT_OFF = 429
_PASSING_CODES = {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "DEADLINE_EXCEEDED", "ABORTED"}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_UNHEARD = {"NewConnectionError", "ConnectTimeoutError", "ConnectTimeout", "NameResolutionError"}
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


class WrongAnswer(Exception):
    """The server answered, but not with what was asked for."""


class Unreached(RegistryError):
    """Nobody listens at the server's address."""


class Denied(RegistryError):
    """The server says that this user may not."""


def kind_of(error: Exception) -> Trouble:
    """Whether an attempt that failed so was refused, was not heard, or left its effect unknown."""
    if isinstance(error, Unreached):
        return Trouble.UNHEARD
    if isinstance(error, WrongAnswer | AttemptTimedOut):
        return Trouble.UNKNOWN
    if isinstance(error, GateError):
        return Trouble.REFUSED
    status = http_status(error)
    if status is not None:
        if status == _PUT_OFF:
            return Trouble.UNHEARD
        return Trouble.UNKNOWN if status >= 500 or status == 408 else Trouble.REFUSED
    if disk_trouble(error) is not None:
        return Trouble.REFUSED
    names = {type(link).__name__ for link in _chain(error)}
    if names & _UNHEARD:
        return Trouble.UNHEARD
    code = getattr(error, "error_code", None)
    if code is None:
        # requests' and urllib3's own errors, a cut connection, or an answer that is no MLflow's.
        return Trouble.REFUSED if isinstance(error, ImportError) else Trouble.UNKNOWN
    if code == "REQUEST_LIMIT_EXCEEDED":
        return Trouble.UNHEARD
    return Trouble.UNKNOWN if code in _PASSING_CODES else Trouble.REFUSED


def http_status(error: Exception) -> int | None:
    """The HTTP status that an error is about, if it is about one."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        status = getattr(response, "status_code", None)
        if status is None and isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
        if type(link).__name__ == "ResponseError" and (found := re.search(r"\b([45]\d\d)\b", str(link))):
            return int(found[1])
    return None


def is_missing_file(error: Exception) -> bool:
    """Whether an artifact repository says that there is no such file."""
    return (
        http_status(error) == 404
        or isinstance(error, FileNotFoundError)
        or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
    )


def disk_trouble(error: Exception) -> OSError | None:
    """The error of this machine's own disk behind ``error``, if that is what it is."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _DISK:
            return link
    return None


def explained(error: Exception, about: str, host: str) -> RegistryError:
    """The one line for a definite no."""
    code = getattr(error, "error_code", "")
    text = one_line(str(error))
    if code == "RESOURCE_DOES_NOT_EXIST" or re.search(r"Registered model alias \S+ not found", text):
        return NotInRegistry(f"no such thing at {host}: {about}", "check name, number and server")
    if (local := disk_trouble(error)) is not None:
        where = f" in {one_line(str(local.filename))}" if local.filename else ""
        return RegistryError(
            f"{about} of {host} cannot be kept{where} on this machine: {local.strerror}",
            "free space, or name a larger folder with TMPDIR",
        )
    if code in _DENIED or http_status(error) in (401, 403):
        return Denied(f"{host} denies access to {about}", "check your MLflow credentials and rights")
    return RegistryError(f"{host} refused {about}: {type(error).__name__}: {text[:300]}")


def unanswered(error: Exception, about: str, host: str, attempts: int, *, unknown: bool) -> RegistryError:
    """The one line for a call that was given up."""
    tried = "" if attempts == 1 else f" ({attempts} attempts)"
    if isinstance(error, Unreached):
        return Unreached(error.what, error.remedy)
    if isinstance(error, WrongAnswer):
        what = f"{host} gave a wrong answer when asked for {about}: {one_line(str(error))[:200]}{tried}"
        return NoAnswer(what, "check that it is an MLflow server, and what stands between")
    status = http_status(error)
    why = _why(error) if status is None else f"HTTP {status}"
    what = f"no answer from {host} when asked for {about}: {why}{tried}"
    return (NoAnswer if unknown else RegistryError)(what, "check that the server is up")


def one_line(text: str) -> str:
    """Text from outside, in one printable line, without credentials in its URLs."""
    without_credentials = re.sub(r"//[^/@\s]*@", "//", text)
    return " ".join("".join(c if c.isprintable() else " " for c in without_credentials).split())


def _why(error: Exception) -> str:
    if isinstance(error, AttemptTimedOut):
        return str(error)
    names = [type(link).__name__ for link in _chain(error)]
    for name, words in (
        ("ReadTimeoutError", "time-out"),
        ("ReadTimeout", "time-out"),
        ("ConnectTimeoutError", "time-out"),
        ("ConnectionRefusedError", "connection refused"),
        ("NewConnectionError", "connection refused"),
        ("ConnectionResetError", "connection reset"),
        ("RemoteDisconnected", "connection closed"),
        ("IncompleteRead", "the answer broke off"),
        ("ProtocolError", "connection broken"),
        ("JSONDecodeError", "not MLflow's JSON"),
    ):
        if name in names:
            return words
    text = one_line(str(error))
    if "valid JSON" in text:
        return "not MLflow's JSON"
    return f"{type(error).__name__}: {text[:200]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies behind it, each once."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo and len(seen) < 30:
        link = todo.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
