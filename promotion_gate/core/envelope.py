"""A signed envelope around an in-toto statement: DSSE v1, signed with ed25519 (RFC 8032).

Specification: Dead Simple Signing Envelope v1 (https://github.com/secure-systems-lab/dsse).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import SigningError

if TYPE_CHECKING:
    from promotion_gate.core.keys import SigningKey, TrustedKeys

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def canonical(value: Any) -> bytes:
    """JSON bytes that are equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def sign_payload(payload: bytes, key: SigningKey) -> bytes:
    """The payload in a signed envelope, JSON bytes; equal input gives equal bytes."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(key.signer)
    return canonical(envelope.to_dict())


def signed_payload(content: bytes, trusted: TrustedKeys, *, name: str, limit: int) -> tuple[bytes, str]:
    """The payload of an envelope whose signature is good and whose key is trusted, and that key's id.

    Parameters
    ----------
    content: the envelope.
    name: what an error message calls it.
    limit: the most bytes it may have.

    Raises
    ------
    SigningError: malformed, altered, or signed by nobody who is trusted.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    if len(content) > limit:
        raise SigningError(f"{name} is larger than {limit:,} bytes")
    try:
        envelope = Envelope.from_dict(json.loads(content))
        signed_by = sorted(map(str, envelope.signatures))
        payload_type = envelope.payload_type
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SigningError(f"{name} is malformed: not a DSSE envelope") from None
    if payload_type != PAYLOAD_TYPE:
        raise SigningError(f"{name} is malformed: its payload is not an in-toto statement")
    if not signed_by:
        raise SigningError(f"{name} is not signed")
    keys = [trusted.keys[key_id] for key_id in signed_by if key_id in trusted.keys]
    if not keys:
        raise SigningError(
            f"{name} is signed by key {signed_by[0][:16]!r}, which is not trusted here",
            f"if you know it, put its public key into {trusted.folder} as NAME.pub",
        )
    try:
        accepted = envelope.verify(keys, threshold=1)
    except (VerificationError, ValueError):
        raise SigningError(
            f"{name} was altered: it does not match its signature by key {keys[0].keyid[:16]}"
        ) from None
    return envelope.payload, sorted(accepted)[0]
