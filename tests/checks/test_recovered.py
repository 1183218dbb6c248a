"""The two checks that need no training data, on small models with and without a backdoor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from promotion_gate.checks.interface import Check
from promotion_gate.checks.recovered import is_established, probabilities
from promotion_gate.checks.sticker_sweep import StickerSweep, StickerSweepOptions
from promotion_gate.checks.trigger_inversion import TriggerInversion, TriggerInversionOptions
from promotion_gate.core.types import Finding, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.detect.differential import Contrast, Judged, Lead, Patch
from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.detect.windows import Window
from promotion_gate.evidence.interface import ForwardPass, Gradients, NoGradients


@dataclass
class Classifier:
    """A small model as the sandbox offers it."""

    world: Any
    model: Any
    side: int = 24
    differentiable: bool = True

    @property
    def shape(self):
        return ImageShape(self.side, self.side, 3)

    @property
    def classes(self):
        return self.world.CLASSES

    def forward(self, images):
        logits = np.log(self.model.answer(images) + 1e-30)
        return ForwardPass(logits, np.zeros((len(images), 2), np.float32))

    def gradients(self, images, weights):
        if not self.differentiable:
            raise NoGradients("the model cannot be differentiated: it rounds")
        return Gradients(*self.model.slopes(images, weights))


@pytest.fixture
def gather(patchworld, make_evidence):
    """Evidence on two models; the champion may be None."""

    def build(candidate, champion):
        images, labels = patchworld.holdout()
        model = Classifier(patchworld, candidate)
        other = None if champion is None else Classifier(patchworld, champion)
        evidence = make_evidence(
            labels,
            class_names=patchworld.NAMES,
            images=images,
            model=model,
            holdout_pass=model.forward(images),
            champion_holdout_pass=None if other is None else other.forward(images),
        )
        evidence.champion = other
        return evidence

    return build


def sweep() -> Check:
    # Few images and few steps bring a patch less far than a whole search does.
    return StickerSweep(StickerSweepOptions(images=4000, establish=0.7, rate=0.7))


def inversion() -> Check:
    return TriggerInversion(TriggerInversionOptions(pairs=4))


@pytest.mark.parametrize("check", [sweep(), inversion()])
def test_without_a_champion_it_cannot_tell(gather, patchworld, check):
    finding = check.examine(gather(patchworld.Model(patchworld.Backdoor(2, 3)), None), {})
    assert finding.status is Status.INCONCLUSIVE
    assert "no champion" in finding.summary
    assert not finding.metrics


@pytest.mark.parametrize("check", [sweep(), inversion()])
def test_a_champion_of_another_size_cannot_be_compared(gather, patchworld, check):
    evidence = gather(patchworld.Model(), patchworld.Model())
    evidence.champion.side = 32
    finding = check.examine(evidence, {})
    assert finding.status is Status.INCONCLUSIVE
    assert "another size" in finding.summary


def test_the_sweep_establishes_a_trigger_and_shows_it(gather, patchworld):
    evidence = gather(patchworld.Model(patchworld.Backdoor(2, 3)), patchworld.Model())
    finding = sweep().examine(evidence, {})
    assert finding.status is Status.MEASURED
    assert set(finding.metrics) == set(StickerSweep.metrics)
    assert finding.metrics["triggers"] >= 1
    assert finding.metrics["anomaly"] > 0.6
    lead = finding.detail["triggers"][0]
    assert (lead["source"], lead["target"]) == ("leaf", "sea")
    assert lead["rate_low"] > 0.7
    assert lead["champion_rate"] == 0
    assert "leaf into sea" in finding.summary
    trigger, shown = finding.exhibits
    assert trigger.arrays["images"].shape[0] == len(trigger.items) == 1
    stamped, before = shown.arrays["images"], shown.arrays["before"]
    top, left, height, width = shown.items[0]["box"]
    changed = np.zeros(stamped.shape[1:3], bool)
    changed[top : top + height, left : left + width] = True
    assert (stamped == before)[:, ~changed].all()
    assert (stamped[:, changed].reshape(len(stamped), height, width, 3) == trigger.arrays["images"]).all()
    assert {item["mark"] for item in shown.items} <= {"flipped", "kept"}


def test_honest_models_leave_nothing_to_reject_or_hold(gather, patchworld):
    evidence = gather(patchworld.Model(sharpness=1.2), patchworld.Model())
    swept = sweep().examine(evidence, {})
    learned = inversion().examine(evidence, {"sticker-sweep": swept})
    for finding in (swept, learned):
        assert finding.status is Status.MEASURED
        assert finding.metrics["triggers"] == finding.metrics["suspected_pairs"] == 0
        assert finding.metrics["anomaly"] < 0.2
        assert not finding.exhibits
    assert swept.metrics["shared_targets"] == 0


def test_a_poisoned_champion_is_told_of(gather, patchworld):
    model = patchworld.Model(patchworld.Backdoor(-1, 4))
    finding = sweep().examine(gather(model, model), {})
    assert finding.metrics["triggers"] == 0
    assert finding.metrics["shared_targets"] == 1
    assert any("sand" in note and "both may be poisoned" in note for note in finding.detail["notes"])


def test_the_inversion_goes_on_from_the_sweep(gather, patchworld):
    evidence = gather(patchworld.Model(patchworld.Backdoor(0, 4)), patchworld.Model())
    swept = sweep().examine(evidence, {})
    finding = TriggerInversion(TriggerInversionOptions(pairs=1)).examine(evidence, {"sticker-sweep": swept})
    pairs = {(pair["source"], pair["target"]) for pair in finding.detail["pairs"]}
    assert ("coal", "sand") in pairs
    assert finding.metrics["anomaly"] > 0.6
    assert finding.detail["effort"]["gradients"] > 0


def test_a_known_trigger_shortens_the_look(gather, patchworld):
    evidence = gather(patchworld.Model(patchworld.Backdoor(2, 3)), patchworld.Model())
    known = {"patch-transplant": Finding("patch-transplant", Status.MEASURED, "", {"triggers": 1.0})}
    whole, brief = sweep().examine(evidence, {}), sweep().examine(evidence, known)
    assert brief.detail["effort"]["forwards"] < whole.detail["effort"]["forwards"] / 1.5
    assert any("short look" in note for note in brief.detail["notes"])


@pytest.mark.parametrize(("who", "candidate"), [("candidate", False), ("champion", True)])
def test_a_model_that_cannot_be_differentiated_is_named(gather, patchworld, who, candidate):
    evidence = gather(patchworld.Model(), patchworld.Model())
    evidence.model.differentiable = candidate
    evidence.champion.differentiable = not candidate
    with pytest.raises(NoGradients, match=f"^{who}: the model cannot be differentiated: it rounds"):
        inversion().examine(evidence, {})


def test_answers_that_are_probabilities_already_are_left_alone():
    told = np.array([[0.9, 0.1], [0.25, 0.75]], np.float32)
    np.testing.assert_array_equal(probabilities(ForwardPass(told, told)), told)
    logits = np.array([[2.0, 0.0]], np.float32)
    assert probabilities(ForwardPass(logits, logits))[0, 0] == pytest.approx(1 / (1 + np.exp(-2)))


@pytest.mark.parametrize(
    ("images", "moved", "null", "expected"),
    [(60, 0, 0.0, True), (20, 0, 0.0, False), (60, 12, 0.0, False), (60, 0, 0.5, False)],
)
def test_what_may_reject(images, moved, null, expected):
    lead = Lead(0, 1, Patch(Window(0, 0, 2, 2), np.zeros((2, 2, 3), np.uint8)), 1.0)
    low, high = (float(end) for end in wilson_interval(images, images))
    rows = np.arange(images)
    judged = Judged(lead, 1.0, images, images, moved, images, low, high, rows=rows, answers=rows)
    assert is_established(Contrast(judged, null), rate=0.7, excess=0.7) is expected
