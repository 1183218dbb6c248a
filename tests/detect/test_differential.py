import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.detect.differential import (
    EVERY,
    Comparison,
    Contrast,
    Judged,
    Lead,
    Panel,
    Patch,
    Trusted,
    best_of_pairs,
    effort_for,
    per_call,
)
from promotion_gate.detect.windows import Window

BLACK = Patch(Window(1, 2, 2, 2), np.zeros((2, 2, 3), np.uint8))


def one_hot(answers, classes=4):
    return np.eye(classes, dtype=np.float32)[np.asarray(answers)]


def trusted(labels, candidate=None, reference=None):
    labels = np.asarray(labels, np.int64)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    return Trusted(
        labels,
        one_hot(labels if candidate is None else candidate),
        one_hot(labels if reference is None else reference),
        lambda rows: images[rows],
    )


def panel(told, **settings):
    return Panel(told, **({"least": 4, "finding": 3, "judging": 100, "seed": 0} | settings))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 9))
def test_no_image_is_used_to_find_and_to_judge(labels, seed):
    split = panel(trusted(labels), seed=seed)
    for label in split.classes:
        finding, judging = set(split.finding[label].tolist()), set(split.judging[label].tolist())
        assert finding
        assert judging
        assert not finding & judging
        assert {labels[row] for row in finding | judging} == {label}
    assert set(split.classes) | set(split.left_out) == set(range(4))
    assert all(labels.count(label) < 4 for label in split.left_out)


def test_only_images_that_both_models_know_are_shown():
    labels = [0] * 8 + [1] * 8
    candidate = [0] * 7 + [1] + [1] * 8
    reference = [0] * 8 + [1] * 4 + [2] * 4
    split = panel(trusted(labels, candidate, reference))
    shown = {int(row) for part in (split.finding, split.judging) for rows in part.values() for row in rows}
    assert shown == {*range(7), *range(8, 12)}


def test_every_class_in_turn_and_not_the_target():
    told = trusted([0, 1, 2, 3] * 6)
    rows = panel(told).to_find(EVERY, 2, 6)
    assert told.labels[rows].tolist() == [0, 1, 3, 0, 1, 3]
    assert len(set(rows.tolist())) == 6


def test_a_patch_changes_only_its_window():
    images = np.full((2, 8, 8, 3), 9, np.uint8)
    stamped = BLACK.on(images)
    assert (images == 9).all()
    assert not stamped[:, 1:3, 2:4].any()
    assert stamped.sum() == 9 * 2 * 3 * (64 - 4)


def comparison(candidate, reference):
    """Two models that answer the same whatever they are shown."""
    told = trusted([0] * 20 + [1] * 20)
    return Comparison(
        lambda images: np.repeat(np.float32([candidate]), len(images), axis=0),
        lambda images: np.repeat(np.float32([reference]), len(images), axis=0),
        panel(told),
    )


@pytest.mark.parametrize(
    ("reference", "flips", "moved", "strength"),
    [
        ([0.9, 0.1, 0, 0], 1.0, 0.0, 0.8 * 0.9),
        ([0.1, 0.9, 0, 0], 0.0, 1.0, 0.8 * 0.1),
        ([0.1, 0.1, 0.8, 0], 0.0, 0.0, 0.8 * 0.1),
    ],
)
def test_a_flip_counts_where_the_reference_still_sees_the_source(reference, flips, moved, strength):
    judged = comparison([0.2, 0.8, 0, 0], reference).judge(Lead(0, 1, BLACK, 0.0), 50)
    assert judged.images == 17
    assert judged.turned == 17
    assert judged.rate == flips
    assert judged.moved_rate == moved
    assert judged.strength == pytest.approx(strength)
    assert judged.low <= flips <= judged.high


def test_a_falling_target_is_no_strength():
    (lead,) = comparison([1, 0, 0, 0], [1, 0, 0, 0]).measured([Lead(1, 1, BLACK, 0.5)], 3)
    assert lead.strength == 0


def test_alone_does_not_ask_the_reference():
    both = comparison([0.2, 0.8, 0, 0], [0, 1, 0, 0])
    leads = [Lead(0, 1, BLACK, 0.0)]
    assert both.measured(leads, 3, alone=True)[0].strength == pytest.approx(0.8)
    assert both.reference.shown == 0
    assert both.measured(leads, 3)[0].strength == 0


def test_batches_give_each_lead_its_own_strength():
    """More leads than fit one call, each patch another grey: the answer must be that of its own patch."""
    told = trusted([0] * 8 + [1] * 8)

    def answer(images):
        level = images[:, 0, 0, 0].astype(np.float32) / 255
        return np.stack([1 - level, level, 0 * level, 0 * level], axis=1)

    both = Comparison(answer, lambda images: one_hot([0] * len(images)), panel(told))
    window = Window(0, 0, 2, 2)
    leads = [Lead(0, 1, Patch(window, np.full((2, 2, 3), i % 256, np.uint8)), 0.0) for i in range(1500)]
    found = both.measured(leads, 2)
    assert [lead.strength for lead in found] == pytest.approx([(i % 256) / 255 for i in range(1500)])


def contrast(strength, images, null=0.0):
    nothing = np.empty(0, np.int64)
    judged = Judged(
        Lead(0, 1, BLACK, strength), strength, images, images, 0, images, 0, 1, rows=nothing, answers=nothing
    )
    return Contrast(judged, null)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 200))
def test_few_images_and_a_strong_null_count_for_less(strength, null, images):
    excess = contrast(strength, images, null).excess
    assert excess <= strength - null + 1e-9
    assert excess <= contrast(strength, 10 * images, null).excess + 1e-9
    assert excess <= contrast(strength, images, null / 2).excess + 1e-9


def test_the_best_of_each_pair():
    leads = [Lead(0, 1, BLACK, s) for s in (0.1, 0.9, 0.5)] + [Lead(1, 0, BLACK, 0.7)]
    assert [lead.strength for lead in best_of_pairs(leads)] == [0.9, 0.7]
    assert [lead.strength for lead in best_of_pairs(leads, 2)] == [0.9, 0.7, 0.5]


def test_effort_and_calls_shrink_with_the_image():
    assert effort_for(28, 28) == effort_for(64, 64) == 1
    assert effort_for(224, 224) == pytest.approx(64 * 64 / 224**2)
    assert per_call((32, 32)) == 1024
    assert per_call((512, 512)) * 512 * 512 <= 1024 * 64 * 64
    assert per_call((100_000, 100_000)) == 1
