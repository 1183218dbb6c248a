"""The signed baseline: what it states, what it refuses, and that it is bound to version, bytes and record."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from promotion_gate.core.errors import InputError, NotInRegistry, SigningError, UsageError
from promotion_gate.core.production import Production
from promotion_gate.core.types import ModelRef
from promotion_gate.monitor.baseline import (
    WINDOW_BASELINE_FILE,
    load_baseline,
    sign_baseline,
    verify_baseline,
)
from promotion_gate.monitor.interface import BASELINE_FILE
from promotion_gate.monitor.make_baseline import make_baseline

NOW = 1_780_000_000.0 // 3600 * 3600
PRODUCTION = Production()


@pytest.fixture
def made(world):
    return load_baseline(world.registry, world.ref, world.keys.trusted)


def run_of(world):
    return world.registry.last_gate_run(world.ref)


def test_the_gates_baseline_is_found_and_says_what_the_holdout_showed(made):
    assert made.source == "holdout"
    assert made.total == 20_000
    assert made.class_names == ("Stop", "Yield", "Speed limit 80")
    assert np.array(made.confidence).sum(axis=1).tolist() == list(made.counts[0])
    assert len(made.embedding_distance) == 101
    assert made.embedding_distance[50] == pytest.approx(1.83, abs=0.1)  # chi distribution with 4 degrees


def test_signing_and_verifying_keep_everything(made, world):
    assert verify_baseline(sign_baseline(made, world.keys.signing), world.keys.trusted) == made


@pytest.mark.parametrize(
    "change",
    [
        {"counts": ((1, 2),)},
        {"counts": ((0, 0, 0),)},
        {"counts": ((1, 2, -1),)},
        {"class_names": ("a", "a", "b")},
        {"confidence_edges": (0.0, 0.5, 0.4, 1.0)},
        {"confidence": ((1, 2, 3),)},
        {"embedding_distance": ()},
        {"embedding_mean": (float("nan"),) * 4},
        {"confidence_rho": (0.1,)},
        {"digest": "nonsense"},
        {"at": datetime(2026, 1, 1)},
    ],
)
def test_a_baseline_that_makes_no_sense_is_not_signed(made, world, change):
    with pytest.raises(SigningError, match="cannot be signed"):
        sign_baseline(replace(made, **change), world.keys.signing)


def test_an_altered_baseline_is_refused(world):
    run = run_of(world)
    content = json.loads(world.registry.read_file(run, BASELINE_FILE))
    content["payload"] = content["payload"][:-8] + "AAAAAAA="
    world.registry.log_file(run, BASELINE_FILE, json.dumps(content).encode())
    with pytest.raises(SigningError, match="altered"):
        load_baseline(world.registry, world.ref, world.keys.trusted)


def test_another_signed_baseline_in_its_place_is_refused(made, world):
    other = sign_baseline(replace(made, at=datetime(2027, 1, 1, tzinfo=UTC)), world.keys.signing)
    world.registry.log_file(run_of(world), BASELINE_FILE, other)
    with pytest.raises(SigningError, match="the record names another SHA-256"):
        load_baseline(world.registry, world.ref, world.keys.trusted)


def test_a_missing_baseline_is_not_passed_over(world):
    del world.store.runs[run_of(world)].files[BASELINE_FILE]
    with pytest.raises(SigningError, match="missing"):
        load_baseline(world.registry, world.ref, world.keys.trusted)


def test_a_window_baseline_by_a_stranger_is_refused_and_not_passed_over(made, world, stranger):
    foreign = sign_baseline(
        replace(made, source="window", at=datetime(2027, 1, 1, tzinfo=UTC)), stranger.signing
    )
    world.registry.log_file(run_of(world), WINDOW_BASELINE_FILE, foreign)
    with pytest.raises(SigningError, match="trust"):
        load_baseline(world.registry, world.ref, world.keys.trusted)


@pytest.mark.parametrize(
    "change", [{"digest": "2" * 64}, {"ref": ModelRef("signs", 9)}, {"source": "holdout"}]
)
def test_a_window_baseline_of_something_else_is_refused(made, world, change):
    other = replace(made, source="window", at=datetime(2027, 1, 1, tzinfo=UTC))
    content = sign_baseline(replace(other, **change), world.keys.signing)
    world.registry.log_file(run_of(world), WINDOW_BASELINE_FILE, content)
    with pytest.raises(SigningError, match="another version or other bytes"):
        load_baseline(world.registry, world.ref, world.keys.trusted)


def test_a_version_judged_before_there_were_baselines_has_none(world):
    ref = ModelRef("signs", 2)
    world.promote(ref)
    with pytest.raises(NotInRegistry, match="has no baseline"):
        load_baseline(world.registry, ref, world.keys.trusted)


def test_a_baseline_that_the_record_does_not_name_is_none(world):
    ref = ModelRef("signs", 2)
    world.promote(ref, world.of_holdout, named=False)
    with pytest.raises(NotInRegistry, match="has no baseline"):
        load_baseline(world.registry, ref, world.keys.trusted)


def test_a_version_never_judged_is_said(world):
    world.store.add_version(ModelRef("signs", 5), {"a": b"b"})
    with pytest.raises(NotInRegistry, match="no verified record"):
        load_baseline(world.registry, ModelRef("signs", 5), world.keys.trusted)


# From a stretch of production.


def write_log(path, hours=30, rows=400, scatter=0.0, names=("Stop", "Yield", "Speed limit 80"), version=1):
    rng = np.random.default_rng(5)
    lines = []
    for hour in range(hours):
        share = np.array([0.6, 0.3, 0.1])
        if scatter:
            share = rng.dirichlet(share / scatter)
        for name in rng.choice(3, rows, p=share):
            at = NOW - 360_000 + 3600 * (hour + rng.random())
            line = {
                "time": at,
                "class": names[name],
                "confidence": 0.9 + rng.random() / 20,
                "version": version,
            }
            lines.append(json.dumps(line | {"embedding": rng.normal(0, 1, 4).tolist()}))
    path.write_text("\n".join(lines) + "\n")
    return path


def make(world, path, since=None, until=None, window=3600.0):
    return make_baseline(
        world.registry, "signs", [str(path)], PRODUCTION, window, since, until, keys=world.keys
    )


def test_a_stretch_of_production_makes_a_baseline_that_takes_precedence(world, tmp_path):
    lines = make(world, write_log(tmp_path / "log.jsonl"))
    found = load_baseline(world.registry, world.ref, world.keys.trusted)
    assert found.source == "window"
    assert len(found.counts) == 30
    assert found.total == 12_000
    assert len(found.embedding_mean) == 4
    assert max(found.confidence_rho) == 0
    assert "no more than chance" in lines[-1]


def test_windows_that_scatter_are_noticed(world, tmp_path):
    lines = make(world, write_log(tmp_path / "log.jsonl", scatter=0.05))
    assert "beta-binomial for 3 classes" in lines[-1]


def test_from_and_to_cut_the_stretch(world, tmp_path):
    path = write_log(tmp_path / "log.jsonl")
    make(world, path, since=NOW - 360_000 + 7200, until=NOW - 360_000 + 4 * 3600)
    assert len(load_baseline(world.registry, world.ref, world.keys.trusted).counts) == 2


def test_a_stretch_without_predictions_is_said(world, tmp_path):
    path = write_log(tmp_path / "log.jsonl", hours=1)
    with pytest.raises(InputError, match="no prediction of signs/1"):
        make(world, path, since=NOW)
    with pytest.raises(InputError, match="no prediction of signs/1"):
        make(world, write_log(tmp_path / "other.jsonl", hours=1, version=4))
    with pytest.raises(UsageError, match="--from is not before --to"):
        make(world, path, since=2.0, until=1.0)


def test_a_class_that_the_version_does_not_have_is_refused(world, tmp_path):
    path = write_log(tmp_path / "log.jsonl", hours=1, names=("Stop", "Yield", "Pizza"))
    with pytest.raises(InputError, match="Pizza"):
        make(world, path)


def test_without_an_older_baseline_the_log_names_the_classes(world, tmp_path):
    ref = ModelRef("signs", 2)
    world.promote(ref)
    path = write_log(tmp_path / "log.jsonl", hours=2, version=2)
    make_baseline(world.registry, "signs", [str(path)], PRODUCTION, 3600.0, None, None, keys=world.keys)
    found = load_baseline(world.registry, ref, world.keys.trusted)
    assert found.class_names == ("Speed limit 80", "Stop", "Yield")
    assert found.total == 800
