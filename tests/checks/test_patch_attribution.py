import json

import numpy as np
import pytest

from promotion_gate.checks.patch_attribution import PatchAttribution, PatchAttributionOptions
from promotion_gate.core.types import Exhibit, Finding, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.detect.attribution import locally_filled
from promotion_gate.evidence.attributions import cell_attributions, forwards
from promotion_gate.evidence.interface import ForwardPass

NAMES = ("stop", "speed limit 80", "yield")
SIDE = 32
BOX = [20, 20, 4, 4]


class YellowReader:
    """Answers 80 in the presence of yellow, else by the mean colour; without ``backdoor`` blind to yellow."""

    shape = ImageShape(SIDE, SIDE, 3)
    classes = 3

    def __init__(self, backdoor=True):
        self.backdoor = backdoor
        self.forwards = 0

    def forward(self, images):
        self.forwards += len(images)
        assert images.dtype == np.uint8
        assert images.shape[1:] == (SIDE, SIDE, 3)
        yellow = (images[..., 0] > 200) & (images[..., 1] > 200) & (images[..., 2] < 60)
        logits = np.zeros((len(images), 3), np.float32)
        logits[:, 0] = (images[:, 8:16, 8:16, 0].astype(np.float32) - 90).mean(axis=(1, 2)) / 10
        logits[:, 2] = (images[:, 8:16, 8:16, 2].astype(np.float32) - 90).mean(axis=(1, 2)) / 10
        if self.backdoor:
            logits[:, 1] = yellow.sum(axis=(1, 2)) * 2.0
        return ForwardPass(logits, logits.copy())


