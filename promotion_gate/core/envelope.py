"""Signed statements: an in-toto Statement v1 in a DSSE v1 envelope, sealed and opened.

Formats: in-toto Attestation Framework, Statement v1 (https://in-toto.io/Statement/v1), and Dead Simple
Signing Envelope v1 (https://github.com/secure-systems-lab/dsse), by default signed with ed25519 (RFC 8032).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import SigningError

if TYPE_CHECKING:
    from promotion_gate.core.keys import SigningKey, TrustedKeys

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 1_000_000


def seal(payload: bytes, key: SigningKey) -> bytes:
    """The statement's bytes in a signed envelope, as JSON.

    Raises
    ------
    SigningError: the key's service refuses or cannot be reached.
    """
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    try:
        envelope.sign(key.signer)
    except SigningError:
        raise
    except Exception as error:  # every key service has errors of its own
        raise SigningError(f"the key {key.name} cannot sign: {one_line(error)}") from None
    return canonical(envelope.to_dict())


def unseal(
    content: bytes, trusted: TrustedKeys, name: str, most: int = MAX_ENVELOPE_BYTES
) -> tuple[bytes, str]:
    """The statement's bytes, after a signature by a trusted key was found good, and that key's id.

    ``name`` is what an error message calls the envelope; ``most`` is the largest that it may be.

    Raises
    ------
    SigningError: malformed, too large, altered, or signed by nobody who is trusted.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    if len(content) > most:
        raise SigningError(f"{name} is larger than {most:,} bytes")
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


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def one_line(error: BaseException) -> str:
    """An error of another's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
