"""A proxy in front of an MLflow server that numbers the requests and mistreats the ones it is told to."""

import http.client
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_SECONDS = 1.0
STUCK_SECONDS = 30.0
LATE_SECONDS = 1.5

PASSING = (
    "500 before",
    "500 after",
    "503 before",
    "429 before",
    "504 and done late",
    "reset before",
    "reset after",
)
"""What failing servers and gateways do. "after" and "late": the request takes effect all the same."""

LYING = ("HTML for 200", "empty object", "another version", "cut short", "shorter file", "lost and said done")
SLOW = ("slow", "a byte at a time")
KINDS = (*PASSING, *LYING, *SLOW)


class Proxy:
    """Forwards to ``upstream``. ``plan(number, method, path)`` names the fault of a request, or None."""

    def __init__(self, upstream):
        self.upstream = urlsplit(upstream)
        self.plan = lambda number, method, path: None
        self.calls = []
        self.hits = 0
        self._mutex = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self, plan=None):
        with self._mutex:
            self.calls, self.hits = [], 0
            self.plan = plan or (lambda number, method, path: None)

    def fault(self, method, path):
        with self._mutex:
            self.calls.append(f"{method} {path}")
            kind = self.plan(len(self.calls), method, path)
            self.hits += kind is not None
            return kind

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy = None

    def log_message(self, *arguments):
        pass

    def _any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        kind = self.proxy.fault(self.command, self.path)
        if kind is None:
            self._answer(*self._forward(body))
        else:
            getattr(self, "_" + kind.replace(" ", "_").lower())(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

    def _chunks(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body):
        upstream = self.proxy.upstream
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
        headers = {
            k: v
            for k, v in self.headers.items()
            if k.lower() not in ("host", "connection", "transfer-encoding")
        }
        headers["Content-Length"] = str(len(body))
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
        except OSError:
            return 502, "text/plain", b"bad gateway"
        finally:
            connection.close()

    def _answer(self, status, kind, body, length=None):
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def _fail(self, status):
        self._answer(status, "application/json", json.dumps({"error_code": "INTERNAL_ERROR"}).encode())

    def _hang_up(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _500_before(self, body):
        self._fail(500)

    def _503_before(self, body):
        self._fail(503)

    def _429_before(self, body):
        self._fail(429)

    def _500_after(self, body):
        self._forward(body)
        self._fail(500)

    def _504_and_done_late(self, body):
        threading.Thread(target=lambda: (time.sleep(LATE_SECONDS), self._forward(body)), daemon=True).start()
        self._fail(504)

    def _reset_before(self, body):
        self._hang_up()

    def _reset_after(self, body):
        self._forward(body)
        self._hang_up()

    def _html_for_200(self, body):
        self._forward(body)
        self._answer(200, "text/html", b"<html><body>Please log in</body></html>")

    def _empty_object(self, body):
        self._forward(body)
        self._answer(200, "application/json", b"{}")

    def _lost_and_said_done(self, body):
        if self.command == "GET" or "/search" in self.path:
            self._answer(*self._forward(body))
        else:
            self._answer(200, "application/json", b"{}")

    def _another_version(self, body):
        status, kind, content = self._forward(body)
        for number in ("1", "2", "3"):
            content = content.replace(
                f'"version": "{number}"'.encode(), f'"version": "{int(number) + 6}"'.encode()
            )
        self._answer(status, kind, content)

    def _cut_short(self, body):
        status, kind, content = self._forward(body)
        self._answer(status, kind, content[: len(content) // 2], len(content))
        self._hang_up()

    def _shorter_file(self, body):
        status, kind, content = self._forward(body)
        is_file = self.command == "GET" and "/mlflow-artifacts/artifacts/" in self.path
        self._answer(status, kind, content[:-1] if is_file else content)

    def _slow(self, body):
        time.sleep(SLOW_SECONDS)
        self._answer(*self._forward(body))

    def _a_byte_at_a_time(self, body):
        status, kind, content = self._forward(body)
        started = time.monotonic()
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content) + 10_000))
            self.end_headers()
            while time.monotonic() - started < STUCK_SECONDS:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.2)
        except OSError:
            pass
        self._hang_up()
