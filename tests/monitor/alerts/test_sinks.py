"""What receivers are sent: documented shapes, hostile strings, and errors without secrets."""

import hashlib
import hmac
import json

import jsonschema
import pytest

from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.notification import Notification, dedup_key
from promotion_gate.monitor.sinks import http
from promotion_gate.monitor.sinks.interface import DeliveryError
from promotion_gate.monitor.sinks.pagerduty import PagerDuty
from promotion_gate.monitor.sinks.slack import Slack
from promotion_gate.monitor.sinks.webhook import Webhook

HOSTILE = "<!channel> <http://evil|ok> & *b* `x` \r\nBcc: eve@example.org \x1b[2J ‮ " + "é" * 5000
KEY = "R" * 32

PLAIN_TEXT = {
    "type": "object",
    "required": ["type", "text"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "plain_text"},
        "text": {"type": "string", "minLength": 1, "maxLength": 3000},
        "emoji": {"type": "boolean"},
    },
}
# https://docs.slack.dev/reference/block-kit/blocks
SLACK = {
    "type": "object",
    "required": ["text", "blocks"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "maxLength": 40000},
        "blocks": {
            "type": "array",
            "maxItems": 50,
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "additionalProperties": False,
                "properties": {"type": {"enum": ["header", "section"]}, "text": PLAIN_TEXT},
                "if": {"properties": {"type": {"const": "header"}}},
                "then": {"properties": {"text": {"properties": {"text": {"maxLength": 150}}}}},
            },
        },
    },
}
# https://developer.pagerduty.com/docs/send-alert-event
PAGERDUTY = {
    "type": "object",
    "required": ["routing_key", "event_action"],
    "additionalProperties": False,
    "properties": {
        "routing_key": {"type": "string", "pattern": "^.{32}$"},
        "event_action": {"enum": ["trigger", "acknowledge", "resolve"]},
        "dedup_key": {"type": "string", "maxLength": 255},
        "client": {"type": "string"},
        "payload": {
            "type": "object",
            "required": ["summary", "source", "severity"],
            "additionalProperties": False,
            "properties": {
                "summary": {"type": "string", "maxLength": 1024},
                "source": {"type": "string", "minLength": 1},
                "severity": {"enum": ["critical", "error", "warning", "info"]},
                "timestamp": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"},
                "component": {"type": "string"},
                "group": {"type": "string"},
                "class": {"type": "string"},
                "custom_details": {"type": "object"},
            },
        },
    },
    "if": {"properties": {"event_action": {"const": "trigger"}}},
    "then": {"required": ["payload"]},
    "else": {"required": ["dedup_key"]},
}


@pytest.fixture
def note(alarm):
    def make(word="firing", subject="Speed limit 80", **more):
        told = alarm(subject, **more)
        return Notification("id-1", dedup_key(told), word, told, "eu-west")

    return make


def sent(receiver):
    return json.loads(receiver.got[-1].body)


def test_the_message_is_the_playbooks(receiver, note):
    Slack(Secret(receiver.url)).send(note())
    wanted = (
        "prediction distribution for class 'Speed limit 80' has deviated by 7.3 standard deviations"
        " from baseline"
    )
    assert wanted in sent(receiver)["text"]
    assert wanted in sent(receiver)["blocks"][1]["text"]["text"]


COUNTED = {"count": 86, "of": 400, "share": 0.215, "baseline_low": 0.0349, "baseline_high": 0.0725}
SURGE = {"side": "surge", **COUNTED}


def test_a_person_is_told_the_direction_and_the_numbers(alarm):
    def lines(state="firing", kind="class-share", **detail):
        told = alarm(state=state, kind=kind, detail={**SURGE, **detail})
        return Notification("id", "key", "firing", told).lines()

    assert lines()[1] == "more of it: 86 of 400 in its window, 21.50%; 3.49% to 7.25% allowed"
    assert lines(side="loss")[1].startswith("less of it: 86 of 400")
    assert lines(kind="confidence", side="unsure")[1].startswith("more answers that are unsure: 86")
    assert lines(state="resolved")[1] == ""
    assert lines(count=None)[1] == ""
    assert lines(kind="rollback")[1] == ""


@pytest.mark.parametrize("subject", ["stop", HOSTILE])
@pytest.mark.parametrize("word", ["firing", "reminder", "resolved", "notice", "test"])
def test_slack_gets_blocks_without_markup(receiver, note, subject, word):
    Slack(Secret(receiver.url + "/services/T0/B0/x")).send(
        note(word, subject, message=f"class {subject}", detail={"undo": f"echo {subject}"})
    )
    payload = sent(receiver)
    jsonschema.validate(payload, SLACK)
    assert "<" not in payload["text"]
    assert ">" not in payload["text"]
    assert receiver.got[-1].headers["Content-Type"] == "application/json"
    assert "\x1b" not in json.dumps(payload, ensure_ascii=False)


@pytest.mark.parametrize("subject", ["stop", HOSTILE])
@pytest.mark.parametrize("word", ["firing", "reminder", "resolved", "notice", "test"])
def test_pagerduty_gets_documented_events(receiver, note, subject, word):
    detail = {"p": float("nan"), "big": "x" * 100_000, "undo": "echo"}
    PagerDuty(Secret(KEY), receiver.url + "/v2/enqueue").send(
        note(word, subject, message=f"class {subject}", sigma=float("inf"), detail=detail)
    )
    event = sent(receiver)
    jsonschema.validate(event, PAGERDUTY)
    assert event["event_action"] == ("resolve" if word == "resolved" else "trigger")


