import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.detect.concentration import (
    believed_otherwise,
    head_of,
    label_concentration,
    neighbours_otherwise,
    pair_errors,
    self_confidence,
    share_beyond,
)

CLASSES = 10
EVEN = np.full(CLASSES, 300)
TRUSTED = np.full(CLASSES, 100)


def judged(head_labels, hard=None, **options):
    hard = np.full(CLASSES, 3) if hard is None else hard
    return label_concentration(np.asarray(head_labels), EVEN, hard, TRUSTED, **options)


def test_head_takes_the_most_suspicious_eligible_rows_worst_first():
    anchor = np.array([0.1, 0.9, 0.5, 0.8, 0.2] * 40, np.float32)
    eligible = np.arange(200) != 1
    head = head_of(anchor, eligible, limit=100, share=0.02)
    assert head.tolist() == [6, 11, 16, 21]
    assert len(head_of(anchor, eligible, limit=3, share=0.5)) == 3
    assert len(head_of(anchor, np.zeros(200, bool))) == 0


def test_a_crowding_label_is_called_unlikely_and_named():
    spread = np.repeat(np.arange(CLASSES), 6)
    crowd = judged(np.r_[spread, np.full(40, 7)])
    assert (crowd.label, crowd.count, crowd.largest, crowd.size) == (7, 46, 46, 100)
    assert crowd.p < 0.01
    assert crowd.plain_p < 0.01


def test_a_class_that_is_hard_on_trusted_images_may_crowd():
    head = np.r_[np.repeat(np.arange(CLASSES), 6), np.full(40, 7)]
    hard = np.full(CLASSES, 3)
    hard[7] = 30
    crowd = judged(head, hard)
    assert crowd.p > 0.05
    assert crowd.plain_p < 0.01


def test_labels_that_come_in_bunches_are_judged_by_bunches():
    counts = [0, 0, 24, 0, 22, 0, 20, 2, 0, 32]
    crowd = judged(np.repeat(np.arange(CLASSES), counts))
    assert crowd.bunch > 5
    assert crowd.p > 0.05


def test_draws_from_the_null_are_rarely_called_unlikely():
    rng = np.random.default_rng(1)
    p_values = np.array([judged(rng.integers(0, CLASSES, 60), permutations=200).p for _ in range(200)])
    assert (p_values < 0.05).mean() <= 0.08


def test_same_seed_same_p_and_an_empty_head_says_nothing():
    head = np.repeat(np.arange(CLASSES), 5)
    assert judged(head, seed=3).p == judged(head, seed=3).p
    empty = judged(np.array([], np.int64))
    assert (empty.label, empty.p, empty.largest) == (-1, 1.0, 0)


@given(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=120))
def test_p_is_a_probability_whatever_the_head(labels):
    crowd = judged(labels, permutations=100)
    assert 0 < crowd.p <= 1
    assert crowd.bunch >= 1
    assert crowd.counts.sum() == len(labels)


def test_confidence_thresholds_come_from_trusted_images_and_unseen_classes_are_never_believed():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.2, 0.8, 0.0]], np.float32)
    thresholds = self_confidence(probabilities, np.array([0, 0, 1]))
    assert thresholds.tolist() == pytest.approx([0.8, 0.8, 2.0])
    asked = np.array([[0.1, 0.9, 0], [0.5, 0.5, 0], [0.45, 0.55, 0], [0, 0.1, 0.9]], np.float32)
    believed = believed_otherwise(asked, np.array([0, 0, 0, 1]), thresholds)
    assert believed.tolist() == [1, -1, -1, -1]


def test_neighbours_object_only_when_unanimous():
    east, north = [1.0, 0.0], [0.0, 1.0]
    trusted = np.array([east] * 5 + [north] * 5, np.float32)
    labels = np.array([0] * 5 + [1] * 5)
    rows = np.array([east, north, east], np.float32)
    assert neighbours_otherwise(rows, np.array([0, 0, 1]), trusted, labels, neighbours=5).tolist() == [
        -1,
        1,
        0,
    ]
    assert neighbours_otherwise(rows, np.array([0, 0, 1]), trusted, labels, neighbours=6).tolist() == [-1] * 3


