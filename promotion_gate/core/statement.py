"""The parts that the signed statements of this program share, and how one is checked and sealed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promotion_gate.core.envelope import canonical, seal, unseal
from promotion_gate.core.errors import SigningError
from promotion_gate.core.types import ModelRef

if TYPE_CHECKING:
    from promotion_gate.core.keys import SigningKey, TrustedKeys

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha256OrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
VersionNumber = Annotated[int, Field(ge=1, lt=10**18)]
S = TypeVar("S", bound=BaseModel)


class Part(BaseModel):
    """A part of a statement that only this program writes: a field it does not know is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Digest(Part):
    """A digest as in-toto writes it."""

    sha256: Sha256


class Subject(Part):
    """What a statement is about: a ``models:/`` URI and the digest of its artifacts."""

    name: str
    digest: Digest


class StatedModel(Part):
    """The model version that a statement speaks of."""

    name: str = Field(min_length=1)
    version: VersionNumber

    def subject_of(self, subject: Subject, name: str) -> ModelRef:
        """The version, after the statement's subject was found to be that one too.

        Raises
        ------
        SigningError: they differ; ``name`` is what the message calls the statement.
        """
        ref = ModelRef(self.name, self.version)
        if subject.name != ref.uri:
            raise SigningError(f"{name} is malformed: its subject is not the model version it speaks of")
        return ref


def sign_statement(statement: Mapping[str, Any], form: type[BaseModel], what: str, key: SigningKey) -> bytes:
    """A statement in a signed envelope, JSON bytes, after it was read back in its own form.

    Equal statements signed with the same key give equal bytes.

    Raises
    ------
    SigningError: it does not have that form, or the key cannot sign; ``what`` is what the message calls it.
    """
    payload = canonical(statement)
    try:
        form.model_validate_json(payload)
    except ValidationError as error:
        raise SigningError(f"{what} cannot be signed: {_first_fault(error)}") from None
    return seal(payload, key)


def verified_statement(
    content: bytes, form: type[S], trusted: TrustedKeys, name: str, most: int | None = None
) -> S:
    """The statement in a signed envelope, after its signature was found good and its key trusted.

    ``most`` is the largest envelope that is read, if not :func:`~promotion_gate.core.envelope.unseal`'s.

    Raises
    ------
    SigningError: malformed, altered, or signed by nobody who is trusted.
    """
    payload, _ = unseal(content, trusted, name) if most is None else unseal(content, trusted, name, most)
    try:
        return form.model_validate_json(payload)
    except ValidationError as error:
        raise SigningError(f"{name} is malformed: {_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
