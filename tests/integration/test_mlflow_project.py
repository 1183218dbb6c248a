import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promotion_gate.drill.signs import draw_signs

CLASSES = ("red", "green", "blue")
FOLDER = Path(__file__).parents[2] / "mlflow_project"


@pytest.mark.integration
def test_train_entry_point_registers_a_model_on_the_server(mlflow_server, tmp_path):
    from mlflow import MlflowClient

    draw_signs(60, 1).save(tmp_path / "train.npz")
    command = [
        *(sys.executable, "-m", "mlflow", "run", str(FOLDER), "-e", "train", "--env-manager", "local"),
        *("-P", "data=train.npz", "-P", "name=project-signs", "-P", "epochs=1"),
    ]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow_server,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    version = MlflowClient(mlflow_server).get_model_version("project-signs", "1")
    assert version.status == "READY"


@pytest.mark.integration
def test_gate_and_rollback_entry_points(gate_cli, cli, production, register, home):
    name = register("project", "right", "right", "wrong")
    policy = home / "gate.toml"

    def project(entry, *parameters):
        arguments = [part for parameter in parameters for part in ("-P", parameter)]
        return gate_cli(
            *("run", FOLDER, "-e", entry, "--env-manager", "local", *arguments),
            cwd=home,
            program=("-m", "mlflow"),
        )

    for version in (1, 2):
        done = project("gate", f"model=models:/{name}/{version}", f"policy={policy}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert production(name) == version
    done = project("gate", f"model=models:/{name}/3", f"policy={policy}")
    assert done.returncode == 1
    assert f"REJECT {name}/3" in done.stdout
    assert production(name) == 2
    done = project("rollback", f"name={name}", "reason=it's 'odd'; $(touch pwned)")
    assert done.returncode == 0, done.stderr[-3000:]
    assert production(name) == 1
    last = json.loads(cli("history", name, "--json"))["events"][-1]
    assert last["record"]["reason"] == "it's 'odd'; $(touch pwned)"
    assert project("rollback", "name=$(touch pwned); `touch pwned`", "reason=x").returncode == 1
    for folder in (home, FOLDER):
        assert not (folder / "pwned").exists()

    log = home / "it's $(touch pwned).jsonl"
    start = time.time() - 7200
    rows = [{"time": start + 60 * i, "class": CLASSES[i % 3]} for i in range(110)]
    log.write_text("".join(json.dumps({**row, "version": 1}) + "\n" for row in rows))
    done = project("monitor", f"name={name}", f"log={log}", "window=30m")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert name in done.stdout
    assert not (FOLDER / "pwned").exists()


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_drill_entry_point_leaves_a_post_mortem(gate_cli, tmp_path):
    draw_signs(100, 1).save(tmp_path / "train.npz")
    draw_signs(100, 2).save(tmp_path / "holdout.npz")
    (tmp_path / "ours.toml").write_text(
        """
name = "ours"
champion = false
data = { training = { path = "train.npz" }, holdout = { path = "holdout.npz" } }
attack = { kind = "label-flip", source = "stop", target = "yield", rate = 0.02 }
training = { epochs = 1 }
gate.policy = { version = 1, checks.per-class.bounds.accuracy.min = 0.9 }
"""
    )
    parameters = (f"scenario={tmp_path / 'ours.toml'}", f"dir={tmp_path / 'drills'}", "seed=4")
    done = gate_cli(
        *("run", FOLDER, "-e", "drill", "--env-manager", "local"),
        *(part for parameter in parameters for part in ("-P", parameter)),
        program=("-m", "mlflow"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (report,) = (tmp_path / "drills").glob("drills/*/post-mortem.md")
    assert "ours" in report.read_text()
