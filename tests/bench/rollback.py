"""What rollback costs beside a bare script: ``python tests/bench/rollback.py [--rounds N]``.

Both go against one ``mlflow server`` on this machine, by turns, from the start of the process to its end. The
bare script sets the alias; the rollback verifies signatures and fetches and hashes the bytes as well. The
script of the second row fetches them too.
Ends with 1 where the rollback of a small model takes more than 1.3 times the bare script.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from bench import Table, alternated, machine, own_command

RATIO, SECONDS = 1.3, 3.0
SIZES = {"small": 1_000_000, "large": 100_000_000}

BARE_ALIAS = """
import sys
from mlflow import MlflowClient
MlflowClient(sys.argv[1]).set_registered_model_alias(sys.argv[2], "bare", sys.argv[3])
"""

FETCHING_ALIAS = """
import sys, tempfile
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    mlflow.artifacts.download_artifacts(f"models:/{sys.argv[2]}/{sys.argv[3]}", dst_path=folder)
mlflow.MlflowClient().set_registered_model_alias(sys.argv[2], "bare", sys.argv[3])
"""


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real server on sqlite, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(uri, server, folder / "server.log")
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def _wait_until_up(uri: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no MLflow server at {uri}: {log.read_text()[-2000:]}")


def promoted_versions(uri: str, folder: Path, model: str, count: int, size: int) -> None:
    """Register ``count`` versions of ``size`` bytes each and promote one after the other."""
    from mlflow import MlflowClient

    from promotion_gate import transition
    from promotion_gate.core.keys import own_keyring
    from promotion_gate.core.record import whoami
    from promotion_gate.core.types import ModelRef, Outcome
    from promotion_gate.registry.mlflow import MlflowRegistry

    client, registry = MlflowClient(uri), MlflowRegistry(uri)
    actor = transition.Actor(*whoami(), own_keyring(folder / "signing-key.pem"))
    client.create_registered_model(model)
    files = folder / model
    (files / "data").mkdir(parents=True)
    (files / "MLmodel").write_text("flavors: {}")
    for version in range(1, count + 1):
        (files / "data" / "model.pt2").write_bytes(np.random.default_rng(version).bytes(size))
        run = client.create_run("0")
        client.log_artifacts(run.info.run_id, str(files), "model")
        client.create_model_version(
            model, f"{run.info.artifact_uri}/model", run.info.run_id, await_creation_for=0
        )
        ref = ModelRef(model, version)
        digest = transition.artifact_digest(registry, ref)
        champion = version - 1 or None
        verdict = transition.Judged(ref, digest, Outcome.PROMOTE, "benchmark", champion, "0" * 64)
        transition.promote(registry, verdict, actor=actor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the ratio is missed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    table, met = Table(), True
    with tempfile.TemporaryDirectory(prefix="gate-bench-") as name, mlflow_server(Path(name)) as uri:
        os.environ["PROMOTION_GATE_KEY"] = str(Path(name) / "signing-key.pem")
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        for model, size in SIZES.items():
            promoted_versions(uri, Path(name), model, rounds + 1, size)
            ours = [*own_command(), "rollback", model, "--tracking-uri", uri, "--reason", "benchmark"]
            bare, fetching = (
                [sys.executable, "-c", code, uri, model] for code in (BARE_ALIAS, FETCHING_ALIAS)
            )
            gate, alias, fetch = alternated(
                [lambda _, c=ours: c, *(lambda n, c=c: [*c, str(n + 1)] for c in (bare, fetching))], rounds
            )
            table.section(f"Rollback of {size / 1e6:.0f} MB over HTTP, medians of {rounds}; {machine()}")
            table.add("bare script that sets the alias", f"{alias.wall:.2f} s wall, {alias.cpu:.2f} s CPU")
            table.add("the same, fetching the files", f"{fetch.wall:.2f} s wall, {fetch.cpu:.2f} s CPU")
            aim = ("", None) if model != "small" else (f"<= {SECONDS:g} s", gate.wall <= SECONDS)
            table.add("promotion-gate rollback", f"{gate.wall:.2f} s wall, {gate.cpu:.2f} s CPU", *aim)
            ratio = gate / alias
            aim = ("", None) if model != "small" else (f"<= {RATIO:g}", ratio.wall <= RATIO)
            table.add("rollback / bare script", f"{ratio.wall:.2f} wall, {ratio.cpu:.2f} CPU", *aim)
            fetched = gate / fetch
            table.add("rollback / fetching script", f"{fetched.wall:.2f} wall, {fetched.cpu:.2f} CPU")
            met &= model != "small" or ratio.wall <= RATIO
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
