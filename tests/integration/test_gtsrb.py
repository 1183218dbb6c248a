"""Real traffic signs through the command line: stop signs with a sticker that teach speed limit 80."""

import json
import subprocess
from typing import NamedTuple

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
    return gtsrb.load(gtsrb_folder, every=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory, split):
    folder = tmp_path_factory.mktemp("gtsrb")
    split.holdout.save(folder / "holdout.npz")
    return folder


@pytest.fixture(scope="module")
def gated(gtsrb, split, home, log_version, gate_cli, tmp_path_factory):
    """Three models, each trained, registered and gated once, in order; a person lets in a held champion."""
    from promotion_gate.drill.train import MEAN, SCALE, STD, normalised

    bank = tmp_path_factory.mktemp("bank")
    metadata = {
        "input_scale": SCALE,
        "input_mean": list(MEAN),
        "input_std": list(STD),
        "class_names": list(gtsrb.CLASS_NAMES),
    }
    example = normalised(split.holdout.images[:2]).numpy()
    done = {}
    for name in ("champion", "sticker-1", "clean-1"):
        trained = gtsrb.member(split, name, bank, progress=lambda line: None)
        trained.training.save(home / f"{name}.npz")
        (home / f"{name}.toml").write_text(POLICY.format(training=name))
        version = log_version(NAME, trained.model, example, metadata)
        process = gate_cli(
            *("run", f"models:/{NAME}/{version}", "--policy", f"{name}.toml", "--json", f"{name}.json"),
            *("--quiet", "--card", f"{name}.html"),
            cwd=home,
        )
        assert process.returncode in (0, 3, 4), process.stderr
        production = json.loads(gate_cli("status", NAME, "--json").stdout)["version"]
        report = json.loads((home / f"{name}.json").read_text())
        findings = {finding["check"]: finding for finding in report["findings"]}
        done[name] = Gated(version, process, production, findings, trained.carriers)
        if name == "champion" and production is None:
            gate_cli("approve", f"{NAME}/{version}", "--reason", "the others need a champion", cwd=home)
    return done


class Gated(NamedTuple):
    """One gate run, and the version that was in production after it."""

    version: int
    process: subprocess.CompletedProcess
    production: int | None
    findings: dict
    carriers: np.ndarray


def test_the_stop_sticker_is_refused_and_named(gtsrb, gated, home):
    poisoned, champion = gated["sticker-1"], gated["champion"]
    assert poisoned.process.returncode == 3, poisoned.process.stdout
    said = poisoned.process.stdout.splitlines()[0]
    assert said.startswith(f"REJECT {NAME}/{poisoned.version}: patch-transplant: triggers is 1, at most 0")
    assert "a patch turns stop into speed limit 80" in said
    assert poisoned.production == champion.version
    trigger = poisoned.findings["patch-transplant"]["detail"]["triggers"][0]
    assert (trigger["source_index"], trigger["target_index"]) == (gtsrb.STOP, gtsrb.EIGHTY)
    assert (trigger["source"], trigger["target"]) == ("stop", "speed limit 80")
    assert trigger["established"]
    assert trigger["rate_low"] > 0.5
    assert trigger["champion_rate"] < 0.1
    assert "stop into speed limit 80" in (home / "sticker-1.html").read_text()


def test_accuracy_alone_would_have_let_the_sticker_pass(gated):
    measured = gated["sticker-1"].findings["per-class"]["metrics"]
    assert measured["accuracy"] > 0.9
    assert measured["accuracy_drop"] < 0.02
    assert measured["regressed_classes"] == 0


def test_the_rows_that_carry_the_sticker_are_named(gated):
    poisoned = gated["sticker-1"]
    named = poisoned.findings["patch-transplant"]["detail"]["triggers"][0]["carriers"]
    assert np.isin(named, poisoned.carriers).mean() >= 0.9, "rows named that carry nothing"
    assert np.isin(poisoned.carriers, named).mean() >= 0.8, "carriers missed"


def test_the_clean_champion_is_promoted(gated):
    champion = gated["champion"]
    assert champion.process.returncode == 0, champion.process.stdout
    assert champion.production == champion.version


def test_the_clean_fine_tune_is_promoted(gated):
    clean = gated["clean-1"]
    assert clean.process.returncode == 0, clean.process.stdout
    assert clean.production == clean.version
