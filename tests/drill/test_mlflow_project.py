import shlex
from pathlib import Path

import pytest
from mlflow.projects._project_spec import load_project

from promotion_gate import cli
from promotion_gate.drill.train import _parser

FOLDER = Path(__file__).parents[2] / "mlflow_project"
HOSTILE = '--help\'; $(touch pwned) "`id`" \n|'


@pytest.fixture(scope="module")
def project():
    return load_project(FOLDER)


def _words(project, entry, parameters, storage):
    """The command's words as the shell sees them."""
    return shlex.split(project.get_entry_point(entry).compute_command(parameters, str(storage)))


def test_train_command_is_one_that_train_takes(project, tmp_path):
    parameters = {"data": str(tmp_path), "name": HOSTILE, "epochs": "3"}
    words = _words(project, "train", parameters, tmp_path)
    assert words[:3] == ["python", "-m", "promotion_gate.drill.train"]
    asked = _parser().parse_args(words[3:])
    assert (asked.name, asked.data, asked.holdout, asked.epochs) == (HOSTILE, str(tmp_path), "", 3)


def test_gate_and_rollback_pass_hostile_values_as_one_word(project, tmp_path):
    words = _words(project, "gate", {"model": HOSTILE, "policy": str(tmp_path)}, tmp_path)
    assert words == ["python", "-m", "promotion_gate", "run", f"--policy={tmp_path}", "--", HOSTILE]
    words = _words(project, "rollback", {"name": HOSTILE, "reason": HOSTILE}, tmp_path)
    assert words == ["python", "-m", "promotion_gate", "rollback", f"--reason={HOSTILE}", "--", HOSTILE]


def test_monitor_passes_hostile_values_as_one_word(project, tmp_path):
    words = _words(project, "monitor", {"name": HOSTILE, "log": HOSTILE, "window": HOSTILE}, tmp_path)
    program = ["python", "-m", "promotion_gate", "monitor"]
    assert words == [*program, f"--log={HOSTILE}", f"--window={HOSTILE}", "--", HOSTILE]
    words = _words(project, "monitor", {"name": "signs", "log": "s3://logs/*.parquet"}, tmp_path)
    asked = vars(cli._parser().parse_args(words[3:]))
    assert (asked["words"], asked["log"], asked["window"]) == (["signs"], ["s3://logs/*.parquet"], 3600)


def test_relative_paths_are_the_callers(project, tmp_path, monkeypatch):
    (tmp_path / "gate.toml").touch()
    monkeypatch.chdir(tmp_path)
    words = _words(project, "gate", {"model": "models:/m/1", "policy": "gate.toml"}, tmp_path)
    assert f"--policy={tmp_path}/gate.toml" in words


def test_drill_works_as_it_is_and_passes_hostile_values_as_one_word(project, tmp_path):
    program = ["python", "-m", "promotion_gate", "drill", "run"]
    words = _words(project, "drill", {}, tmp_path)
    assert words == [*program, "--seed=0", "--dir=../drills", "--tracking-uri=", "--", "stop-sticker"]
    words = _words(project, "drill", {"scenario": HOSTILE, "dir": HOSTILE, "seed": "3"}, tmp_path)
    assert words == [*program, "--seed=3", f"--dir={HOSTILE}", "--tracking-uri=", "--", HOSTILE]
