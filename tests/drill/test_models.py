"""The team's own training command: run without a shell, in a process group that ends with it."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from promotion_gate.drill.models import DrillFailed, measuring, run_command

HOSTILE = "x; touch pwned $(id) {seed}"


@pytest.fixture
def command(tmp_path):
    """Run Python source as the training command; the words after it are its arguments."""

    def run(source, *words, timeout=60.0, name="drill-x-1"):
        values = {
            "data": str(tmp_path / "data.npz"),
            "name": name,
            "seed": "7",
            "tracking_uri": "sqlite:///drill.db",
        }
        (tmp_path / "train.py").write_text(source)
        run_command(
            (sys.executable, "train.py", *words),
            values,
            folder=tmp_path,
            timeout=timeout,
            log=tmp_path / "training.log",
            progress=lambda line: None,
        )

    return run


def test_placeholders_are_put_in_as_they_are_and_mlflow_points_to_the_drill(command, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "the projects own run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://production")
    source = """
import json, os, sys
told = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
json.dump([sys.argv[1:], told, os.getcwd()], open("told.json", "w"))
"""
    command(source, "--data={data}", "{name}", "--seed", "{seed}", "{unknown}", name=HOSTILE)
    words, environment, folder = json.loads((tmp_path / "told.json").read_text())
    assert words == [f"--data={tmp_path}/data.npz", HOSTILE, "--seed", "7", "{unknown}"]
    assert environment["MLFLOW_TRACKING_URI"] == environment["MLFLOW_REGISTRY_URI"] == "sqlite:///drill.db"
    assert "MLFLOW_RUN_ID" not in environment
    assert Path(folder) == tmp_path
    assert not (tmp_path / "pwned").exists()


def test_a_command_that_fails_says_so_with_its_last_word(command):
    with pytest.raises(DrillFailed) as error:
        command("print('epoch 1')\nraise SystemExit('no GPU\\x1b[2J here')")
    assert "ended with exit code 1: no GPU" in str(error.value)
    assert "training.log" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_command_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DrillFailed, match="'no-such-program' cannot be started: No such file"):
        run_command(
            ("no-such-program",),
            {"tracking_uri": "x"},
            folder=tmp_path,
            timeout=5,
            log=tmp_path / "log",
            progress=lambda line: None,
        )


def gone(pid):
    """Whether the process has ended; a zombie that nobody has waited for has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until_gone(pid):
    for _ in range(200):
        if gone(pid):
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("child", "w").write(str(child.pid))
"""


def test_a_command_that_never_ends_is_ended_with_all_it_started(command, tmp_path):
    with pytest.raises(DrillFailed, match="did not end within 2 s"):
        command(f"{CHILD}\nchild.wait()", timeout=2)
    assert wait_until_gone(int((tmp_path / "child").read_text()))


def test_nothing_that_the_command_left_behind_goes_on(command, tmp_path):
    command(CHILD)
    assert wait_until_gone(int((tmp_path / "child").read_text()))


def test_what_subprocesses_use_is_counted(command):
    with measuring() as cost:
        command("t = 0\nfor i in range(3_000_000): t += i")
    assert cost.cpu_seconds > 0
    assert cost.seconds > 0
