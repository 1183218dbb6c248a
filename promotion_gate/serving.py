"""The model in production, for the code that serves it: verified as ``verify`` does it, then loaded."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import SigningError
from promotion_gate.core.production import Production
from promotion_gate.core.types import ModelRef
from promotion_gate.vouching import Vouched, vouched_version

if TYPE_CHECKING:
    from promotion_gate.registry.interface import Registry

PICKLE = "unsafe_allow_pickle"


class UnverifiedModelWarning(UserWarning):
    """A model was loaded although no record of a trusted key vouches for it."""


def load(
    model: str,
    *,
    alias: str = "production",
    trust: str | Path | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    unsafe_unsigned: bool = False,
) -> Any:
    """The verified model as a ``torch.nn.Module`` in evaluation mode, on the CPU.

    The bytes that are digested are the bytes that are loaded: both read one private copy.

    Parameters
    ----------
    model: a registered model's name, which stands for its production version, or ``name/7``, or a
        ``models:/`` URI.
    alias: the alias that production goes by.
    trust: a folder of public keys (``*.pub``) that alone are trusted; else as the configuration says.
    unsafe_unsigned: load with a warning what no trusted record vouches for. Changed bytes and revoked
        versions are refused even then.

    Raises
    ------
    SigningError: a record or verdict is missing, altered or by a key that is not trusted, and which.
    ArtifactError: the bytes have changed, were judged under no such policy, or were revoked.
    RegistryError: the registry cannot be reached, or its alias is not where the history left it.
    """
    from promotion_gate.registry.mlflow import MlflowRegistry

    registry = MlflowRegistry(tracking_uri, registry_uri)
    return load_from(registry, model, alias=alias, trust=trust, unsafe_unsigned=unsafe_unsigned)


def load_from(
    registry: Registry,
    model: str,
    *,
    alias: str = "production",
    trust: str | Path | None = None,
    unsafe_unsigned: bool = False,
) -> Any:
    """As :func:`load`, from a registry that is at hand."""
    from promotion_gate.core.keys import load_trusted_keys
    from promotion_gate.evidence.artifacts import verify
    from promotion_gate.evidence.digest import digest_folder
    from promotion_gate.evidence.loader import load_to_serve

    keys = load_trusted_keys(None if trust is None else Path(trust))
    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as name:
        folder = Path(name)

        def digest(ref: ModelRef) -> str:
            registry.download(ref, folder)
            return digest_folder(folder)[1]

        vouched = vouched_version(registry, model, Production(alias=alias), keys, found_digest=digest)
        _accept(vouched, unsafe_unsigned=unsafe_unsigned)
        unsafe = () if vouched.record is None else vouched.record.unsafe
        return load_to_serve(verify(folder, allow_pickle=PICKLE in unsafe))


def _accept(vouched: Vouched, *, unsafe_unsigned: bool) -> None:
    if vouched.broken is None:
        return
    if not unsafe_unsigned or not isinstance(vouched.broken, SigningError):
        raise vouched.broken
    message = f"{vouched.ref} is loaded UNVERIFIED: {vouched.broken}"
    warnings.warn(message, UnverifiedModelWarning, stacklevel=4)
