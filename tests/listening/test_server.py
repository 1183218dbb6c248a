"""Over a real socket: good deliveries are taken, everything else is refused and counted, slow clients end."""

import contextlib
import http.client
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from promotion_gate.core.errors import UsageError
from promotion_gate.listening.counts import Counts
from promotion_gate.listening.deliveries import MAX_BODY, Doorkeeper
from promotion_gate.listening.server import Recipients, application, bind, server

SECRET = "correct horse battery staple"


@pytest.fixture
def serving(eventually):
    """A server on a free port, with what reached its recipients; at most 8 connections of 1.5 s each."""
    heard = SimpleNamespace(versions=[], aliases=[], answer="accepted", alive=True, lines=[])

    def gate(notice):
        heard.versions.append(notice.ref.version)
        return heard.answer

    counts = Counts()
    recipients = Recipients(gate, heard.aliases.append, lambda name: name == "signs", lambda: heard.alive)
    sock = bind("127.0.0.1", 0)
    app = application(recipients, Doorkeeper([SECRET], 300), counts, heard.lines.append)
    running = server(app, counts, max_connections=8, seconds=1.5)
    thread = threading.Thread(target=running.run, args=([sock],))
    thread.start()
    eventually(lambda: running.started)
    heard.address, heard.counts, heard.connections = (
        sock.getsockname(),
        counts,
        running.server_state.connections,
    )
    yield heard
    running.should_exit = True
    thread.join(20)
    sock.close()


@pytest.fixture
def ask(serving):
    """The status and body of one request."""

    def send(method="POST", path="/", body=None, headers=()):
        connection = http.client.HTTPConnection(*serving.address, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return send


@pytest.fixture
def refused(serving):
    return lambda: {
        k.removeprefix("refused "): v for k, v in serving.counts.totals().items() if "refused" in k
    }


def test_deliveries_of_mlflow_are_taken(ask, deliver, serving):
    headers, body = deliver()
    assert ask(body=body, headers=headers) == (202, "accepted\n")
    headers, body = deliver("model_version_alias.created", alias="production", delivery="d-2")
    assert ask(body=body, headers=headers) == (202, "accepted\n")
    headers, body = deliver("model_version_tag.set", key="k", value="v", delivery="d-3")
    assert ask(body=body, headers=headers) == (200, "ignored\n")
    serving.answer = "waiting"
    headers, body = deliver(delivery="d-4")
    assert ask(body=body, headers=headers) == (200, "waiting\n")
    assert serving.versions == [1, 1]
    assert [notice.alias for notice in serving.aliases] == ["production"]
    counted = {k: v for k, v in serving.counts.totals().items() if k.startswith("deliveries")}
    assert counted == {"deliveries accepted": 2, "deliveries ignored": 1, "deliveries waiting": 1}


def test_what_is_refused_is_counted_and_reaches_nothing(ask, deliver, serving, refused):
    headers, body = deliver(delivery="first")
    assert ask(body=body, headers=headers)[0] == 202
    assert ask(body=body, headers=headers)[0] == 409
    assert ask(body=body + b" ", headers=headers)[0] == 401
    headers, body = deliver(stamp="1000000000")
    assert ask(body=body, headers=headers)[0] == 401
    headers, body = deliver(secret="not the webhook's secret")
    assert ask(body=body, headers=headers)[0] == 401
    assert ask(body=b"{}", headers={"Content-Type": "application/json"})[0] == 401
    headers, body = deliver(name="another", delivery="other")
    status, why = ask(body=body, headers=headers)
    assert (status, "'another'" in why) == (404, True)
    headers, body = deliver(name=None, delivery="none")
    assert ask(body=body, headers=headers)[0] == 400
    assert ask(body=body, headers={**headers, "content-type": "text/plain"})[0] == 415
    assert ask(body=body)[0] == 415
    assert ask(path="/elsewhere", body=body, headers=headers)[0] == 404
    assert ask("GET")[0] == 405
    assert ask("POST", "/metrics")[0] == 405
    assert serving.versions == [1]
    assert refused() == {
        "replayed": 1,
        "bad_signature": 3,
        "bad_timestamp": 1,
        "unknown_model": 1,
        "malformed": 1,
        "content_type": 2,
        "not_found": 1,
        "method": 2,
    }
    assert (
        5 <= len(serving.lines) <= len(refused())
    )  # each kind is said once a minute, however often it comes


def test_a_full_queue_is_503_and_the_same_delivery_may_come_again(ask, deliver, serving, refused):
    headers, body = deliver()
    serving.answer = "full"
    assert ask(body=body, headers=headers)[0] == 503
    serving.answer = "accepted"
    assert ask(body=body, headers=headers)[0] == 202
    assert ask(body=body, headers=headers)[0] == 409
    assert refused() == {"queue_full": 1, "replayed": 1}


def test_an_error_of_its_own_is_said_and_the_delivery_may_come_again(ask, deliver, serving):
    headers, body = deliver()
    serving.versions = None
    assert ask(body=body, headers=headers)[0] == 500
    assert "could not be answered: AttributeError" in serving.lines[-1]
    serving.versions, serving.answer = [], "accepted"
    assert ask(body=body, headers=headers)[0] == 202


def test_large_bodies_are_refused_declared_or_not(serving, refused, eventually, deliver, ask):
    headers, _ = deliver()
    head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for rest in (f"Content-Length: {MAX_BODY + 1}\r\n\r\n", "Content-Length: " + "9" * 30 + "\r\n\r\n"):
        with socket.create_connection(serving.address, 20) as raw:
            raw.sendall((head + rest).encode())
            assert raw.recv(100).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    with socket.create_connection(serving.address, 20) as raw, contextlib.suppress(OSError):
        raw.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        for _ in range(20):
            raw.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
    eventually(lambda: sum(refused().values()) == 3)
    assert refused()["too_large"] >= 2
    headers, body = deliver(tags={"note": "x" * 900_000})
    assert ask(body=body, headers=headers)[0] == 202


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n",
    ],
)
def test_what_is_no_http_is_refused(serving, refused, eventually, bytes_):
    with socket.create_connection(serving.address, 20) as raw, contextlib.suppress(OSError):
        raw.sendall(bytes_)
        raw.recv(1000)
    eventually(lambda: refused() == {"malformed": 1})


