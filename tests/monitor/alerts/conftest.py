"""A real HTTP receiver, alarms to send, and a clock that is moved by hand."""

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from promotion_gate.monitor.interface import Alarm, ClassShare, WindowOutcome


@dataclass
class Got:
    path: str
    headers: dict
    body: bytes


@dataclass
class Receiver:
    """What arrived; ``answers`` are (status, headers, body) for the next requests, then 200 ``ok``."""

    url: str = ""
    got: list = field(default_factory=list)
    answers: list = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def receiver():
    told = Receiver()
    told.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append(Got(self.path, dict(self.headers), body))
            told.hold.wait(20)
            status, headers, text = told.answers.pop(0) if told.answers else (200, {}, b"ok")
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    yield told
    told.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Clock:
    at: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self):
        return self.at

    def wait(self, **how):
        self.at += timedelta(**how)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def alarm(clock):
    def make(subject="Speed limit 80", state="firing", kind="class-share", **more):
        told = {
            "kind": kind,
            "model": "signs",
            "version": 3,
            "subject": subject,
            "state": state,
            "message": f"prediction distribution for class '{subject}' has deviated by 7.3 standard"
            " deviations from baseline",
            "since": clock.at,
            "at": clock.at,
            "sigma": 7.3,
        }
        return Alarm(**{**told, **more})

    return make


@pytest.fixture
def outcome(clock):
    def make(classes=2, predictions=1000, **more):
        shares = [ClassShare(f"class {i}", 10 + i, 8.0 + i, 0.5, float(i), 1.0) for i in range(classes)]
        told = {
            "model": "signs",
            "alias": "production",
            "version": 3,
            "start": clock.at,
            "end": clock.at + timedelta(hours=1),
            "at": clock.at + timedelta(hours=1),
            "complete": True,
            "predictions": predictions,
            "classes": shares,
            "psi": 0.1,
        }
        return WindowOutcome(**{**told, **more})

    return make
