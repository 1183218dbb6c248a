"""Signed records: what goes in comes out, and nothing else does."""

import base64
import json
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core import keys as keys_module
from promotion_gate.core import record as record_module
from promotion_gate.core.errors import ExitCode, SigningError
from promotion_gate.core.keys import Keyring, load_signing_key, load_trusted_keys
from promotion_gate.core.record import sign_record, verify_record, whoami
from promotion_gate.core.types import AuditRecord, ModelRef, Outcome, Transition


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PROMOTION_GATE_KEY", raising=False)
    monkeypatch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
    return tmp_path / "config" / "promotion-gate"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        return load_signing_key(), load_trusted_keys()


RECORD = AuditRecord(
    action="promote",
    ref=ModelRef("traffic-signs", 7),
    digest="ab" * 32,
    reason="all checks passed",
    user="ada",
    host="ship",
    at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
    gate_version="0.1.0",
    outcome=Outcome.PROMOTE,
    policy_digest="cd" * 32,
    transition=Transition("traffic-signs", "production", None, 7),
)


def altered(envelope, change):
    """The envelope with its statement changed and the old signature kept."""
    outer = json.loads(envelope)
    statement = json.loads(base64.b64decode(outer["payload"]))
    change(statement)
    outer["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(outer).encode()


names = st.text(min_size=1, max_size=40).filter(lambda s: s.isprintable() or "\x1b" in s)
versions = st.integers(1, 10**9)


@given(
    record=st.builds(
        AuditRecord,
        action=st.sampled_from(["promote", "rollback", "approve", "reject", "hold"]),
        ref=st.builds(ModelRef, st.just("m'odel <b>"), versions),
        digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
        reason=st.text(max_size=200),
        user=names,
        host=names,
        at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
        gate_version=st.just("1.2.3"),
        outcome=st.none() | st.sampled_from(Outcome),
        transition=st.none()
        | st.builds(Transition, st.just("m'odel <b>"), st.just("production"), st.none() | versions, versions),
        unsafe=st.lists(st.just("unsafe_allow_pickle"), max_size=2).map(tuple),
        champion=st.none() | versions,
    )
)
def test_a_record_survives_the_round_trip(pair, record):
    key, trusted = pair
    assert verify_record(sign_record(record, key), trusted) == record


def test_the_same_record_gives_the_same_bytes(pair):
    assert sign_record(RECORD, pair[0]) == sign_record(RECORD, pair[0])


def test_it_is_an_in_toto_statement_in_a_dsse_envelope(pair):
    outer = json.loads(sign_record(RECORD, pair[0]))
    assert outer["payloadType"] == "application/vnd.in-toto+json"
    assert [s["keyid"] for s in outer["signatures"]] == [pair[0].key_id]
    statement = json.loads(base64.b64decode(outer["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:promotion-gate:audit-record:v1"
    assert statement["subject"] == [{"name": "models:/traffic-signs/7", "digest": {"sha256": "ab" * 32}}]


def test_the_signature_is_ed25519_over_the_pre_authentication_encoding(pair):
    outer = json.loads(sign_record(RECORD, pair[0]))
    payload = base64.b64decode(outer["payload"])
    kind = outer["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = load_pem_public_key(Path(pair[0].name).with_suffix(".pub").read_bytes())
    public.verify(base64.b64decode(outer["signatures"][0]["sig"]), signed)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["predicate"].update(reason="because"),
        lambda s: s["subject"][0]["digest"].update(sha256="00" * 32),
        lambda s: s["predicate"]["transition"].update(to_version=8),
        lambda s: s.pop("predicate"),
    ],
)
def test_an_altered_payload_is_refused(pair, change):
    with pytest.raises(SigningError, match="was altered") as caught:
        verify_record(altered(sign_record(RECORD, pair[0]), change), pair[1])
    assert caught.value.exit_code is ExitCode.REGISTRY


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_changes_what_a_record_says(pair, position, bit):
    envelope = bytearray(sign_record(RECORD, pair[0]))
    envelope[position % len(envelope)] ^= 1 << bit
    try:
        read = verify_record(bytes(envelope), pair[1])
    except SigningError:
        return
    assert read == RECORD


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_rubbish_is_one_line(pair, content):
    with pytest.raises(SigningError, match="the record is"):
        verify_record(content, pair[1])


@pytest.mark.parametrize(
    "content",
    [
        "[]", "null", "{}", "1e999", '{"payload":"","payloadType":"x","signatures":[]}',
        '{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        '{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":1,"sig":"aa"}]}',
        '{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":{"a":1}}',
        '{"payload":1,"payloadType":2,"signatures":3}',
        "[" * 100_000,
        " " * 1_000_001,
    ],
)  # fmt: skip
def test_malformed_envelopes_are_one_line(pair, content):
    with pytest.raises(SigningError) as caught:
        verify_record(content.encode(), pair[1])
    assert "\n" not in str(caught.value)


def test_a_signed_statement_of_another_kind_is_refused(pair):
    from securesystemslib.dsse import Envelope

    payload = json.dumps({"_type": "https://in-toto.io/Statement/v1", "predicateType": "x"}).encode()
    envelope = Envelope(payload, "application/vnd.in-toto+json", {})
    envelope.sign(pair[0].signer)
    with pytest.raises(SigningError, match="malformed"):
        verify_record(json.dumps(envelope.to_dict()).encode(), pair[1])


def test_an_unknown_key_is_named_with_where_to_put_it(pair, config):
    envelope = sign_record(RECORD, pair[0])
    with pytest.raises(SigningError, match="not trusted here") as caught:
        verify_record(envelope, load_trusted_keys())
    assert pair[0].key_id[:16] in str(caught.value)
    assert str(config / "trusted") in str(caught.value)
    (config / "trusted").mkdir(parents=True)
    public = Path(pair[0].name).with_suffix(".pub").read_bytes()
    (config / "trusted" / "ci.pub").write_bytes(public)
    assert verify_record(envelope, load_trusted_keys()) == RECORD


def test_trusted_keys_can_live_elsewhere(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMOTION_GATE_TRUSTED_KEYS", str(tmp_path))
    (tmp_path / "ci.pub").write_bytes(Path(pair[0].name).with_suffix(".pub").read_bytes())
    assert set(load_trusted_keys().keys) == {pair[0].key_id}


@pytest.mark.parametrize("changes", [{"digest": ""}, {"digest": "AB" * 32}, {"at": datetime(2026, 1, 1)}])
def test_a_record_that_cannot_be_stated_is_not_signed(pair, changes):
    from dataclasses import replace

    with pytest.raises(SigningError, match="cannot be signed"):
        sign_record(replace(RECORD, **changes), pair[0])


def test_the_key_is_made_once_and_is_private(config):
    first = load_signing_key()
    assert stat.S_IMODE((config / "signing-key.pem").stat().st_mode) == 0o600
    assert (config / "signing-key.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert load_signing_key().key_id == first.key_id
    assert sorted(path.name for path in config.iterdir()) == ["signing-key.pem", "signing-key.pub"]


def test_many_at_once_make_one_key():
    start = threading.Barrier(8)
    found = []

    def load():
        start.wait()
        found.append(load_signing_key().key_id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_named_key_is_used_and_never_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMOTION_GATE_KEY", str(tmp_path / "none.pem"))
    with pytest.raises(SigningError, match="no signing key at"):
        load_signing_key()
    assert not (tmp_path / "none.pem").exists()


@pytest.mark.parametrize("kind", ["rubbish", "ec", "directory"])
def test_an_unusable_key_is_one_line(tmp_path, monkeypatch, kind):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = tmp_path / "key.pem"
    if kind == "directory":
        path.mkdir()
    elif kind == "rubbish":
        path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv("PROMOTION_GATE_KEY", str(path))
    with pytest.raises(SigningError, match=r"key\.pem"):
        load_signing_key()


def test_a_bad_trusted_key_is_named(config):
    (config / "trusted").mkdir(parents=True)
    (config / "trusted" / "bad.pub").write_text("hello")
    with pytest.raises(SigningError, match=r"bad\.pub"):
        load_trusted_keys()


def test_a_keyring_makes_no_key_to_verify_with(config):
    assert Keyring().trusted.keys == {}
    assert not config.exists()


def test_ci_names_whoever_started_the_job(monkeypatch):
    for variable in ("GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TF_BUILD"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GITHUB_ACTOR", "mallory")
    assert whoami()[0] != "mallory"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_ACTOR", "ada")
    assert whoami()[0] == "ada"


def test_an_account_without_a_name_still_has_a_user(monkeypatch):
    for system, _ in record_module._CI_USER:
        monkeypatch.delenv(system, raising=False)

    def nameless():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(record_module.getpass, "getuser", nameless)
    assert whoami()[0].startswith("uid ")


def test_the_present_moment_knows_its_zone():
    assert abs(record_module.now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_importing_the_records_imports_no_cryptography():
    code = "import sys, promotion_gate.core.record, promotion_gate.core.keys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cryptography" not in loaded.stdout.split()
    assert "securesystemslib" not in loaded.stdout.split()
    assert Path(keys_module.__file__).exists()
