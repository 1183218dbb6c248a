"""The ed25519 keys behind the signed records: one to sign with, and those that are trusted.

The signing key is the PEM file named by ``PROMOTION_GATE_KEY``, else ``signing-key.pem`` in the
configuration folder (``$XDG_CONFIG_HOME/promotion-gate``), made on first use. Trusted are its public half
and every ``*.pub`` in the folder named by ``PROMOTION_GATE_TRUSTED_KEYS``, else in ``trusted`` in the
configuration folder. Private keys are PKCS #8 PEM, public keys SubjectPublicKeyInfo PEM.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import SigningError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "PROMOTION_GATE_KEY"
TRUSTED_VARIABLE = "PROMOTION_GATE_TRUSTED_KEYS"
MAX_KEY_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key ready to sign, and the path of the file it came from.

    ``signer`` is a ``securesystemslib.signer.CryptoSigner``.
    """

    signer: Any = field(repr=False)
    path: Path

    @property
    def key_id(self) -> str:
        """SHA-256 over the public key's canonical form, hex; the ``keyid`` in every signature."""
        return str(self.signer.public_key.keyid)


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The public keys whose signatures count, by key id, and the folder where more can be put."""

    keys: Mapping[str, Any]
    folder: Path


class Keyring:
    """The signing key and the trusted keys, each loaded when it is first needed.

    Loading imports the cryptography, which a command that waits for a server need not wait for first.
    """

    def __init__(self, signing: SigningKey | None = None, trusted: TrustedKeys | None = None) -> None:
        self._signing = signing
        self._trusted = trusted

    @property
    def signing(self) -> SigningKey:
        """See :func:`load_signing_key`."""
        if self._signing is None:
            self._signing = load_signing_key()
        return self._signing

    @property
    def trusted(self) -> TrustedKeys:
        """See :func:`load_trusted_keys`."""
        if self._trusted is None:
            self._trusted = load_trusted_keys()
        return self._trusted


def own_keyring(path: Path) -> Keyring:
    """A keyring apart from the user's: the key at ``path``, made if need be, which trusts itself alone."""
    if not path.exists():
        _create_key(path)
    signing = SigningKey(_signer(_private_key(path)), path)
    return Keyring(signing, TrustedKeys({signing.key_id: signing.signer.public_key}, path.parent))


def config_folder() -> Path:
    """The folder of the program's own settings, ``$XDG_CONFIG_HOME/promotion-gate``."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return root / "promotion-gate"


def signing_key_path() -> Path:
    """Where the signing key is looked for."""
    named = os.environ.get(KEY_VARIABLE)
    return Path(named) if named else config_folder() / "signing-key.pem"


def trusted_folder() -> Path:
    """Where the public keys of others are looked for."""
    named = os.environ.get(TRUSTED_VARIABLE)
    return Path(named) if named else config_folder() / "trusted"


def load_signing_key() -> SigningKey:
    """The key to sign with. The one in the configuration folder is made if it is not there.

    Raises
    ------
    SigningError: the named key is missing, unreadable or not an ed25519 private key.
    """
    path = signing_key_path()
    if not path.exists():
        if os.environ.get(KEY_VARIABLE):
            raise SigningError(f"no signing key at {path}", f"correct or unset {KEY_VARIABLE}")
        _create_key(path)
    return SigningKey(_signer(_private_key(path)), path)


def load_trusted_keys() -> TrustedKeys:
    """The public keys whose signatures count: one's own, if there is one, and those in the folder.

    Raises
    ------
    SigningError: a key file there is unreadable or not an ed25519 public key.
    """
    folder = trusted_folder()
    keys = {}
    own = signing_key_path()
    if own.exists():
        public = _signer(_private_key(own)).public_key
        keys[public.keyid] = public
    return TrustedKeys({**keys, **read_public_keys(folder).keys}, folder)


def read_public_keys(folder: Path) -> TrustedKeys:
    """Every ``*.pub`` in a folder, by key id.

    Raises
    ------
    SigningError: a file there is unreadable or not an ed25519 public key.
    """
    try:
        files = sorted(folder.glob("*.pub"))
    except OSError as error:
        raise SigningError(f"cannot list the trusted keys in {folder}: {error.strerror}") from None
    keys = [_public_key(file) for file in files]
    return TrustedKeys({key.keyid: key for key in keys}, folder)


def read_signing_key(path: Path) -> SigningKey:
    """The private key in a file.

    Raises
    ------
    SigningError: the file is missing, unreadable or not an ed25519 private key.
    """
    return SigningKey(_signer(_private_key(path)), path)


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise SigningError(
            f"{path} is not an unencrypted private key in PEM form",
            "make one with 'openssl genpkey -algorithm ed25519'",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(
            f"{path} is not an ed25519 key", "make one with 'openssl genpkey -algorithm ed25519'"
        )
    return key


def _public_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        raise SigningError(f"{path} is not a public key in PEM form", "replace or remove it") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{path} is not an ed25519 key", "replace or remove it")
    return SSlibKey.from_crypto(key)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise SigningError(f"cannot read the key {path}: {error.strerror}") from None


def _signer(key: Ed25519PrivateKey) -> Any:
    from securesystemslib.signer import CryptoSigner

    return CryptoSigner(key)


def _create_key(path: Path) -> None:
    """Write a fresh key; of several processes that do so at once, one wins and all use its key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _publish(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        winner = _private_key(path).public_key()
        public = winner.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        _publish(path.with_suffix(".pub"), public)
    except OSError as error:
        raise SigningError(
            f"cannot write a signing key to {path}: {error.strerror}",
            f"name an existing one in {KEY_VARIABLE}",
        ) from None


def _publish(path: Path, content: bytes) -> None:
    """Make the file appear whole and private (mode 0600), unless there is one already."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