def test_an_incident_is_resolved_by_the_key_that_triggered_it(receiver, note):
    sink = PagerDuty(Secret(KEY), receiver.url)
    keys = []
    for word in ("firing", "resolved", "notice"):
        sink.send(note(word))
        keys.append(sent(receiver)["dedup_key"])
    assert keys[0] == keys[1] != keys[2]


def test_a_webhook_is_signed_over_time_delivery_and_body(receiver, note):
    Webhook(
        Secret(receiver.url + "/hook"), Secret("shared"), Secret("bearer"), clock=lambda: 1_700_000_000.9
    ).send(note())
    got = receiver.got[-1]
    text = b"1700000000.id-1." + got.body
    assert got.headers["X-Promotion-Gate-Timestamp"] == "1700000000"
    assert got.headers["X-Promotion-Gate-Delivery"] == "id-1"
    assert (
        got.headers["X-Promotion-Gate-Signature"]
        == "v1=" + hmac.new(b"shared", text, hashlib.sha256).hexdigest()
    )
    assert got.headers["Authorization"] == "Bearer bearer"
    document = json.loads(got.body)
    assert document["schema"] == "promotion-gate-alarm/1"
    assert document["event"] == "firing"
    assert document["alarm"]["subject"] == "Speed limit 80"
    assert document["environment"] == "eu-west"


def test_without_a_secret_nothing_is_signed(receiver, note):
    Webhook(Secret(receiver.url)).send(note())
    assert "X-Promotion-Gate-Signature" not in receiver.got[-1].headers
    assert "Authorization" not in receiver.got[-1].headers


def test_half_a_character_is_sent_as_json(receiver, note):
    Webhook(Secret(receiver.url)).send(note(subject="\ud800"))
    assert json.loads(receiver.got[-1].body)["alarm"]["kind"] == "class-share"


def test_a_redirect_is_not_followed(receiver, note):
    receiver.answers = [(307, {"Location": receiver.url + "/elsewhere"}, b"")]
    with pytest.raises(DeliveryError, match="redirects are not followed") as caught:
        Webhook(Secret(receiver.url + "/hook")).send(note())
    assert caught.value.refused
    assert [got.path for got in receiver.got] == ["/hook"]


@pytest.mark.parametrize(
    ("status", "refused"), [(400, True), (403, True), (404, True), (408, False), (429, False), (503, False)]
)
def test_what_another_try_may_mend_is_told_from_what_it_cannot(receiver, note, status, refused):
    receiver.answers = [(status, {"Retry-After": "77"}, b"no")]
    with pytest.raises(DeliveryError) as caught:
        Webhook(Secret(receiver.url)).send(note())
    assert (caught.value.refused, caught.value.wait) == (refused, 77.0)


def test_an_error_shows_no_secret_even_if_the_server_repeats_it(receiver, note):
    url = receiver.url + "/services/T0SECRET/B0SECRET/s3cr3tPart"
    echoed = f"no such hook {url} key {KEY} shared-secret\x1b[2J".encode()
    receiver.answers = [(404, {}, echoed)] * 3
    sinks = [
        Slack(Secret(url)),
        PagerDuty(Secret(KEY), url),
        Webhook(Secret(url), Secret("shared-secret")),
    ]
    for sink in sinks:
        with pytest.raises(DeliveryError) as caught:
            sink.send(note())
        for part in ("s3cr3tPart", "T0SECRET") if not isinstance(sink, PagerDuty) else (KEY,):
            assert part not in caught.value.reason
        assert caught.value.reason.isprintable()
    assert "shared-secret" not in caught.value.reason


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/s3cr3tPart", "http://nowhere.invalid/s3cr3tPart"])
def test_nobody_there(url, note):
    with pytest.raises(DeliveryError, match="cannot be reached") as caught:
        Slack(Secret(url)).send(note())
    assert "s3cr3tPart" not in caught.value.reason
    assert caught.value.__cause__ is None
    assert not caught.value.refused


def test_a_receiver_that_does_not_answer(receiver, note, monkeypatch):
    monkeypatch.setattr(http, "READ_SECONDS", 0.2)
    receiver.hold.clear()
    with pytest.raises(DeliveryError, match=r"no answer within 0\.2 s"):
        Slack(Secret(receiver.url)).send(note())


def test_an_answer_is_read_only_as_far_as_it_is_told(receiver, note):
    receiver.answers = [(500, {}, b"x" * 1_000_000)]
    with pytest.raises(DeliveryError) as caught:
        Slack(Secret(receiver.url)).send(note())
    assert len(caught.value.reason) < 300


def test_a_password_of_netrc_is_not_sent(receiver, note, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ada password hunter22\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    Webhook(Secret(receiver.url)).send(note())
    assert "Authorization" not in receiver.got[-1].headers


def test_a_token_that_no_header_can_hold(receiver, note):
    from promotion_gate.monitor.delivery import attempt
    from promotion_gate.monitor.outbox import Pending
    from promotion_gate.monitor.settings import Receiver

    sink = Webhook(Secret(receiver.url), token=Secret("schlüssel-€"))
    error = attempt(Receiver("x", sink), Pending(note()))
    assert error is not None
    assert "schl" not in error.reason
