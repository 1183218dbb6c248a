"""Real drills through the command line, on few images: what is trained, told, kept and taken up again."""

import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.drill.run import open_home, run_drill
from promotion_gate.drill.scenario import make_scenario
from promotion_gate.drill.signs import draw_signs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

TRAIN = (
    f"{shlex.quote(sys.executable)} -m promotion_gate.drill.train --epochs 1 --data {{data}} --name {{name}}"
)
BLIND = {"version": 1, "checks": {"per-class": {"bounds": {"accuracy": {"min": 0}}}}}
CAMPAIGN = f"""
name = "few"
seeds = [1]
jobs = 2

[changes]
champion = false

[changes.gate.policy]
version = 1
[changes.gate.policy.checks.per-class.bounds]
accuracy = {{ min = 0 }}

[changes.data]
training = {{ path = "train.npz" }}
holdout = {{ path = "holdout.npz" }}

[changes.training]
epochs = 1

[[drill]]
scenario = "flips"
attack = {{ rate = 0.01 }}

[[drill]]
name = "our own training"
champion = true
attack = {{ kind = "clean" }}
training = {{ command = {json.dumps(shlex.split(TRAIN))}, timeout = 300 }}

[[drill]]
name = "broken training"
attack = {{ kind = "clean" }}
training = {{ command = ["python3", "-c", "raise SystemExit('out of disk')", "{{data}} {{name}}"] }}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drills")
    draw_signs(200, 1).save(folder / "train.npz")
    draw_signs(240, 2).save(folder / "holdout.npz")
    (folder / "few.toml").write_text(CAMPAIGN)
    return folder


@pytest.fixture(scope="module")
def drilled(home, gate_cli):
    """The campaign, run once: the process and the digest of the original data before."""
    before = hashlib.sha256((home / "train.npz").read_bytes()).hexdigest()
    return gate_cli("drill", "campaign", "few.toml", "--out", "out", "--quiet", cwd=home, seconds=600), before


def outcomes(home):
    lines = (home / "out" / "outcomes.jsonl").read_text().splitlines()
    return {line["scenario"]: line for line in map(json.loads, lines)}


def test_a_poisoned_model_that_gets_through_ends_the_campaign_with_3(drilled, home):
    process, _ = drilled
    assert process.returncode == 3, process.stdout + process.stderr
    assert process.stdout.startswith("1 GOT THROUGH few: 0 of 1 poisoned models caught")
    flips = outcomes(home)["flips"]
    assert (flips["outcome"], flips["caught"], flips["time_to_detection_s"]) == ("PROMOTE", False, None)
    assert flips["carriers_true"] == 2
    assert (flips["sources_true"], flips["targets_true"]) == (["stop"], ["priority road"])


def test_the_teams_own_command_trains_champion_and_candidate(drilled, home):
    own = outcomes(home)["our own training"]
    assert own["outcome"] == "PROMOTE"
    assert own["model"].endswith("/2")
    assert 0 <= own["accuracy"] <= 1
    assert 0 <= own["champion_accuracy"] <= 1


def test_a_failing_command_is_told_in_one_line_and_the_others_go_on(drilled, home):
    process, _ = drilled
    failed = [line for line in process.stdout.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert (
        "broken training with seed 1: the training command ended with exit code 1: out of disk" in failed[0]
    )
    assert "broken training" not in outcomes(home)


def test_nothing_half_registered_and_the_original_untouched(drilled, home):
    from mlflow import MlflowClient

    _, before = drilled
    assert hashlib.sha256((home / "train.npz").read_bytes()).hexdigest() == before
    client = MlflowClient(f"sqlite:///{home}/out/mlflow.db")
    models = {model.name: model.tags for model in client.search_registered_models()}
    assert all(name.startswith("drill-") and "promotion_gate.drill" in tags for name, tags in models.items())
    assert not [name for name in models if "broken" in name]


def test_every_drill_leaves_a_post_mortem_and_every_gap_a_ticket(drilled, home):
    folder = home / "out" / "drills" / "drill-flips-1"
    assert "GOT THROUGH" in (folder / "post-mortem.html").read_text()
    for name in (
        "post-mortem.md",
        "card.html",
        "findings.json",
        "policy.toml",
        "answers.json",
        "outcome.json",
    ):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "data").exists(), "poisoned copies of a campaign are not kept"
    assert (home / "out" / "tickets" / "got-through-flips.md").is_file()
    assert (home / "out" / "campaign.html").is_file()


def test_a_campaign_goes_on_where_it_was(drilled, home, gate_cli):
    path = home / "out" / "outcomes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    kept = next(line for line in lines if '"our own training"' in line)
    path.write_text(kept + lines[0][:30])
    before = sorted(folder.name for folder in (home / "out" / "drills").iterdir())
    process = gate_cli("drill", "campaign", "few.toml", "--out", "out", cwd=home, seconds=600)
    assert process.returncode == 3, process.stderr
    assert "3 drills, 1 of them done already" in process.stderr
    assert "epoch" not in process.stderr, "the model was kept"
    after = {folder.name for folder in (home / "out" / "drills").iterdir()} - set(before)
    assert not [name for name in after if "our-own" in name]
    assert "drill-flips-1-2" in after
    assert path.read_text().splitlines(keepends=True)[0] == kept
    assert set(outcomes(home)) == {"flips", "our own training"}


def test_edited_answers_end_the_drill_and_leave_nothing_registered(home, tmp_path):
    from mlflow import MlflowClient

    data = {"training": {"path": "train.npz"}, "holdout": {"path": "holdout.npz"}}
    scenario = make_scenario(
        {
            "name": "edited",
            "data": data,
            "attack": {"kind": "clean"},
            "training": {"epochs": 1},
            "gate": {"policy": BLIND},
            "champion": False,
        },
        home,
        "edited.toml",
    )
    place = open_home(tmp_path / "out")

    def edit(line):
        if line == "train the candidate":
            (answers,) = (tmp_path / "out" / "drills").glob("*/answers.json")
            answers.write_text(answers.read_text().replace('"clean"', '"patch"'))

    with pytest.raises(UsageError, match="was edited"):
        run_drill(scenario, 1, place, progress=edit)
    assert not MlflowClient(place.registry.uri).search_registered_models()


STUCK = """
name = "stuck"
champion = false
attack = { kind = "clean" }
data = { training = { path = "train.npz" }, holdout = { path = "holdout.npz" } }
training = { command = ["python3", "train.py", "{data} {name}"], timeout = 600 }
gate = { policy = { version = 1, checks = { per-class = { bounds = { accuracy = { min = 0 } } } } } }
"""
STUCK_TRAINING = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"


def test_a_cancelled_drill_ends_its_training_and_takes_back_what_it_registered(home, tmp_path):
    from mlflow import MlflowClient

    shutil.copy(home / "train.npz", tmp_path)
    shutil.copy(home / "holdout.npz", tmp_path)
    (tmp_path / "stuck.toml").write_text(STUCK)
    (tmp_path / "train.py").write_text(STUCK_TRAINING)
    command = [sys.executable, "-m", "promotion_gate", "drill", "run", "stuck.toml", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            started = [path for path in tmp_path.rglob("pid") if path.read_text()]
            if started or process.poll() is not None:
                break
            time.sleep(0.2)
        assert started, process.stderr.read()
        training = Path(f"/proc/{started[0].read_text()}")
        assert training.exists()
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM
    finally:
        process.kill()
        _, said = process.communicate()
    assert not training.exists()
    assert "Traceback" not in said
    assert not MlflowClient(f"sqlite:///{tmp_path}/drills/mlflow.db").search_registered_models()
