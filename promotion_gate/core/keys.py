"""The keys behind the signed records: one to sign with, and those that are trusted.

The signing key is the ed25519 PEM file named by ``PROMOTION_GATE_KEY``, else ``signing-key.pem`` in the
configuration folder (``$XDG_CONFIG_HOME/promotion-gate``), made on first use. ``PROMOTION_GATE_KEY`` may
also be a private key URI of securesystemslib (``awskms:``, ``gcpkms:``, ``azurekms:``, ``hv:``, ``hsm:``):
then the key never leaves its service, and ``PROMOTION_GATE_PUBLIC_KEY`` names its public half. Trusted are
one's own public half and every ``*.pub`` in the folder named by ``PROMOTION_GATE_TRUSTED_KEYS``, else in
``trusted`` in the configuration folder. Private keys are PKCS #8 PEM, public keys SubjectPublicKeyInfo PEM.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.envelope import one_line
from promotion_gate.core.errors import SigningError, UsageError
from promotion_gate.core.places import base_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "PROMOTION_GATE_KEY"
PUBLIC_VARIABLE = "PROMOTION_GATE_PUBLIC_KEY"
SECRET_VARIABLE = "PROMOTION_GATE_KEY_SECRET"  # noqa: S105 - the variable's name
SECRET_FILE_VARIABLE = "PROMOTION_GATE_KEY_SECRET_FILE"  # noqa: S105 - likewise
TRUSTED_VARIABLE = "PROMOTION_GATE_TRUSTED_KEYS"
KEY_SERVICE = re.compile(r"(awskms|azurekms|gcpkms|hsm|hv|file2):.*")
MAX_KEY_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key ready to sign, and the file or service it came from.

    ``signer`` is a ``securesystemslib.signer.Signer``.
    """

    signer: Any = field(repr=False)
    name: str

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
    """The signing key and the trusted keys, each loaded when it is first needed."""

    def __init__(self, signing: SigningKey | None = None, trusted: TrustedKeys | None = None) -> None:
        self._signing = signing
        self._trusted = trusted

    def prepare(self) -> None:
        """Load the trusted keys now: beside running requests, importing the cryptography takes twice as long.

        Raises
        ------
        SigningError: see :func:`load_trusted_keys`.
        """
        _ = self.trusted

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
    signing = SigningKey(_signer(_private_key(path)), str(path))
    return Keyring(signing, TrustedKeys({signing.key_id: signing.signer.public_key}, path.parent))


def config_folder() -> Path:
    """The folder of the program's own settings, ``$XDG_CONFIG_HOME/promotion-gate``."""
    return base_folder("XDG_CONFIG_HOME") / "promotion-gate"


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
    SigningError: the named key is missing, unreadable or not an ed25519 private key, or its service refuses.
    """
    uri = _key_service()
    if uri:
        return SigningKey(_service_signer(uri), uri)
    path = signing_key_path()
    if not path.exists():
        if os.environ.get(KEY_VARIABLE):
            raise SigningError(f"no signing key at {path}", f"correct or unset {KEY_VARIABLE}")
        _create_key(path)
    return SigningKey(_signer(_private_key(path)), str(path))


def load_trusted_keys(folder: Path | None = None) -> TrustedKeys:
    """The public keys whose signatures count: one's own, if there is one, and those in the usual folder.

    With ``folder`` only those in it count, one's own not among them unless it lies there.

    Raises
    ------
    SigningError: a key file there is unreadable or not a public key.
    UsageError: ``folder`` holds none.
    """
    if folder is not None:
        named = read_public_keys(folder)
        if not named.keys:
            raise UsageError(f"no trusted keys in {folder}", "put public keys there as NAME.pub")
        return named
    own = {public.keyid: public for public in _own_public_keys()}
    others = read_public_keys(trusted_folder())
    return TrustedKeys({**own, **others.keys}, others.folder)


def read_public_keys(folder: Path) -> TrustedKeys:
    """Every ``*.pub`` in a folder, by key id.

    Raises
    ------
    SigningError: a file there is unreadable or not a public key.
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
    return SigningKey(_signer(_private_key(path)), str(path))


