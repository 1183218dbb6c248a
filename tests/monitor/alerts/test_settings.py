"""alerts.toml: what is accepted, and that no error shows what may be a secret."""

import re

import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.ready import ready_file
from promotion_gate.monitor.settings import load_alert_settings

LITERAL = "https://hooks.slack.com/services/T012345/B012345/abcdefABCDEF123456"


@pytest.fixture
def load(tmp_path):
    def read(text):
        path = tmp_path / "alerts.toml"
        path.write_text(text)
        return load_alert_settings(path)

    return read


def receiver(kind, **keys):
    lines = [f'{key} = "{value}"' for key, value in keys.items()]
    return "\n".join(["[receivers.x]", f'kind = "{kind}"', *lines])


def test_the_shipped_example_is_accepted(load, monkeypatch):
    monkeypatch.setenv("SLACK_WEBHOOK_URL", LITERAL)
    settings = load(ready_file("config"))
    assert [each.name for each in settings.receivers] == ["chat"]
    assert settings.remind_after is None


def test_every_receiver_of_the_example_is_accepted_once_it_is_wanted(load, monkeypatch, tmp_path):
    for name in ("SLACK_WEBHOOK_URL", "ALERTS_SIGNING_SECRET", "ALERTS_TOKEN"):
        monkeypatch.setenv(name, LITERAL)
    (tmp_path / "key").write_text("mailtos://user:password@smtp.example.org?to=night@example.org")
    text = ready_file("config").replace("# [", "[").replace("# kind =", "kind =").replace("# url", "url")
    for key in ("routing_key", "kinds", "signing_secret", "token"):
        text = text.replace(f"# {key}", key)
    text = text.replace("/run/secrets/pagerduty-key", f"{tmp_path}/key")
    text = text.replace("/run/secrets/mail-url", f"{tmp_path}/key")
    names = [each.name for each in load(text).receivers]
    assert names == ["chat", "pager", "own", "mail"]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("slack", {"url": LITERAL}),
        ("pagerduty", {"routing_key": "abcdefABCDEF123456"}),
        ("apprise", {"url": "mailto://user:abcdefABCDEF123456@example.org"}),
        ("webhook", {"url": "https://example.org/hook", "signing_secret": "abcdefABCDEF123456"}),
        ("webhook", {"url": "https://example.org/hook", "token": "abcdefABCDEF123456"}),
        ("webhook", {"url": "https://user:abcdefABCDEF123456@example.org/hook"}),
        ("webhook", {"url": "https://example.org/hook?key=abcdefABCDEF123456"}),
        ("webhook", {"url": "https://discord.com/api/webhooks/abcdefABCDEF123456"}),
        ("webhook", {"url": "ftp://example.org/abcdefABCDEF123456"}),
        ("webhook", {"url": "http://[abcdefABCDEF123456"}),
        ("webhook", {"url": "file:/nowhere/abcdefABCDEF"}),
        ("nothing", {"url": "abcdefABCDEF123456"}),
        ("slack", {"url": "${NOT_SET}", "abcdef": "abcdefABCDEF123456"}),
        ("slack", {}),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(load, kind, keys):
    with pytest.raises(UsageError) as caught:
        load(receiver(kind, **keys))
    assert "abcdefABCDEF123456" not in str(caught.value)
    assert "alerts.toml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "receivers = 3",
        "[receivers]",
        "remind_after_hours = 0",
        "[receivers.'a b']\nkind = 'slack'",
        "secret = abcdef",
        "\x00",
        "environment = '''a\nb'''\n[receivers.x]\nkind='webhook'\nurl='http://h/'",
        "[receivers.x]\nkind = 'webhook'\nurl = 'http://h/'\nkinds = ['nonsense']",
        "[receivers.x]\nkind = 'webhook'\nurl = 'http://h/'\nkinds = []",
        "a = " + "[" * 5000,
    ],
)
def test_what_is_malformed_is_refused(load, text):
    with pytest.raises(UsageError) as caught:
        load(text)
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "[receivers.x]\nurl = 'http://h/'",
            "receivers.x: kind must be webhook, slack, pagerduty or apprise",
        ),
        (
            "[receivers.x]\nkind = 'webhook'\nurl = 'http://h/'\nkinds = []",
            "kinds: it must name at least one",
        ),
        ("[receivers]", "receivers: it must name at least one"),
    ],
)
def test_what_is_wrong_is_said_in_the_files_own_words(load, text, why):
    with pytest.raises(UsageError, match=re.escape(why)):
        load(text)


def test_a_plain_address_may_stand_in_the_file(load):
    assert load(receiver("webhook", url="https://alerts.example.org/hooks/promotion-gate")).receivers


def test_a_url_that_apprise_does_not_know(load, monkeypatch):
    pytest.importorskip("apprise")
    monkeypatch.setenv("MAIL", "nonsense://abcdef")
    with pytest.raises(UsageError, match="no URL that apprise can use") as caught:
        load(receiver("apprise", url="${MAIL}"))
    assert "abcdef" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        load_alert_settings(tmp_path / "none.toml")
