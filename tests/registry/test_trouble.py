"""What a broken, lying or full server makes the registry say, each over a real socket."""

import errno
import http.server
import json
import threading

import pytest

from promotion_gate.core.errors import ExitCode, NoAnswer, NotInRegistry, RegistryError
from promotion_gate.core.types import ModelRef
from promotion_gate.registry.artifacts import fetch_folder
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.registry.patience import Patience, Trouble
from promotion_gate.registry.trouble import Denied, disk_trouble, explained, is_missing_file, kind_of

RUN = "4" + "404" * 10 + "4"


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers what ``answers`` says: a function of (method, path, how often that path was asked)."""

    answers = None
    asked = None

    def log_message(self, *arguments):
        pass

    def _any(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].rpartition("/mlflow/")[2]
        self.asked.append(f"{self.command} {path}")
        status, body = self.answers(self.command, path, self.asked.count(f"{self.command} {path}"))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any


@pytest.fixture
def serve():
    """A registry on a stub server, and the list of what it was asked."""
    servers = []

    def start(answers, repeats=2):
        asked = []
        handler = type("Handler", (Stub,), {"answers": staticmethod(answers), "asked": asked})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        waiting = Patience(call_seconds=10.0, repeats=repeats, sleep=lambda seconds: None)
        return MlflowRegistry(f"http://127.0.0.1:{server.server_address[1]}", patience=waiting), asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def version(name="signs", number="7", **more):
    return {"model_version": {"name": name, "version": number, "status": "READY", **more}}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"<html>Please log in</html>"), "not MLflow's JSON"),
        ((200, b"[1, 2"), "not MLflow's JSON"),
        ((200, {}), "wrong answer"),
        ((200, version(number="8")), "speaks of version 8"),
        ((200, version(name="others")), "speaks of 'others'"),
        ((200, version(number="seven")), "no answer"),
        ((200, {"model_version": "yes"}), "wrong answer"),
        ((500, b"boom"), "HTTP 500"),
        ((503, {"error_code": "TEMPORARILY_UNAVAILABLE"}), "HTTP 503"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_and_then_one_line(serve, answer, words):
    registry, asked = serve(lambda *call: answer)
    with pytest.raises(NoAnswer) as caught:
        registry.version(ModelRef("signs", 7))
    line = str(caught.value)
    assert words in line
    assert line.isprintable()
    assert registry.host in line
    assert "3 attempts" in line
    assert caught.value.exit_code is ExitCode.REGISTRY
    assert len(asked) == 3


def test_one_broken_answer_is_no_trouble(serve):
    registry, asked = serve(lambda method, path, times: (200, version() if times > 1 else {}))
    assert registry.version(ModelRef("signs", 7)).ref == ModelRef("signs", 7)
    assert len(asked) == 2


def test_being_put_off_is_told_apart_from_an_open_outcome(serve):
    registry, _ = serve(lambda *call: (429, b""))
    with pytest.raises(RegistryError, match="HTTP 429") as caught:
        registry.version(ModelRef("signs", 7))
    assert not isinstance(caught.value, NoAnswer)


def test_a_refusal_is_final(serve):
    registry, asked = serve(lambda *call: (403, {"error_code": "PERMISSION_DENIED", "message": "no"}))
    with pytest.raises(Denied, match="denies access to model version signs/7"):
        registry.version(ModelRef("signs", 7))
    assert len(asked) == 1


def experiment(found):
    return (
        200,
        {"experiment": {"experiment_id": "1", "name": "promotion-gate", "lifecycle_stage": "active"}},
    )


def test_a_run_whose_creation_was_lost_is_found_and_not_made_twice(serve):
    made = []

    def answers(method, path, times):
        if path == "experiments/get-by-name":
            return experiment(path)
        if path == "runs/create":
            return 500, b"after it took effect"
        made.append(path)
        info = {"run_id": RUN, "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/x"}
        return 200, {"runs": [{"info": info, "data": {"tags": [{"key": TOKEN, "value": token[0]}]}}]}

    from promotion_gate.registry import mlflow as module

    TOKEN, token = module.CALL_TOKEN, ["a" * 32]
    registry, asked = serve(answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.secrets, "token_hex", lambda length: token[0])
        assert registry.start_gate_run(ModelRef("signs", 7), {}) == RUN
    assert asked.count("POST runs/create") == 1
    assert made == ["runs/search"]


def test_an_empty_history_is_believed_when_it_is_said_twice(serve):
    def answers(method, path, times):
        return experiment(path) if path == "experiments/get-by-name" else (200, {})

    registry, asked = serve(answers)
    assert registry.events("signs") == []
    assert asked.count("POST runs/search") == 2


def test_a_search_that_brings_other_runs_is_no_history(serve):
    def answers(method, path, times):
        if path == "experiments/get-by-name":
            return experiment(path)
        return 200, {"runs": [{"info": {"run_id": RUN, "start_time": 1}, "data": {}}]}

    registry, _ = serve(answers)
    with pytest.raises(NoAnswer, match="another run"):
        registry.events("signs")


@pytest.mark.parametrize(("status", "missing"), [(404, True), (500, False)])
def test_only_a_404_is_a_missing_file_whatever_stands_in_its_url(serve, status, missing):
    def answers(method, path, times):
        if path == "runs/get":
            info = {"run_id": RUN, "artifact_uri": f"mlflow-artifacts:/1/{RUN}/404"}
            return 200, {"run": {"info": info}}
        return status, b"404"

    registry, _ = serve(answers)
    with pytest.raises(RegistryError) as caught:
        registry.read_file(RUN, "record.dsse.json")
    assert isinstance(caught.value, NotInRegistry) is missing


def test_a_short_file_is_fetched_again_and_then_refused(serve, tmp_path):
    def answers(method, path, times):
        if path.endswith("get-download-uri"):
            return 200, {"artifact_uri": "mlflow-artifacts:/1/x/artifacts/model"}
        if path.endswith("/model.pt2"):
            return 200, b"short"
        return 200, {"files": [{"path": "model.pt2", "is_dir": False, "file_size": 9}]}

    registry, asked = serve(answers)
    with pytest.raises(NoAnswer, match="5 bytes came instead of the 9"):
        registry.download(ModelRef("signs", 7), tmp_path)
    assert len([call for call in asked if call.endswith("model.pt2")]) == 3


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd"])
def test_a_listing_that_leads_elsewhere_writes_nothing_there(serve, tmp_path, path):
    def answers(method, asked, times):
        if asked.endswith("get-download-uri"):
            return 200, {"artifact_uri": "mlflow-artifacts:/1/x/artifacts/model"}
        return 200, {"files": [{"path": path, "is_dir": False, "file_size": 1}]}

    registry, _ = serve(answers)
    with pytest.raises(RegistryError):
        registry.download(ModelRef("signs", 7), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_this_machines_trouble_and_not_asked_for_again(serve, tmp_path):
    def answers(method, path, times):
        if path.endswith("get-download-uri"):
            return 200, {"artifact_uri": "mlflow-artifacts:/1/x/artifacts/model"}
        if path.endswith("/model.pt2"):
            return 200, b"123456789"
        return 200, {"files": [{"path": "model.pt2", "is_dir": False, "file_size": 9}]}

    registry, asked = serve(answers)
    (tmp_path / "model.pt2").symlink_to("/dev/full")
    with pytest.raises(RegistryError, match=r"cannot be kept.*No space left on device.*TMPDIR"):
        fetch_folder(registry._server, "mlflow-artifacts:/1/x/artifacts/model", tmp_path, "the artifacts")
    assert len([call for call in asked if call.endswith("model.pt2")]) == 1


def test_the_kinds_of_trouble():
    assert kind_of(OSError(errno.ENOSPC, "full")) is Trouble.REFUSED
    assert kind_of(ConnectionResetError()) is Trouble.UNKNOWN
    assert disk_trouble(ConnectionResetError(errno.ECONNRESET, "x")) is None
    assert is_missing_file(FileNotFoundError())
    assert not is_missing_file(OSError("404"))
    assert "secret" not in str(explained(ValueError("http://ada:secret@ship/x\x1b[2J"), "it", "ship"))