def make_key_pair(path: Path) -> SigningKey:
    """A fresh ed25519 key at ``path``, mode 0600, and its public half beside it with the ending ``.pub``.

    Raises
    ------
    UsageError: either file exists already.
    SigningError: they cannot be written.
    """
    for file in (path, path.with_suffix(".pub")):
        if file.exists() or file.is_symlink():
            raise UsageError(f"{file} exists already, and is kept", "name another file")
    if path.suffix == ".pub":
        raise UsageError(f"{path} would be the public key's name", "name it NAME.pem")
    _create_key(path)
    return SigningKey(_signer(_private_key(path)), str(path))


def _own_public_keys() -> list[Any]:
    if _key_service():
        return [_service_public_key()]
    own = signing_key_path()
    return [_signer(_private_key(own)).public_key] if own.exists() else []


def _key_service() -> str:
    """The URI of a key that a service holds; empty where the key is a file."""
    named = os.environ.get(KEY_VARIABLE, "")
    return named if KEY_SERVICE.fullmatch(named) else ""


def _service_public_key() -> Any:
    named = os.environ.get(PUBLIC_VARIABLE)
    if not named:
        raise SigningError(
            f"{KEY_VARIABLE} names a key service, and {PUBLIC_VARIABLE} is not set",
            "name the PEM file of its public key there",
        )
    return _public_key(Path(named))


def _service_signer(uri: str) -> Any:
    from securesystemslib.signer import Signer

    try:
        return Signer.from_priv_key_uri(uri, _service_public_key(), _secret)
    except SigningError:
        raise
    except Exception as error:  # every key service has errors of its own
        raise SigningError(f"the key {uri} cannot be used: {one_line(error)}") from None


def _secret(name: str) -> str:
    """What a key service asks for, a PIN for one: from the environment or a file, never from an argument."""
    if SECRET_VARIABLE in os.environ:
        return os.environ[SECRET_VARIABLE]
    file = os.environ.get(SECRET_FILE_VARIABLE)
    if not file:
        raise SigningError(
            f"the key's service asks for its {name}",
            f"set {SECRET_VARIABLE}, or {SECRET_FILE_VARIABLE} to a file with it",
        )
    return _read(Path(file)).decode(errors="replace").strip()


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise SigningError(
            f"{path} is not an unencrypted private key in PEM form",
            "make one with 'promotion-gate keygen'",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{path} is not an ed25519 key", "make one with 'promotion-gate keygen'")
    return key


def _public_key(path: Path) -> Any:
    """A public key of a kind that a signature here can be made with: ed25519, or what key services have."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        raise SigningError(f"{path} is not a public key in PEM form", "replace or remove it") from None
    if not _strong(key):
        raise SigningError(
            f"{path} is not an ed25519, ECDSA or RSA key of at least 3072 bits", "replace or remove it"
        )
    return SSlibKey.from_crypto(key)


def _strong(key: object) -> bool:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        SECP256R1,
        SECP384R1,
        SECP521R1,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, EllipticCurvePublicKey):
        return isinstance(key.curve, SECP256R1 | SECP384R1 | SECP521R1)
    if isinstance(key, RSAPublicKey):
        return key.key_size >= 3072
    return isinstance(key, Ed25519PublicKey)


def _read(path: Path) -> bytes:
    try:
        # Without blocking: what lies among the trusted keys may be a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SigningError(f"the key {path} is no plain file", "replace or remove it")
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
        _publish(path.with_suffix(".pub"), public, mode=0o644)
    except OSError as error:
        raise SigningError(
            f"cannot write a signing key to {path}: {error.strerror}",
            f"name an existing one in {KEY_VARIABLE}",
        ) from None


def _publish(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Make the file appear whole, and private unless ``mode`` says otherwise, if there is none already."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
