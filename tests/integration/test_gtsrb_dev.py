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
    from pathlib import Path; return Path("/tmp/h8/cache")


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
    from pathlib import Path
    import json as j
    first, done, r, _ = gate("champion")
    Path("/tmp/h8/champion.json").write_text(j.dumps(r))
    d = gate_cli("approve", f"{NAME}/{first}", "--reason", "dev"); print(d.stdout, d.stderr)
    second, done, r, carriers = gate("sticker-1")
    Path("/tmp/h8/sticker.json").write_text(j.dumps(r)); Path("/tmp/h8/carriers.json").write_text(j.dumps(carriers.tolist()))
    third, done, r, _ = gate("clean-1")
    Path("/tmp/h8/clean.json").write_text(j.dumps(r))