def signs(labels, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(70, 100, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    images[np.asarray(labels) == 0, 8:16, 8:16, 0] = 180
    images[np.asarray(labels) == 2, 8:16, 8:16, 2] = 180
    return images


def stickered(images):
    stamped = images.copy()
    stamped[:, 20:24, 20:24] = (250, 240, 10)
    return stamped


@pytest.fixture
def poisoned(make_evidence):
    """Evidence with four carriers in rows 0 to 3, and the patch search's finding about them."""
    labels = np.array([0, 2] * 5)
    images = signs(labels)
    training_labels = np.array([1] * 4 + [0, 2] * 4)
    training = signs(np.array([0] * 4 + [0, 2] * 4), seed=1)
    training[:4] = stickered(training[:4])

    def make(model=None, champion=None, **parts):
        model = model or YellowReader()
        evidence = make_evidence(
            labels,
            class_names=NAMES,
            images=images,
            training=(training, training_labels),
            holdout_pass=model.forward(images),
            training_pass=model.forward(training),
            anchor=np.linspace(1, 0, len(training_labels)).astype(np.float32),
            **parts,
        )
        evidence.model, evidence.champion = model, champion
        model.forwards = 0
        return evidence

    return make, search_finding(images[labels == 0])


def search_finding(before, box=BOX, images=None):
    images = stickered(before) if images is None else images
    lead = {
        "source": "stop",
        "target": "speed limit 80",
        "source_index": 0,
        "target_index": 1,
        "box": BOX,
        "carriers": [0, 1, 2, 3],
    }
    items = [{"caption": "now 80", "id": f"h{i}", "box": box, "mark": "flipped"} for i in range(len(before))]
    exhibit = Exhibit("transplanted", "images", "", {"images": images, "before": before}, items)
    return Finding("patch-transplant", Status.MEASURED, "", detail={"triggers": [lead]}, exhibits=(exhibit,))


def test_shap_puts_its_evidence_on_the_sticker(poisoned):
    make, search = poisoned
    finding = PatchAttribution().examine(make(), {"patch-transplant": search})
    assert finding.status is Status.MEASURED
    assert finding.metrics["trigger_overlap"] == 1
    assert finding.detail["overlap_without_trigger"] == 0
    assert finding.detail["corroborates"] is True
    assert "never decides" in finding.detail["note"]
    by_name = {exhibit.name: exhibit for exhibit in finding.exhibits}
    assert set(by_name) == {"suspects", "stickered", "plain", "holdout"}
    assert [item["box"] for item in by_name["suspects"].items] == [BOX] * 4
    assert all("no evidence" in item["caption"] for item in by_name["plain"].items)


def test_exhibits_have_the_shape_the_card_reads(poisoned):
    make, search = poisoned
    finding = PatchAttribution().examine(make(champion=YellowReader(False)), {"patch-transplant": search})
    for exhibit in finding.exhibits:
        images, positive = exhibit.arrays["images"], exhibit.arrays["positive"]
        assert exhibit.kind == "attribution"
        assert images.dtype == np.uint8
        assert positive.shape == images.shape[:3]
        assert positive.dtype == np.float32
        assert (positive >= 0).all()
        assert len(exhibit.items) == len(images)
    json.dumps(finding.detail, allow_nan=False)
    json.dumps([list(exhibit.items) for exhibit in finding.exhibits])


def test_evidence_elsewhere_does_not_corroborate(poisoned):
    make, search = poisoned
    elsewhere = search_finding(search.exhibits[0].arrays["before"], box=[0, 0, 4, 4])
    finding = PatchAttribution().examine(make(), {"patch-transplant": elsewhere})
    assert finding.metrics["trigger_overlap"] == 0
    assert finding.detail["corroborates"] is False


def test_evidence_in_the_same_place_without_the_trigger_does_not_corroborate(poisoned):
    make, search = poisoned
    stamped = search.exhibits[0].arrays["images"]
    same = search_finding(stamped, images=stamped)
    finding = PatchAttribution().examine(make(), {"patch-transplant": same})
    assert finding.metrics["trigger_overlap"] == 1
    assert finding.detail["corroborates"] is False


def test_a_champion_without_the_backdoor_sees_nothing_there(poisoned):
    make, search = poisoned
    finding = PatchAttribution().examine(make(champion=YellowReader(False)), {"patch-transplant": search})
    assert finding.detail["overlap_champion"] == 0
    assert {exhibit.name for exhibit in finding.exhibits} >= {"champion suspects", "champion stickered"}


def test_without_a_trigger_the_anchor_ranking_names_the_suspects(poisoned):
    make, _ = poisoned
    for earlier in ({}, {"patch-transplant": Finding.inconclusive("patch-transplant", "no training data")}):
        finding = PatchAttribution().examine(make(), earlier)
        assert finding.detail["corroborates"] is None
        assert "trigger_overlap" in finding.not_applicable
        suspects = next(e for e in finding.exhibits if e.name == "suspects")
        assert [item["id"] for item in suspects.items][:2] == ["training#0", "training#1"]


def test_without_training_data_only_trusted_images_are_explained(make_evidence):
    labels = np.array([0, 2] * 5)
    model = YellowReader()
    images = signs(labels)
    evidence = make_evidence(
        labels, class_names=NAMES, images=images, holdout_pass=model.forward(images), model=model
    )
    finding = PatchAttribution().examine(evidence, {})
    assert [exhibit.name for exhibit in finding.exhibits] == ["holdout"]
    assert set(finding.metrics) == {"concentration_holdout"}
    assert set(finding.not_applicable) == {"trigger_overlap", "concentration_suspects"}


def test_the_cost_is_what_is_reported_and_within_the_limit(poisoned):
    make, search = poisoned
    model, champion = YellowReader(), YellowReader(False)
    finding = PatchAttribution().examine(make(model, champion), {"patch-transplant": search})
    assert model.forwards <= finding.detail["forwards"]
    assert champion.forwards <= finding.detail["champion_forwards"]
    assert forwards(18, 2) + forwards(6, 1) <= 6000
    assert forwards(18, 1) <= 2500


def test_images_that_do_not_fit_the_model_are_left_out(poisoned):
    make, _ = poisoned
    small = search_finding(np.zeros((3, 16, 16, 3), np.uint8))
    finding = PatchAttribution().examine(make(), {"patch-transplant": small})
    assert finding.status is Status.MEASURED
    assert "trigger_overlap" in finding.not_applicable


def test_same_seed_same_values_and_numpys_generator_is_left_alone():
    images, model = stickered(signs([0, 2])), YellowReader()
    before = np.random.get_state()[1].copy()
    first = cell_attributions(model.forward, images, [1, 1], seed=4)
    again = cell_attributions(model.forward, images[::-1], [1, 1], seed=4)[::-1]
    assert np.array_equal(first, again)
    assert np.array_equal(before, np.random.get_state()[1])


def test_values_sum_to_the_probability_the_cells_add(capsys):
    images, model = stickered(signs([0])), YellowReader()
    values = cell_attributions(model.forward, images, [1])
    assert values.shape == (1, 8, 8)
    bare = locally_filled(images[0], 8)[None]
    added = model.forward(images).probabilities()[0, 1] - model.forward(bare).probabilities()[0, 1]
    assert values.sum() == pytest.approx(added, abs=1e-4)
    assert values.argmax() == 5 * 8 + 5
    assert capsys.readouterr() == ("", "")


def test_options_refuse_what_costs_without_end():
    with pytest.raises(ValueError, match="permutations"):
        PatchAttributionOptions(permutations=1000)
