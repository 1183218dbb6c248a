"""What a candidate says of itself must not sway the gate: class names, and answers that hang on the batch."""

import numpy as np
import pytest

from promotion_gate.core.errors import GateError
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import Candidate, Finding, ModelRef, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.evidence.bundle import GateEvidence
from promotion_gate.evidence.interface import ForwardPass
from promotion_gate.examination import _first_passes, _incomparable, _run_check

NAMES = ("stop", "yield")
POLICY = """\
version = 1
[data]
{names}
[data.holdout]
path = "holdout.npz"
[checks.per-class.bounds]
accuracy = {{ min = 0.9 }}
"""


class Brightness:
    """Tells dark images from bright ones, by the whole batch's brightness where ``by_batch``."""

    shape = ImageShape(4, 4, 3)
    embedding_width = 1

    def __init__(self, by_batch=False, class_names=NAMES, classes=2):
        self.by_batch = by_batch
        self.class_names = class_names
        self.classes = classes

    def forward(self, images):
        bright = images.mean(axis=(1, 2, 3), dtype=np.float32) / 255 - 0.5
        if self.by_batch and len(images) > 1:
            bright = bright - bright.mean() + 0.4
        return ForwardPass(np.stack([-20 * bright, 20 * bright], 1), bright[:, None])


@pytest.fixture
def policy():
    return parse_policy(POLICY.format(names=""))


def first_passes(model, policy, folder):
    labels = np.arange(40) % 2
    images = np.broadcast_to((60 + 130 * labels)[:, None, None, None], (40, 4, 4, 3)).astype(np.uint8)
    evidence = GateEvidence(
        candidate=Candidate(ModelRef("signs", 2), None, ""),
        policy=policy,
        class_names=NAMES,
        holdout=InMemoryDataset(images, labels, NAMES),
        training=None,
        model=model,
        champion=None,
        folder=folder,
    )
    loaded = Finding("model", Status.MEASURED, "loaded", {"parameters": 2.0}, {"notes": ["a note"]})
    return {finding.check: finding for finding in _first_passes(evidence, loaded)}


def test_a_model_that_answers_alike_alone_and_in_a_batch_is_measured(policy, tmp_path):
    found = first_passes(Brightness(), policy, tmp_path)
    assert {check: finding.status for check, finding in found.items()} == {
        "model": Status.MEASURED,
        "inputs": Status.MEASURED,
    }


def test_a_model_whose_answers_hang_on_the_batch_is_in_doubt(policy, tmp_path):
    found = first_passes(Brightness(by_batch=True), policy, tmp_path)
    assert found["model"].status is Status.INCONCLUSIVE
    assert "of 32 images get another answer alone than in a batch" in found["model"].summary
    assert found["model"].detail["notes"] == ["a note"]


@pytest.mark.parametrize("names", [("yield", "stop"), None])
def test_a_candidate_with_other_class_names_cannot_be_compared_unless_the_policy_names_them(names, policy):
    champion = Brightness()
    problem = _incomparable(champion, Brightness(class_names=names), policy)
    assert isinstance(problem, GateError)
    assert "data.class_names" in str(problem)
    named = parse_policy(POLICY.format(names='class_names = ["stop", "yield"]'))
    assert _incomparable(champion, Brightness(class_names=names), named) is None
    assert _incomparable(champion, Brightness(), policy) is None


def test_models_of_incomparable_cannot_be_compared(policy):
    problem = _incomparable(Brightness(), Brightness(classes=3), policy)
    assert "2 classes apart, and the candidate 3" in str(problem)


@pytest.mark.parametrize("value", [None, "many", [1.0]])
def test_a_metric_that_is_no_number_is_in_doubt_and_no_crash(value):
    class Telling:
        name = "telling"

        def examine(self, evidence, earlier):
            return Finding("telling", Status.MEASURED, "fine", {"readings": value})

    finding = _run_check(Telling(), None, {}, lambda line: None)
    assert finding.status is Status.INCONCLUSIVE
    assert finding.summary.startswith("the check crashed: ")
