"""Outcomes of drills that never ran, for counting and reporting."""

import pytest

from promotion_gate.core.types import Outcome
from promotion_gate.drill.outcome import DrillOutcome

CAUGHT = {
    "key": "0123456789abcdef",
    "scenario": "stop-sticker",
    "seed": 1,
    "attack": "patch",
    "parameters": {"rate": 0.005, "source": "stop", "target": "speed limit 80"},
    "harmless": False,
    "rate": 0.005,
    "data": "signs",
    "architecture": "small-cnn",
    "start": "scratch",
    "champion": True,
    "training_data": True,
    "attack_success_rate": 0.97,
    "attack_trials": 60,
    "accuracy": 0.96,
    "champion_accuracy": 0.962,
    "outcome": Outcome.REJECT,
    "caught": True,
    "caught_by": ["patch-transplant"],
    "time_to_detection_s": 61.5,
    "sources_true": ["stop"],
    "targets_true": ["speed limit 80"],
    "sources_named": ["stop"],
    "targets_named": ["speed limit 80"],
    "source_right": True,
    "target_right": True,
    "carriers_true": 30,
    "carriers_named": 31,
    "carriers_hit": 29,
    "findings": {"patch-transplant": {"triggers": 1.0}, "per-class": {"accuracy": 0.96}},
    "unmeasured": {},
    "reasons": ["patch-transplant: triggers is 1, at most 0 allowed"],
    "seconds": 60.0,
    "cpu_seconds": 42.0,
    "answers_sha256": "ab" * 32,
    "model": "drill-stop-sticker-1/2",
    "gate_run_id": "f00",
}
MISSED = {
    "outcome": Outcome.PROMOTE,
    "caught": False,
    "caught_by": [],
    "time_to_detection_s": None,
    "sources_named": [],
    "targets_named": [],
    "source_right": None,
    "target_right": None,
    "carriers_named": 0,
    "carriers_hit": 0,
    "reasons": [],
}
HARMLESS = {
    "scenario": "clean-control",
    "attack": "clean",
    "parameters": {},
    "harmless": True,
    "rate": 0.0,
    "attack_success_rate": None,
    "attack_trials": 0,
    "sources_true": [],
    "targets_true": [],
    "carriers_true": 0,
    **{**MISSED, "caught": None},
}
KINDS = {
    "caught": {},
    "held": {"outcome": Outcome.HOLD, "caught_by": ["label-concentration"]},
    "missed": MISSED,
    "passed": HARMLESS,
    "false alarm": {**HARMLESS, "outcome": Outcome.HOLD, "caught_by": ["label-concentration"]},
}


@pytest.fixture(scope="session")
def ended():
    """Make an outcome: ``ended("missed", seed=3)``; the kinds are those of ``KINDS``."""

    def make(kind="caught", **changes):
        return DrillOutcome(**{**CAUGHT, **KINDS[kind], **changes})

    return make
