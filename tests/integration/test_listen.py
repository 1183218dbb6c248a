"""A real MLflow server tells a real listener of new versions, by a webhook made with MLflow's own client."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

SECRET = "a webhook secret of some length"


@pytest.fixture
def start(gate_environment, home, tmp_path):
    """Start ``promotion-gate listen`` as a user does; the listeners are ended with the test."""
    running = []

    def listen(*arguments):
        log = tmp_path / f"{len(running)}.log"
        command = [sys.executable, "-m", "promotion_gate", "listen", "--port", "0", *arguments]
        environment = {**gate_environment, "PROMOTION_GATE_WEBHOOK_SECRET": SECRET}
        with log.open("w") as stderr:
            process = subprocess.Popen(command, cwd=home, env=environment, stdout=stderr, stderr=stderr)
        running.append(process)
        until(lambda: "listening on http://" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        port = int(log.read_text().partition("listening on http://127.0.0.1:")[2].split()[0])
        return SimpleNamespace(process=process, port=port, log=log)

    yield listen
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.wait(60)


def until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def ask(port, method, path, body=None, headers=()):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def counted(port, name, **labels):
    for family in text_string_to_metric_families(ask(port, "GET", "/metrics")[1]):
        for sample in family.samples:
            if sample.name == f"promotion_gate_listen_{name}" and sample.labels == labels:
                return sample.value
    return 0


def signed(name, version):
    """A delivery as MLflow makes it."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = json.dumps(
        {"entity": "model_version", "action": "created", "data": {"name": name, "version": version}}
    )
    delivery, stamp = str(uuid.uuid4()), str(int(time.time()))
    return body, {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": _generate_hmac_signature(SECRET, delivery, stamp, body),
    }


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_mlflows_webhook_has_each_version_gated_once(start, register, cli, production, mlflow_server):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    name = register("listened")
    listener = start("--model", name, "--poll", "1h")
    until(lambda: counted(listener.port, "polls_total", outcome="answered"))
    events = ["model_version.created", "model_version_alias.created"]
    client.create_webhook("gate", f"http://127.0.0.1:{listener.port}/", events, secret=SECRET)
    register_version(client, name, "right")
    until(lambda: counted(listener.port, "gate_runs_total", outcome="promote"))
    assert production(name) == 1
    assert counted(listener.port, "deliveries_total", outcome="accepted") >= 1

    before = counted(listener.port, "deliveries_total", outcome="accepted")
    answers = [ask(listener.port, "POST", "/", *signed(name, "1"))[0] for _ in range(5)]
    assert set(answers) <= {200, 202}
    until(lambda: counted(listener.port, "waiting") == 0)
    assert counted(listener.port, "deliveries_total", outcome="accepted") > before
    events = json.loads(cli("history", name, "--json"))["events"]
    assert [event["action"] for event in events] == ["promote"]

    register_version(client, name, "right")
    client.set_registered_model_alias(name, "production", "2")  # by hand, past the gate
    until(lambda: counted(listener.port, "foreign_moves_total"))
    told = f"ALARM: alias 'production' of '{name}', which named version 1, was moved to version 2"
    assert told in listener.log.read_text()
    until(lambda: json.loads(cli("history", name, "--json"))["events"][-1]["action"] == "foreign")
    assert counted(listener.port, "refused_total", reason="bad_signature") == 0
    assert "Traceback" not in listener.log.read_text()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_listener_that_was_ended_is_taken_over(start, register, cli, production, mlflow_server):
    name = register("taken-over", "right")  # while nobody listens
    listener = start("--model", name, "--poll", "1h")
    until(lambda: counted(listener.port, "running"))
    time.sleep(1)  # well into the gate run
    (child,) = children(listener.process.pid)
    listener.process.send_signal(signal.SIGTERM)
    assert listener.process.wait(60) == 0
    until(lambda: not alive(child), 10)
    assert "ended" in listener.log.read_text()
    assert "Traceback" not in listener.log.read_text()
    assert json.loads(cli("history", name, "--json"))["events"] == []

    listener = start("--model", name, "--poll", "1h")
    until(lambda: counted(listener.port, "gate_runs_total", outcome="promote"))
    assert production(name) == 1


def register_version(client, name, kind):
    found = client.get_model_version(f"logged-{kind}", "1")
    client.create_model_version(
        name, found.source, found.run_id, model_id=found.source.removeprefix("models:/")
    )


def children(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"
