"""Deliveries: genuine ones by MLflow's own signature are taken once, and nothing else ever is."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import ModelRef
from promotion_gate.listening import deliveries
from promotion_gate.listening.deliveries import (
    AliasSet,
    Doorkeeper,
    OtherEvent,
    Refusal,
    Refused,
    VersionCreated,
    read_notice,
    read_secrets,
)

SECRET = "correct horse battery staple"
NOW = 1_800_000_000


@pytest.fixture
def door():
    return Doorkeeper([SECRET], 300)


def refusal(door, headers, body, now=NOW):
    with pytest.raises(Refused) as refused:
        door.check(headers, body, now)
    return refused.value.refusal


def test_what_mlflow_signs_is_genuine(door, deliver):
    headers, body = deliver(stamp=str(NOW))
    assert door.check(headers, body, NOW) == "d-1"
    assert read_notice(body) == VersionCreated(ModelRef("signs", 1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_one_changed_byte_anywhere_is_refused(deliver, data):
    headers, body = deliver(stamp=str(NOW))
    part = data.draw(st.sampled_from(["body", *(h for h in headers if h != "content-type")]))
    whole = body if part == "body" else headers[part].encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 6))]) + whole[at + 1 :]
    if part == "body":
        body = changed
    else:
        headers = {**headers, part: changed.decode("latin-1")}
    with pytest.raises(Refused) as refused:
        Doorkeeper([SECRET], 300).check(headers, body, NOW)
    assert refused.value.refusal is Refusal.SIGNATURE


@pytest.mark.parametrize(
    "changes",
    [
        {"x-mlflow-signature": ""},
        {"x-mlflow-signature": "v1,"},
        {"x-mlflow-signature": "v1,é"},
        {"x-mlflow-signature": "v2,AAAA"},
        {"x-mlflow-delivery-id": ""},
        {"x-mlflow-delivery-id": "x" * 200},
        {"x-mlflow-timestamp": ""},
        {"x-mlflow-timestamp": "-1"},
        {"x-mlflow-timestamp": "٣"},
        {"x-mlflow-timestamp": "1e9"},
    ],
)
def test_headers_that_are_none(door, deliver, changes):
    headers, body = deliver(stamp=str(NOW))
    assert refusal(door, headers | changes, body) is Refusal.SIGNATURE
    missing = {k: v for k, v in headers.items() if k not in changes}
    assert refusal(door, missing, body) is Refusal.SIGNATURE


def test_an_empty_secret_or_another_signs_nothing(door, deliver):
    for secret in ("", "another secret of some length"):
        headers, body = deliver(stamp=str(NOW), secret=secret)
        assert refusal(door, headers, body) is Refusal.SIGNATURE


def test_either_of_two_secrets_signs(deliver):
    door = Doorkeeper(["the one before this one", SECRET], 300)
    for number, secret in enumerate(("the one before this one", SECRET)):
        headers, body = deliver(stamp=str(NOW), secret=secret, delivery=str(number))
        assert door.check(headers, body, NOW) == str(number)


@pytest.mark.parametrize("age", [-301, 301, 86_400])
def test_old_and_future_deliveries_are_refused(door, deliver, age):
    headers, body = deliver(stamp=str(NOW - age))
    assert refusal(door, headers, body) is Refusal.TIMESTAMP
    headers, body = deliver(stamp=str(NOW - 300 * (1 if age > 0 else -1)))
    assert door.check(headers, body, NOW)


@pytest.mark.parametrize("ahead", [-300, 0, 300])
def test_a_taken_delivery_is_a_replay_for_as_long_as_it_is_fresh(door, deliver, ahead):
    headers, body = deliver(stamp=str(NOW + ahead))
    door.take(door.check(headers, body, NOW), NOW)
    for later in range(0, 301 + ahead, 100):
        assert refusal(door, headers, body, NOW + later) is Refusal.REPLAYED
    assert refusal(door, headers, body, NOW + 601 + ahead) is Refusal.TIMESTAMP


def test_a_delivery_that_was_not_taken_may_come_again(door, deliver):
    headers, body = deliver(stamp=str(NOW))
    assert door.check(headers, body, NOW) == door.check(headers, body, NOW)


def test_memory_is_bounded_and_given_back(door, deliver, monkeypatch):
    monkeypatch.setattr(deliveries, "REMEMBERED", 3)
    for number in range(3):
        headers, body = deliver(stamp=str(NOW), delivery=str(number))
        door.take(door.check(headers, body, NOW), NOW)
    headers, body = deliver(stamp=str(NOW), delivery="one-more")
    assert refusal(door, headers, body) is Refusal.QUEUE_FULL
    headers, body = deliver(stamp=str(NOW + 601), delivery="one-more")
    assert door.check(headers, body, NOW + 601)


def test_alias_and_other_events(deliver):
    _, body = deliver("model_version_alias.created", alias="production", version=7)
    assert read_notice(body) == AliasSet(ModelRef("signs", 7), "production")
    _, body = deliver("model_version_tag.set", key="a", value="b")
    assert read_notice(body) == OtherEvent("model_version_tag.set")


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a:b", "a\nb", "x" * 257, "\ud800", None, 3, ["signs"]])
def test_names_that_no_model_has(deliver, name):
    _, body = deliver(name=name)
    with pytest.raises(Refused) as refused:
        read_notice(body)
    assert refused.value.refusal is Refusal.MALFORMED


@pytest.mark.parametrize("version", ["0", "-1", "", "1.5", "١", "9" * 19, True, None, [1], "1; rm"])
def test_versions_that_are_none(deliver, version):
    _, body = deliver(version=version)
    with pytest.raises(Refused):
        read_notice(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["name", "version"]), inner),
    max_leaves=5,
)


@settings(max_examples=100)
@given(
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda data: json.dumps({"entity": "model_version", "action": "created", "data": data}).encode(), JSON
    )
)
def test_any_body_is_a_notice_or_is_refused(body):
    try:
        notice = read_notice(body)
    except Refused as refused:
        notice = refused
    assert isinstance(notice, VersionCreated | OtherEvent) or notice.refusal is Refusal.MALFORMED


def test_a_deeply_nested_body_is_refused():
    with pytest.raises(Refused):
        read_notice(b"[" * 200_000)


def test_the_secret_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(deliveries.SECRET_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="no webhook secret"):
        read_secrets(None)
    monkeypatch.setenv(deliveries.SECRET_VARIABLE, "too short")
    with pytest.raises(UsageError, match="fewer than 16"):
        read_secrets(None)
    monkeypatch.setenv(deliveries.SECRET_VARIABLE, SECRET + "\n")
    assert read_secrets(None) == [SECRET]
    file = tmp_path / "secret"
    with pytest.raises(UsageError, match="cannot read the webhook's secret"):
        read_secrets(file)
    file.write_text(f"{SECRET}\n\nthe one that comes next\n")
    assert read_secrets(file) == [SECRET, "the one that comes next"]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        read_secrets(file)
