"""Waiting for the code that serves: patient, sceptical of what it hears, and never for ever."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate import health
from promotion_gate.core.errors import ExitCode, ServingError, UsageError
from promotion_gate.core.types import ModelRef

REF = ModelRef("signs", 2)


@contextmanager
def serving(answer):
    """An endpoint that calls ``answer(handler, number)`` on every request, and how often it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self, len(asked))

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def says(handler, body, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(health, "POLL_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def wait(url, seconds=5.0):
    return health.wait_until_served(health.endpoint(url), REF, "production", seconds)


def test_it_waits_until_the_version_is_back():
    answers = [(b'{"version": 3}', 200), (b"starting", 503), (b'{"version": "2", "status": "ok"}', 200)]
    with serving(lambda handler, n: says(handler, *answers[n - 1])) as (url, asked):
        assert wait(url) < 5
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("body", "status", "last"),
    [
        (b"3", 200, "version 3"),
        (b"2", 500, "HTTP 500"),
        (b"2", 203, "HTTP 203"),
        (b" " * 70_000 + b"2", 200, "more than 65,536 bytes"),
        (b'{"version": true}', 200, "no version"),
        (b"[" * 50_000, 200, "no version"),
        (b"\xff\xfe", 200, "no version"),
    ],
)
def test_after_the_limit_it_says_what_it_heard_last_and_that_production_was_moved(body, status, last):
    with (
        serving(lambda handler, n: says(handler, body, status)) as (url, _),
        pytest.raises(ServingError, match="alias 'production' of 'signs' IS moved to version 2") as caught,
    ):
        wait(url, 0.1)
    assert last in str(caught.value)
    assert caught.value.exit_code is ExitCode.REGISTRY


def test_no_redirect_is_followed():
    with serving(lambda handler, n: says(handler, b"2")) as (elsewhere, asked):
        with (
            serving(lambda handler, n: says(handler, b"", 302, Location=elsewhere)) as (url, _),
            pytest.raises(ServingError, match="HTTP 302"),
        ):
            wait(url, 0.1)
        assert asked == []


def test_a_server_that_dribbles_without_end_cannot_hold_the_operator():
    over = threading.Event()

    def dribble(handler, n):
        handler.send_response(200)
        handler.end_headers()
        while not over.wait(0.02):
            handler.wfile.write(b" ")

    with serving(dribble) as (url, _):
        with pytest.raises(ServingError, match="nothing within"):
            wait(url, 0.3)
        over.set()


def test_nobody_there():
    with pytest.raises(ServingError, match="no answer"):
        wait("http://127.0.0.1:9/health", 0.05)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "host/health",
        "http://",
        "http://[bad",
        "http://host:99999/",
        "http://user:secret@host/",
        "http://host/\nX: y",
        "http://host/a b",
        "http://höst/",
    ],
)
def test_what_cannot_be_waited_for_is_refused_at_once(url):
    with pytest.raises(UsageError) as caught:
        health.endpoint(url)
    assert "secret" not in str(caught.value)


def test_a_query_is_sent_and_not_shown():
    with serving(lambda handler, n: says(handler, b"3")) as (url, asked):
        with pytest.raises(ServingError) as caught:
            wait(f"{url}?token=secret", 0.05)
        assert asked[0] == "/health?token=secret"
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=200))
def test_no_answer_is_more_than_a_version_or_a_reason(body):
    said = health.reported_version(body)
    assert said == "no version" or (type(said) is int and said > 0)


@given(st.integers(1, 10**17))
def test_a_version_is_read_in_each_of_its_forms(version):
    forms = (version, str(version), {"version": version}, {"version": str(version), "status": "ok"})
    assert [health.reported_version(json.dumps(form).encode()) for form in forms] == [version] * 4
