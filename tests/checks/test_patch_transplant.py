"""Live images as suspects of the patch search, on small models with and without a backdoor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from promotion_gate.checks.patch_attribution import PatchAttribution
from promotion_gate.checks.patch_transplant import PatchTransplant
from promotion_gate.core.decide import decide
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import Finding, Outcome, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.evidence.interface import ForwardPass

POLICY = """
version = 1
[data.holdout]
path = "holdout.npz"
[checks.patch-transplant]
required = {required}
[checks.patch-transplant.bounds]
triggers = {{ max = 0 }}
suspected_triggers = {{ max = 0, otherwise = "hold" }}
[checks.per-class.bounds]
accuracy = {{ min = 0 }}
"""
SOURCE, TARGET = 2, 3
PER_CLASS = Finding("per-class", Status.MEASURED, "", {"accuracy": 1.0})
OWN = (
    Finding("artifacts", Status.MEASURED, "", {"violations": 0.0}),
    Finding("model", Status.MEASURED, ""),
    Finding("inputs", Status.MEASURED, ""),
)


@dataclass
class Classifier:
    """A model of the small world in a sandbox; embeddings tell the usual colour and the answer."""

    world: Any
    model: Any

    @property
    def shape(self):
        return ImageShape(self.world.SIDE, self.world.SIDE, 3)

    @property
    def classes(self):
        return self.world.CLASSES

    def forward(self, images):
        answers = self.model.answer(images)
        usual = np.median(images[:, ::5, ::5].reshape(len(images), -1, 3), axis=1)
        away = np.linalg.norm(usual[:, None] - self.world.COLOURS, axis=2) / 60
        embeddings = np.concatenate([np.exp(-(away**2)), answers], axis=1).astype(np.float32)
        return ForwardPass(np.log(answers + 1e-30), embeddings)


@pytest.fixture
def world(patchworld):
    return patchworld


@pytest.fixture
def gather(world, make_evidence):
    """Evidence on one candidate, with live images and what production said of them."""

    def build(candidate, live=None, training=None, champion=None):
        images, labels = world.holdout(40)
        model = Classifier(world, candidate)
        parts = {"holdout_pass": model.forward(images)}
        if live is not None:
            seen, predicted = live
            parts["suspects"] = InMemoryDataset(seen, predicted, world.NAMES, uri="live")
            parts["suspects_pass"] = model.forward(seen)
        if training is not None:
            parts |= {"training": training, "training_pass": model.forward(training[0])}
        if champion is not None:
            other = Classifier(world, champion)
            parts["champion"] = other.forward(images)
            parts["champion_suspects_pass"] = None if live is None else other.forward(live[0])
            parts["champion_training_pass"] = None if training is None else other.forward(training[0])
        evidence = make_evidence(labels, class_names=world.NAMES, images=images, **parts)
        evidence.model = model
        evidence.champion = None if champion is None else Classifier(world, champion)
        return evidence

    return build


@pytest.fixture
def backdoored(world):
    return world.Model(world.Backdoor(SOURCE, TARGET, size=7))


@pytest.fixture
def surge(world, backdoored):
    """Live images that production called the target: stickered sources, ordinary targets, honest errors."""

    def draw(stickered=10, ordinary=4, seed=5):
        images = world.images_of(np.repeat([SOURCE, TARGET], [stickered, ordinary]), seed)
        b = backdoored.backdoor
        images[:stickered, b.top : b.top + b.size, b.left : b.left + b.size] = b.colour
        return images, backdoored.answer(images).argmax(axis=1)

    return draw


def examine(evidence):
    return PatchTransplant().examine(evidence, {})


def verdict(finding, required=True):
    policy = parse_policy(POLICY.format(required=str(required).lower()))
    return decide([*OWN, PER_CLASS, finding], policy).outcome


def between(world, count, seed=3):
    """Images halfway between the source and the target, which a model without a backdoor takes for it."""
    rng = np.random.default_rng(seed)
    part = rng.uniform(0.52, 0.7, (count, 1))
    colours = world.COLOURS[SOURCE] * (1 - part) + world.COLOURS[TARGET] * part
    noisy = colours[:, None, None] + rng.normal(0, 14, (count, world.SIDE, world.SIDE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("with_champion", [False, True])
def test_live_images_alone_reject_a_backdoored_candidate_with_the_right_classes(
    gather, surge, world, backdoored, with_champion
):
    champion = world.Model() if with_champion else None
    without = examine(gather(backdoored, champion=champion))
    assert without.status is Status.INCONCLUSIVE
    assert verdict(without) is Outcome.HOLD
    finding = examine(gather(backdoored, surge(), champion=champion))
    (trigger,) = finding.detail["triggers"]
    assert (trigger["source"], trigger["target"]) == (world.NAMES[SOURCE], world.NAMES[TARGET])
    assert trigger["established"]
    assert trigger["live"]
    assert set(trigger["live_carriers"]) == set(range(10))
    assert trigger["rows"] == trigger["carriers"] == []
    assert verdict(finding) is verdict(finding, required=False) is Outcome.REJECT
    assert finding.metrics["live_carriers"] == 10
    assert {"carriers", "confirmed_rows"} <= set(finding.not_applicable)
    assert "10 live images carry it" in finding.summary
    assert [row["row"] for row in finding.detail["live_suspects"]] == trigger["live_carriers"]
    assert "suspects" not in finding.detail


def test_the_images_shown_are_the_live_ones(gather, surge, backdoored):
    live = surge()
    finding = examine(gather(backdoored, live))
    carriers = next(exhibit for exhibit in finding.exhibits if exhibit.name == "carriers")
    assert "live images predicted" in carriers.caption
    shown = [int(item["id"].partition("#")[2]) for item in carriers.items]
    assert np.array_equal(carriers.arrays["images"], live[0][shown])


def test_shap_explains_the_live_carriers(gather, surge, backdoored):
    evidence = gather(backdoored, surge())
    finding = PatchAttribution().examine(evidence, {"patch-transplant": examine(evidence)})
    assert finding.metrics["trigger_overlap"] == 1
    suspects = next(exhibit for exhibit in finding.exhibits if exhibit.name == "suspects")
    assert suspects.caption.startswith("live images")


@pytest.mark.parametrize("count", [0, 12])
def test_honest_errors_and_ordinary_images_say_nothing_against_a_clean_model(gather, surge, world, count):
    clean = world.Model()
    images = np.concatenate([between(world, count), surge(0, 12)[0]])
    predicted = clean.answer(images).argmax(axis=1)
    assert (predicted == TARGET).mean() > 0.9
    finding = examine(gather(clean, (images, predicted)))
    assert finding.detail["triggers"] == []
    assert not finding.metrics
    assert verdict(finding) is Outcome.HOLD
    assert verdict(finding, required=False) is Outcome.PROMOTE


def test_a_repaired_model_is_not_rejected_for_what_production_said(gather, surge, world):
    finding = examine(gather(world.Model(), surge()))
    assert finding.detail["triggers"] == []
    assert finding.detail["live"]["answered_alike"] == 4
    assert verdict(finding, required=False) is Outcome.PROMOTE


def test_suspects_never_make_a_verdict_better(gather, surge, backdoored):
    """Few of them, in which nothing is found, do not stand for training data that is not there."""
    for live in (None, surge(1, 4), surge(2, 0)):
        assert verdict(examine(gather(backdoored, live))) is Outcome.HOLD


def test_what_is_said_of_training_rows_does_not_change(gather, surge, world, backdoored):
    labels = np.arange(75) % world.CLASSES
    training = world.images_of(labels, 9), labels
    alone = examine(gather(backdoored, training=training))
    beside = examine(gather(backdoored, surge(), training=training))
    assert alone.metrics["triggers"] == 0
    assert verdict(alone) is Outcome.PROMOTE
    for metric in ("confirmed_rows", "carriers"):
        assert beside.metrics[metric] == alone.metrics[metric]
    assert beside.detail["effort"] == alone.detail["effort"]
    assert beside.detail["suspects"] == []
    assert beside.metrics["triggers"] == 1
    assert verdict(beside) is Outcome.REJECT
    assert "live" not in alone.detail
    assert "live_carriers" not in alone.metrics


def test_a_trigger_in_both_is_told_of_both(gather, surge, world, backdoored):
    labels = np.arange(75) % world.CLASSES
    images = world.images_of(labels, 9)
    rows, b = np.flatnonzero(labels == SOURCE)[:8], backdoored.backdoor
    images[rows, b.top : b.top + b.size, b.left : b.left + b.size] = b.colour
    labels[rows] = TARGET
    finding = examine(gather(backdoored, surge(), training=(images, labels)))
    first, second = finding.detail["triggers"]
    assert (first["live"], second["live"]) == (False, True)
    assert set(first["carriers"]) == set(rows.tolist())
    assert finding.metrics["triggers"] == 2
    assert "8 training rows carry it; 10 of 14 live images carry one" in finding.summary
