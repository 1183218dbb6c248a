"""A real MLflow server for the tests in this folder."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest

CLASSES = ("red", "green", "blue")
POLICY = """
version = 1

[data.holdout]
path = "holdout.npz"

[checks.per-class.bounds]
accuracy = { min = 0.9 }
accuracy_drop = { max = 0.02 }

[checks.provenance]
required = false
"""

WEBHOOKS_TO_THIS_MACHINE = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",
}
"""MLflow delivers over https to public addresses alone, unless told otherwise for tests."""


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
        # A worker that imports for longer than this is ended, which a busy machine makes it do.
        *("--uvicorn-opts", "--timeout-worker-healthcheck 120"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    environment |= WEBHOOKS_TO_THIS_MACHINE
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight processes that nothing here asks for
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
def gate_environment(mlflow_server, tmp_path_factory):
    """The environment of a user of the server. Keys lie in a folder of the tests."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PROMOTION_GATE_"))},
        "MLFLOW_TRACKING_URI": mlflow_server,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("configuration")),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.fixture(scope="session")
def gate_cli(gate_environment):
    """Run ``promotion-gate`` against the server as a user does: ``gate_cli("status", "signs", cwd=folder)``.

    The answer is a ``subprocess.CompletedProcess`` with text.
    """

    def run(*arguments, cwd=None, program=("-m", "promotion_gate"), seconds=280, **variables):
        environment = {**gate_environment, **variables}
        command = [sys.executable, *program, *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )

    return run


@contextlib.contextmanager
def mlflow_at(uri):
    """Point this process's MLflow at a server; afterwards it is as it was, its environment variables too."""
    import mlflow

    kept = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(None if before[1] == before[0] else before[1])
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def at_the_server(mlflow_server):
    """For the time of a test, this process's MLflow is at the server."""
    with mlflow_at(mlflow_server):
        yield


@pytest.fixture(scope="session")
def log_version(mlflow_server):
    """Register a PyTorch model as pt2 with the server and return its version number."""

    def log(name, model, images, metadata):
        import mlflow
        import mlflow.pytorch

        with mlflow_at(mlflow_server), warnings.catch_warnings(), mlflow.start_run():
            warnings.simplefilter("ignore")
            logged = mlflow.pytorch.log_model(
                model,
                name="model",
                input_example=images,
                registered_model_name=name,
                metadata=metadata,
                pip_requirements=["torch"],
            )
        return int(logged.registered_model_version)

    return log


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a policy and the data that it names."""
    folder = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = rng.integers(0, 90, (90, 16, 16, 3), dtype=np.uint8)
    images[np.arange(90), :, :, labels] += 120
    np.savez(folder / "holdout.npz", images=images, labels=labels, class_names=np.array(CLASSES))
    (folder / "gate.toml").write_text(POLICY)
    return folder


@pytest.fixture(scope="session")
def logged(log_version):
    """The registered versions of three models: one right on every image, one never, one of no numbers."""
    import torch
    from torch import nn

    def model(weight):
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        with torch.no_grad():
            network[2].weight.copy_(weight)
            network[2].bias.zero_()
        return network.eval()

    weights = {
        "right": 10 * torch.eye(3),
        "wrong": 10 * torch.eye(3).roll(1, 0),
        "nan": torch.full((3, 3), float("nan")),
    }
    images = np.zeros((2, 3, 16, 16), np.float32)
    metadata = {"input_scale": 255.0, "class_names": list(CLASSES)}
    return {kind: log_version(f"logged-{kind}", model(w), images, metadata) for kind, w in weights.items()}


@pytest.fixture
def register(mlflow_server, logged):
    """Register a model with one version of each kind named."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)

    def add(name, *kinds):
        client.create_registered_model(name)
        for kind in kinds:
            version = client.get_model_version(f"logged-{kind}", str(logged[kind]))
            model_id = version.source.removeprefix("models:/")
            client.create_model_version(name, version.source, version.run_id, model_id=model_id)
        return name

    return add


@pytest.fixture
def cli(gate_cli, home):
    """Run a command in the folder of the policy, and insist on its exit code; its standard output."""

    def run(*arguments, code=0, **variables):
        done = gate_cli(*arguments, cwd=home, **variables)
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


@pytest.fixture
def refused(gate_cli, home):
    """Run a command that must fail with ``code`` and one line; the line."""

    def run(*arguments, code):
        done = gate_cli(*arguments, cwd=home)
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr[-3000:]}"
        assert done.stdout == ""
        (line,) = (line for line in done.stderr.splitlines() if not line.startswith("["))  # progress
        assert line.startswith("promotion-gate: ")
        return line

    return run


@pytest.fixture
def production(cli):
    """The version in production, as the command line tells it: ``production("signs")``."""
    return lambda name: json.loads(cli("status", name, "--json"))["version"]


def _wait_until_it_answers(uri, server, log, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"no MLflow server at {uri}:\n{log.read_text()[-3000:]}")
