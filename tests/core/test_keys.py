"""Keys: made, kept, trusted, and held by a service that is named by a URI."""

import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from promotion_gate.core.envelope import seal, unseal
from promotion_gate.core.errors import SigningError, UsageError
from promotion_gate.core.keys import (
    KEY_VARIABLE,
    PUBLIC_VARIABLE,
    TRUSTED_VARIABLE,
    load_signing_key,
    load_trusted_keys,
    make_key_pair,
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (KEY_VARIABLE, PUBLIC_VARIABLE, TRUSTED_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def write_public(path, key):
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_a_pair_is_made_private_and_kept(tmp_path):
    path = tmp_path / "keys" / "ci.pem"
    key = make_key_pair(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert load_trusted_keys(tmp_path / "keys").keys.keys() == {key.key_id}
    assert stat.S_IMODE(path.with_suffix(".pub").stat().st_mode) == 0o644
    with pytest.raises(UsageError, match="exists already"):
        make_key_pair(path)
    path.unlink()
    with pytest.raises(UsageError, match=r"ci\.pub exists already"):
        make_key_pair(path)
    assert before


def test_a_folder_of_trusted_keys_leaves_ones_own_out(tmp_path):
    own = load_signing_key()
    other = make_key_pair(tmp_path / "keys" / "other.pem")
    assert load_trusted_keys().keys.keys() == {own.key_id}
    assert load_trusted_keys(tmp_path / "keys").keys.keys() == {other.key_id}


def test_an_empty_folder_of_trusted_keys_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no trusted keys in"):
        load_trusted_keys(tmp_path)


def test_a_pipe_among_the_trusted_keys_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pub")
    with pytest.raises(SigningError, match=r"x\.pub is no plain file"):
        load_trusted_keys(tmp_path)


def test_a_key_named_by_uri_signs_and_is_trusted(tmp_path, monkeypatch):
    private = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "private.pem"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_public(tmp_path / "public.pem", private)
    monkeypatch.setenv(KEY_VARIABLE, f"file2:{file}")
    monkeypatch.setenv(PUBLIC_VARIABLE, str(tmp_path / "public.pem"))
    sealed = seal(b"{}", load_signing_key())
    assert unseal(sealed, load_trusted_keys(), "it")[0] == b"{}"
    assert not (tmp_path / "config").exists(), "no key of its own is made"


def test_a_key_service_needs_its_public_key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "awskms:alias/gate")
    with pytest.raises(SigningError, match=f"{PUBLIC_VARIABLE} is not set"):
        load_signing_key()


def test_a_service_that_fails_is_one_line(tmp_path, monkeypatch):
    write_public(tmp_path / "public.pem", ed25519.Ed25519PrivateKey.generate())
    monkeypatch.setenv(KEY_VARIABLE, f"file2:{tmp_path}/none.pem")
    monkeypatch.setenv(PUBLIC_VARIABLE, str(tmp_path / "public.pem"))
    with pytest.raises(SigningError, match="cannot be used") as error:
        load_signing_key()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        lambda: ec.generate_private_key(ec.SECP192R1()),
    ],
    ids=["short RSA", "weak curve"],
)
def test_a_weak_key_is_not_trusted(tmp_path, key):
    write_public(tmp_path / "weak.pub", key())
    with pytest.raises(SigningError, match="at least 3072 bits"):
        load_trusted_keys(tmp_path)