def test_leaving_one_out_a_trusted_image_does_not_vouch_for_itself():
    trusted = np.array([[1, 0], [1, 0.01], [1, 0.02], [1, 0.005]], np.float32)
    labels = np.array([0, 0, 0, 1])
    inside = neighbours_otherwise(trusted, labels, trusted, labels, neighbours=1)
    outside = neighbours_otherwise(trusted, labels, trusted, labels, neighbours=1, leave_one_out=True)
    assert inside.tolist() == [-1] * 4
    assert outside[3] == 0


def errors_of(pairs, rows=300, trusted=100):
    """Evenly labelled rows of which ``pairs`` {(label, believed): count} look like another class."""
    labels, ordinary = np.repeat(np.arange(CLASSES), rows), np.repeat(np.arange(CLASSES), trusted)
    believed = np.full(len(labels), -1)
    for (label, other), count in pairs.items():
        start = np.flatnonzero((labels == label) & (believed == -1))[:count]
        believed[start] = other
    return labels, believed, ordinary, np.full(len(ordinary), -1)


def test_flips_of_one_pair_stand_out():
    found = pair_errors(*errors_of({(8, 7): 12, (1, 2): 1}), CLASSES)
    assert (found[0].label, found[0].believed, found[0].count) == (8, 7, 12)
    assert found[0].p < 1e-6
    assert all(pair.p > 0.05 for pair in found if pair.label != 8)


def test_noise_over_all_pairs_is_no_flip_of_one():
    pairs = {(i, j): 1 for i in range(CLASSES) for j in range(CLASSES) if i != j}
    found = pair_errors(*errors_of(pairs | {(8, 7): 3}), CLASSES)
    assert min(pair.p for pair in found) > 0.01


def test_a_pair_that_trusted_images_confuse_too_is_ordinary():
    labels, believed, ordinary, holdout_believed = errors_of({(8, 7): 12})
    lone = pair_errors(labels, believed, ordinary, holdout_believed, CLASSES)[0]
    holdout_believed[np.flatnonzero(ordinary == 8)[:4]] = 7
    usual = pair_errors(labels, believed, ordinary, holdout_believed, CLASSES)[0]
    assert usual.holdout_count == 4
    assert usual.expected > lone.expected
    assert lone.p < 1e-6
    assert usual.p > 0.05


def test_errors_of_one_scene_are_one_error():
    asked = []

    def ten_a_scene(rows):
        asked.append(rows)
        return 10.0

    found = pair_errors(*errors_of({(8, 7): 14}), CLASSES, ten_a_scene)
    assert found[0].bunch == 10
    assert found[0].p > 0.01
    assert all(len(rows) == 14 for rows in asked)


def test_errors_that_are_not_surprising_ask_for_no_scenes():
    def never(rows):
        raise AssertionError("asked")

    pair_errors(*errors_of({(8, 7): 1, (1, 2): 1}), CLASSES, never)


def test_many_classes_turned_into_one_are_judged_together():
    found = pair_errors(*errors_of({(8, other): 2 for other in range(8)}), CLASSES)
    assert (found[0].label, found[0].believed, found[0].count) == (8, -1, 16)
    assert found[0].p < 1e-6
    assert all(pair.p > 0.01 for pair in found if pair.believed != -1)


def test_the_share_of_a_class_that_lies_beyond_its_trusted_images():
    labels, trusted = np.repeat([0, 1, 2], 100), np.repeat([0, 1], 20)
    spread = np.tile(np.linspace(0.1, 0.3, 20), 2)
    near, far = np.linspace(0.1, 0.28, 90), np.linspace(0.35, 0.6, 100)
    anchor = np.concatenate([near, np.full(10, 0.9), far, far])
    assert share_beyond(anchor, labels, spread, trusted, 4) == pytest.approx([0.1, 1, 0, 0])


def test_no_errors_no_pairs():
    assert pair_errors(*errors_of({}), CLASSES) == []
