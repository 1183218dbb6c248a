"""A key that never leaves its token: SoftHSM, through PKCS #11, as a hardware module would be used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promotion_gate.core.envelope import seal, unseal
from promotion_gate.core.errors import SigningError
from promotion_gate.core.keys import (
    KEY_VARIABLE,
    PUBLIC_VARIABLE,
    SECRET_FILE_VARIABLE,
    SECRET_VARIABLE,
    load_signing_key,
    load_trusted_keys,
)

pytestmark = pytest.mark.integration

MODULE = next(Path("/usr").glob("lib/**/softhsm/libsofthsm2.so"), None)
PIN = "4711"
MAKE_KEY = """
import sys
import pkcs11
from pkcs11.util.ec import encode_named_curve_parameters, encode_ec_public_key
token = pkcs11.lib(sys.argv[1]).get_token(token_label="gate")
with token.open(rw=True, user_pin=sys.argv[2]) as session:
    curve = session.create_domain_parameters(
        pkcs11.KeyType.EC,
        {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
        local=True,
    )
    public, _ = curve.generate_keypair(store=True, id=b"\\x02", label="gate")
    sys.stdout.buffer.write(encode_ec_public_key(public))
"""


@pytest.fixture
def token(tmp_path, monkeypatch):
    """A token with an ECDSA key made inside it; its public half is the only thing outside."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: pip install 'promotion-gate[hsm]'")
    if MODULE is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(MODULE))
    start = ["softhsm2-util", "--init-token", "--free", "--label", "gate", "--so-pin", "0815", "--pin", PIN]
    subprocess.run(start, check=True, capture_output=True)
    made = subprocess.run(
        [sys.executable, "-c", MAKE_KEY, str(MODULE), PIN], check=True, capture_output=True, env=os.environ
    )
    public = load_der_public_key(made.stdout)
    file = tmp_path / "gate.pub"
    file.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
    monkeypatch.setenv(KEY_VARIABLE, "hsm:2?label=gate")
    monkeypatch.setenv(PUBLIC_VARIABLE, str(file))
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    return tmp_path


def test_a_token_signs_and_its_public_half_verifies(token, monkeypatch):
    with pytest.raises(SigningError, match=f"asks for its pin; set {SECRET_VARIABLE}"):
        seal(b"{}", load_signing_key())
    monkeypatch.setenv(SECRET_VARIABLE, "0000")
    with pytest.raises(SigningError, match="cannot sign: PinIncorrect"):
        seal(b"{}", load_signing_key())
    monkeypatch.delenv(SECRET_VARIABLE)
    (token / "pin").write_text(f"{PIN}\n")
    monkeypatch.setenv(SECRET_FILE_VARIABLE, str(token / "pin"))
    sealed = seal(b"{}", load_signing_key())
    assert unseal(sealed, load_trusted_keys(), "the envelope")[0] == b"{}"
    assert not list(token.rglob("*.pem"))
