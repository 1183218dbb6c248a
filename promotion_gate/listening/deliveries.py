"""MLflow's webhook deliveries: whether one is genuine, fresh and new, and what it tells.

MLflow follows the Standard Webhooks convention: ``X-MLflow-Signature`` is ``v1,`` and the base64 of
HMAC-SHA256(secret, "delivery id.timestamp.body"). The order of the tests matters: until the signature was
found good, nothing of the body is parsed and nothing is remembered, so that a stranger fills no memory.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import ModelRef

SIGNATURE = "x-mlflow-signature"
TIMESTAMP = "x-mlflow-timestamp"
DELIVERY_ID = "x-mlflow-delivery-id"

SECRET_VARIABLE = "PROMOTION_GATE_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
SECRET_CHARACTERS = 16
"""Anything shorter could be guessed from one delivery that was overheard."""

MAX_BODY = 1_000_000
"""Bytes. A version's tags travel along, so that a body may be large."""
REMEMBERED = 100_000
"""How many delivery ids are kept for as long as they are fresh."""

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SECONDS = re.compile(r"[0-9]{1,12}")
_NAME = re.compile(r"[^/@:\x00-\x1f\x7f]{1,256}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Refusal(enum.StrEnum):
    """Why a request was refused; the value is the label that it is counted under."""

    NOT_FOUND = "not_found"
    METHOD = "method"
    CONTENT_TYPE = "content_type"
    TOO_LARGE = "too_large"
    SIGNATURE = "bad_signature"
    TIMESTAMP = "bad_timestamp"
    REPLAYED = "replayed"
    MALFORMED = "malformed"
    UNKNOWN_MODEL = "unknown_model"
    QUEUE_FULL = "queue_full"

    @property
    def status(self) -> int:
        """The HTTP status. MLflow delivers again after 429, 500, 502, 503 and 504, and after no other."""
        return _STATUS[self]


_STATUS = {
    Refusal.NOT_FOUND: 404,
    Refusal.METHOD: 405,
    Refusal.CONTENT_TYPE: 415,
    Refusal.TOO_LARGE: 413,
    Refusal.SIGNATURE: 401,
    Refusal.TIMESTAMP: 401,
    Refusal.REPLAYED: 409,
    Refusal.MALFORMED: 400,
    Refusal.UNKNOWN_MODEL: 404,
    Refusal.QUEUE_FULL: 503,
}


class Refused(Exception):
    """A request that is answered with a refusal."""

    def __init__(self, refusal: Refusal, why: str) -> None:
        super().__init__(why)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class VersionCreated:
    """A version was registered."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class AliasSet:
    """An alias was set, or moved, to a version."""

    ref: ModelRef
    alias: str


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event that the gate has no interest in."""

    kind: str


Notice = VersionCreated | AliasSet | OtherEvent


class Doorkeeper:
    """Tells genuine, fresh and new deliveries from others.

    Parameters
    ----------
    secrets: any of which may have signed, so that a secret can be changed without a gap.
    max_age: seconds that a delivery's timestamp may lie from now, either way.
    """

    def __init__(self, secrets: Sequence[str], max_age: float) -> None:
        self._secrets = [secret.encode() for secret in secrets]
        self._max_age = max_age
        self._seen: OrderedDict[str, float] = OrderedDict()

    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> str:
        """The id of a genuine delivery that was not taken yet; ``headers`` by lower-case name.

        Raises
        ------
        Refused: it is none.
        """
        delivery, stamp = headers.get(DELIVERY_ID, ""), headers.get(TIMESTAMP, "")
        if not (_ID.fullmatch(delivery) and _SECONDS.fullmatch(stamp) and self._signed(headers, body)):
            raise Refused(Refusal.SIGNATURE, "the signature is missing or wrong")
        if abs(now - int(stamp)) > self._max_age:
            raise Refused(Refusal.TIMESTAMP, f"the timestamp is more than {self._max_age:g} s from now")
        self._forget(now)
        if delivery in self._seen:
            raise Refused(Refusal.REPLAYED, "this delivery was taken before")
        if len(self._seen) >= REMEMBERED:
            raise Refused(Refusal.QUEUE_FULL, "too many deliveries at once")
        return delivery

    def take(self, delivery: str, now: float) -> None:
        """Refuse this delivery from now on.

        One that was answered with 503 is not taken: MLflow delivers it again under the same id.
        """
        # A timestamp may lie ahead by as much as it may lie back.
        self._seen[delivery] = now + 2 * self._max_age

    def _signed(self, headers: Mapping[str, str], body: bytes) -> bool:
        given = headers.get(SIGNATURE, "").encode("utf-8", "replace")
        content = b".".join((headers[DELIVERY_ID].encode(), headers[TIMESTAMP].encode(), body))
        digests = (hmac.digest(secret, content, hashlib.sha256) for secret in self._secrets)
        expected = (b"v1," + base64.b64encode(digest) for digest in digests)
        # Each is compared, so that the time taken does not tell which of them signed.
        return sum(hmac.compare_digest(given, one) for one in expected) > 0

    def _forget(self, now: float) -> None:
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)


def read_notice(body: bytes) -> Notice:
    """What a genuine delivery tells.

    Raises
    ------
    Refused: it is no delivery as MLflow sends it.
    """
    try:
        told = json.loads(body)
        kind = f"{told['entity']}.{told['action']}"
        data = told["data"]
        if kind == "model_version.created":
            return VersionCreated(_ref(data))
        if kind == "model_version_alias.created":
            return AliasSet(_ref(data), _text(data["alias"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(Refusal.MALFORMED, "not a delivery as MLflow sends it") from None
    return OtherEvent(kind[:100])


def read_secrets(file: Path | None) -> list[str]:
    """The webhook's secrets: one a line in ``file``, else the one in ``PROMOTION_GATE_WEBHOOK_SECRET``.

    Raises
    ------
    UsageError: there is none, or one is too short.
    """
    if file is None:
        secrets = [os.environ.get(SECRET_VARIABLE, "").strip()]
        where = SECRET_VARIABLE
    else:
        where = str(file)
        try:
            secrets = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise UsageError(f"cannot read the webhook's secret in {file}: {why}") from None
    secrets = [secret for secret in secrets if secret]
    if not secrets:
        raise UsageError(
            f"no webhook secret in {where}",
            f"give the one that the webhook was created with in {SECRET_VARIABLE} or --secret-file",
        )
    if min(map(len, secrets)) < SECRET_CHARACTERS:
        raise UsageError(
            f"a webhook secret in {where} has fewer than {SECRET_CHARACTERS} characters",
            "create the webhook with a longer one, such as that of 'openssl rand -hex 32'",
        )
    return secrets


def _ref(data: Any) -> ModelRef:
    name, version = _text(data["name"]), str(data["version"])
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise ValueError
    return ModelRef(name, int(version))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # lone surrogates are no text
    return value
