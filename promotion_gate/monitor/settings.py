"""``alerts.toml``: who is told of alarms. Secrets are named there and never held."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.confidential import Secret, is_reference, secret
from promotion_gate.monitor.interface import AlarmKind
from promotion_gate.monitor.sinks.interface import Sink
from promotion_gate.monitor.sinks.pagerduty import EVENTS_URL
from promotion_gate.operators import plain

MAX_FILE_BYTES = 1_000_000
ALL_KINDS: tuple[AlarmKind, ...] = get_args(AlarmKind)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LONG_SEGMENT = 16
"""A part of a path this long that mixes letters and digits is taken for a token."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """One named sink and the kinds of alarms that it is told of."""

    name: str
    sink: Sink = field(repr=False)
    kinds: frozenset[str] = frozenset(ALL_KINDS)


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """Who is told. ``remind_after`` is None where nobody is told a second time of the same alarm."""

    receivers: Sequence[Receiver] = ()
    environment: str = ""
    remind_after: timedelta | None = None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Receiver(_Part):
    kinds: tuple[AlarmKind, ...] = Field(default=ALL_KINDS, min_length=1)


class _Webhook(_Receiver):
    kind: Literal["webhook"]
    url: str
    signing_secret: str | None = None
    token: str | None = None


class _Slack(_Receiver):
    kind: Literal["slack"]
    url: str


class _PagerDuty(_Receiver):
    kind: Literal["pagerduty"]
    routing_key: str
    url: str = EVENTS_URL


class _Apprise(_Receiver):
    kind: Literal["apprise"]
    url: str


_AnyReceiver = Annotated[_Webhook | _Slack | _PagerDuty | _Apprise, Field(discriminator="kind")]


class _File(_Part):
    environment: str = Field(default="", max_length=100)
    remind_after_hours: float | None = Field(default=None, gt=0, le=24 * 365)
    receivers: dict[str, _AnyReceiver] = Field(min_length=1, max_length=50)

    @field_validator("environment")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("it must be one line of text")
        return value

    @field_validator("receivers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if isinstance(value, dict) and not all(_NAME.fullmatch(str(name)) for name in value):
            raise ValueError("a receiver's name is up to 64 letters, digits, dots, dashes and underscores")
        return value


def load_alert_settings(path: Path) -> AlertSettings:
    """Read ``alerts.toml``, look its secrets up and make the sinks.

    Raises
    ------
    UsageError: the file is missing, malformed or holds a secret itself, or what it names is not there. No
        message shows a value of the file.
    """
    return _settings(_checked(_document(path), str(path)), str(path))


def _document(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is too large to be a file of receivers")
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, RecursionError):
        raise UsageError(f"{path} is no TOML") from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at [^()]*\)$", str(error))
        raise UsageError(f"{path} is no TOML {at[0] if at else ''}") from None


def _checked(document: Mapping[str, object], name: str) -> _File:
    try:
        return _File.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = plain(".".join(str(part) for part in fault["loc"]), 100)
        why = fault["msg"].removeprefix("Value error, ")
        if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
            why = "kind must be webhook, slack, pagerduty or apprise"
        elif fault["type"] == "too_short":
            why = "it must name at least one"
        raise UsageError(f"{name}: {place or 'the file'}: {why}") from None


def _settings(file: _File, name: str) -> AlertSettings:
    receivers = [
        Receiver(key, _sink(each, f"{name}: receivers.{key}"), frozenset(each.kinds))
        for key, each in file.receivers.items()
    ]
    hours = file.remind_after_hours
    return AlertSettings(receivers, file.environment, None if hours is None else timedelta(hours=hours))


def _sink(table: _Webhook | _Slack | _PagerDuty | _Apprise, where: str) -> Sink:
    if isinstance(table, _Webhook):
        from promotion_gate.monitor.sinks.webhook import Webhook

        return Webhook(
            _address(table.url, f"{where}.url"),
            _maybe(table.signing_secret, f"{where}.signing_secret"),
            _maybe(table.token, f"{where}.token"),
        )
    if isinstance(table, _Slack):
        from promotion_gate.monitor.sinks.slack import Slack

        return Slack(_web(secret(table.url, f"{where}.url"), f"{where}.url"))
    if isinstance(table, _PagerDuty):
        from promotion_gate.monitor.sinks.pagerduty import PagerDuty

        key = secret(table.routing_key, f"{where}.routing_key")
        return PagerDuty(key, _address(table.url, f"{where}.url").reveal())
    from promotion_gate.monitor.sinks.other import Apprise

    return Apprise(secret(table.url, f"{where}.url"), f"{where}.url")


def _maybe(reference: str | None, where: str) -> Secret | None:
    return None if reference is None else secret(reference, where)


def _address(text: str, where: str) -> Secret:
    """An address that may stand in the file, if nothing in it looks like a secret."""
    if is_reference(text):
        return _web(secret(text, where), where)
    address = _web(Secret(text), where)
    url = urlsplit(text)
    if url.username or url.password or url.query or url.fragment or any(map(_is_token, url.path.split("/"))):
        raise UsageError(
            f"{where} seems to hold a secret", 'name the whole URL instead: "${VARIABLE}" or "file:PATH"'
        )
    return address


def _web(address: Secret, where: str) -> Secret:
    try:
        url = urlsplit(address.reveal())
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"{where} is no http or https URL")
    return address


def _is_token(segment: str) -> bool:
    mixed = any(c.isdigit() for c in segment) and any(c.isalpha() for c in segment)
    return len(segment) >= _LONG_SEGMENT and mixed
