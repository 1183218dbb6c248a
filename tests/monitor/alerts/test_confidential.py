"""Secrets are named, found, and never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.confidential import Secret, redacted, secret

URL = "https://ada:hunter22@hooks.example.org/services/T0AB/B1CD/s3cr3tPart?key=zzTOPzz#frag99"


def test_a_secret_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("A_TOKEN", "word")
    (tmp_path / "token").write_text("word\n")
    assert secret("${A_TOKEN}", "here").reveal() == "word"
    assert secret(f"file:{tmp_path}/token", "here").reveal() == "word"


@pytest.mark.parametrize("text", ["hunter22", "$A_TOKEN", "x${A_TOKEN}", "${A_TOKEN}x", "${}", "", "env:A"])
def test_a_literal_is_refused_and_not_repeated(text, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "word")
    with pytest.raises(UsageError) as caught:
        secret(text, "receivers.x.url")
    assert "hunter22" not in str(caught.value)
    assert "receivers.x.url" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe", b"x" * 20_000])
def test_a_file_that_holds_no_secret_is_refused(tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UsageError):
        secret(f"file:{tmp_path}/token", "here")


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(UsageError, match="A_TOKEN is not there or empty"):
        secret("${A_TOKEN}", "here")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        secret(f"file:{tmp_path}/none", "here")


def test_it_does_not_show_itself():
    assert "word" not in f"{Secret('word')!r} {Secret('word')}"


@pytest.mark.parametrize(
    "text",
    [
        f"Max retries exceeded with url: {URL}",
        "url: /services/T0AB/B1CD/s3cr3tPart",
        "no_team: T0AB s3cr3tPart",
        "ada:hunter22 was denied",
        "bad key zzTOPzz",
        "https%3A//ada%3Ahunter22%40hooks.example.org/services/T0AB/B1CD/s3cr3tPart",
    ],
)
def test_no_part_of_a_secret_stays(text):
    shown = redacted(text, [Secret(URL)])
    assert not any(part in shown for part in ("hunter22", "s3cr3tPart", "zzTOPzz", "T0AB", "B1CD"))
    assert "***" in shown


@given(value=st.text(min_size=4, max_size=30), before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_secret_never_stands_in_what_is_redacted(value, before, after):
    shown = redacted(before + value + after, [Secret(value)])
    assert value not in shown.replace("***", "\0")
