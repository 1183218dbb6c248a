"""A real MLflow server for the tests in this folder."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import pytest


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """The URI of an ``mlflow server`` on sqlite that proxies artifacts, on a free port of this machine."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    uri = f"http://127.0.0.1:{free_port()}"
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", uri.rpartition(":")[2], "--workers", "2"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_it_answers(uri, server, folder / "log")
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(20)


@pytest.fixture(scope="session")
def gate_cli(mlflow_server, tmp_path_factory):
    """Run ``promotion-gate`` against the server as a user does: ``gate_cli("status", "signs", cwd=folder)``.

    The answer is a ``subprocess.CompletedProcess`` with text. Keys lie in a folder of the tests.
    """
    configuration = tmp_path_factory.mktemp("configuration")

    def run(*arguments, cwd=None, program=("-m", "promotion_gate"), seconds=280, **variables):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PROMOTION_GATE_"))},
            "MLFLOW_TRACKING_URI": mlflow_server,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "XDG_CONFIG_HOME": str(configuration),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **variables,
        }
        command = [sys.executable, *program, *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )

    return run


@pytest.fixture(scope="session")
def log_version(mlflow_server):
    """Register a PyTorch model as pt2 with the server and return its version number."""

    def log(name, model, images, metadata):
        import mlflow
        import mlflow.pytorch

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(mlflow_server)
        try:
            with warnings.catch_warnings(), mlflow.start_run():
                warnings.simplefilter("ignore")
                logged = mlflow.pytorch.log_model(
                    model,
                    name="model",
                    input_example=images,
                    registered_model_name=name,
                    metadata=metadata,
                    pip_requirements=["torch"],
                )
        finally:
            mlflow.set_tracking_uri(before)
        return int(logged.registered_model_version)

    return log


def _wait_until_it_answers(uri, server, log, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"no MLflow server at {uri}:\n{log.read_text()[-3000:]}")