def test_a_body_that_never_ends_is_cut_off(serving, ask, eventually, deliver):
    headers, body = deliver()
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with socket.create_connection(serving.address, 20) as raw:
        raw.sendall(
            f"POST / HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body) + 9}\r\n\r\n".encode() + body
        )
        eventually(lambda: serving.counts.totals().get("connections_closed too_slow") == 1)
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(10) == b""
    assert serving.versions == []
    assert ask("GET", "/healthz")[0] == 200


def test_slow_and_many_connections_are_closed_while_others_are_answered(serving, ask, eventually):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(serving.address, 20)) for _ in range(7)]
        eventually(lambda: len(serving.connections) == 7)
        assert ask("GET", "/healthz")[0] == 200
        slow.append(stack.enter_context(socket.create_connection(serving.address, 20)))
        eventually(lambda: len(serving.connections) == 8)
        with pytest.raises(OSError):  # noqa: PT011 - reset or closed, as the network will have it
            ask("GET", "/healthz")
        gone = 0
        while gone < len(slow):  # a byte now and then does not prolong it
            gone = 0
            time.sleep(0.05)
            for raw in slow:
                try:
                    raw.sendall(b"G")
                except OSError:
                    gone += 1
    eventually(lambda: serving.counts.totals()["connections_closed too_slow"] == 8)
    assert serving.counts.totals()["connections_closed too_many"] == 1
    assert ask("GET", "/healthz")[0] == 200


def test_health_and_metrics_tell_the_counts(serving, ask, deliver):
    headers, body = deliver(secret="not the webhook's secret")
    ask(body=body, headers=headers)
    told = json.loads(ask("GET", "/healthz")[1])
    assert told["status"] == "ok"
    assert told["counts"]["refused bad_signature"] == 1
    families = {f.name: f for f in text_string_to_metric_families(ask("GET", "/metrics")[1])}
    (sample,) = (s for s in families["promotion_gate_listen_refused"].samples if s.name.endswith("_total"))
    assert (sample.labels, sample.value) == ({"reason": "bad_signature"}, 1.0)
    serving.alive = False
    assert ask("GET", "/healthz")[0] == 503


def test_an_address_that_cannot_be_listened_on(serving):
    with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1"):
        bind(*serving.address)
    with pytest.raises(UsageError, match="cannot listen on"):
        bind("203.0.113.7", 0)
    with pytest.raises(UsageError, match="cannot listen on"):
        bind("no such host", 0)
