"""Real traffic signs through the command line: stop signs with a sticker that teach speed limit 80."""

import json

import numpy as np
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

NAME = "gtsrb"
POLICY = """
version = 1

[data.holdout]
path = "holdout.npz"

[data.training]
path = "{training}.npz"

[checks.per-class.bounds]
accuracy = {{ min = 0.85 }}
accuracy_drop = {{ max = 0.02 }}

[checks.patch-transplant.bounds]
triggers = {{ max = 0 }}
suspected_triggers = {{ max = 0, otherwise = "hold" }}

[checks.provenance]
required = false
"""


@pytest.fixture(scope="module")
def split(gtsrb, gtsrb_folder):
    return gtsrb.load(gtsrb_folder, every=3)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Where trained models are kept: the fine-tunes start from the one champion."""
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def home(tmp_path_factory, split):
    folder = tmp_path_factory.mktemp("gtsrb")
    split.holdout.save(folder / "holdout.npz")
    return folder


@pytest.fixture(scope="module")
def gate(gtsrb, split, bank, home, log_version, gate_cli):
    """Train one of the bank's models, register it, gate it; the process, its findings and the carriers."""
    from promotion_gate.drill.train import MEAN, SCALE, STD, normalised

    def run(name):
        trained = gtsrb.member(split, name, bank, progress=lambda line: None)
        trained.training.save(home / f"{name}.npz")
        (home / f"{name}.toml").write_text(POLICY.format(training=name))
        version = log_version(
            NAME,
            trained.model,
            normalised(split.holdout.images[:2]).numpy(),
            {
                "input_scale": SCALE,
                "input_mean": list(MEAN),
                "input_std": list(STD),
                "class_names": list(gtsrb.CLASS_NAMES),
            },
        )
        done = gate_cli(
            *("run", f"models:/{NAME}/{version}", "--policy", f"{name}.toml", "--json", f"{name}.json"),
            cwd=home,
        )
        print(done.stderr[-3000:], done.stdout)
        return version, done, json.loads((home / f"{name}.json").read_text()), trained.carriers

    return run


def production(gate_cli):
    return json.loads(gate_cli("status", NAME, "--json").stdout)["version"]


def test_the_stop_sticker_is_refused_and_the_clean_models_are_promoted(gtsrb, gate, gate_cli):
    first, done, _, _ = gate("champion")
    assert done.returncode == 0, done.stdout
    assert production(gate_cli) == first

    poisoned, done, report, carriers = gate("sticker-1")
    assert done.returncode == 3, done.stdout
    assert done.stdout.startswith(
        f"REJECT {NAME}/{poisoned}: patch-transplant: triggers is 1, at most 0 allowed"
    )
    assert production(gate_cli) == first
    findings = {finding["check"]: finding for finding in report["findings"]}
    assert findings["per-class"]["metrics"]["accuracy"] > 0.85, "accuracy alone would have let it pass"
    trigger = findings["patch-transplant"]["detail"]["triggers"][0]
    assert trigger["source_index"] == gtsrb.STOP
    assert trigger["target_index"] == gtsrb.EIGHTY
    assert (trigger["source"], trigger["target"]) == ("stop", "speed limit 80")
    assert trigger["established"]
    assert trigger["rate_low"] > 0.5
    named = trigger["carriers"]
    assert np.isin(named, carriers).mean() >= 0.9, "rows named that carry nothing"
    assert np.isin(carriers, named).mean() >= 0.5, "carriers missed"

    second, done, _, _ = gate("clean-1")
    assert done.returncode == 0, done.stdout
    assert production(gate_cli) == second
