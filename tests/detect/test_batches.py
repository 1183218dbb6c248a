import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.detect.batches import (
    batch_anomalies,
    false_discovery,
    foreign_rows,
    standing_within_label,
)

CLASSES, UNITS, ROWS = 8, 20, 4000


class Uploads:
    """Rows dealt to contributors at random, with unequal mixes of classes, and how suspicious each is."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.labels = self.rng.integers(0, CLASSES, ROWS)
        mix = self.rng.gamma(1.5, 1, (CLASSES, UNITS))
        mix /= mix.sum(axis=1, keepdims=True)
        self.units = np.array([self.rng.choice(UNITS, p=mix[label]) for label in self.labels])
        self.units[:UNITS] = np.arange(UNITS)
        self.own = self.rng.normal(0, 1, ROWS).astype(np.float32)
        self.foreign = self.rng.random(ROWS) < 0.02

    def poison(self, unit, label, count=25, others=()):
        """Rows of one label, far from it and near to another class, from one contributor or from several."""
        rows = np.flatnonzero(self.labels == label)[:count]
        self.units[rows] = self.rng.choice([unit, *others], count)
        self.own[rows] -= 5
        self.foreign[rows] = True
        return rows

    def judge(self, **rest):
        return batch_anomalies(self.units, self.labels, [-self.own], self.foreign, **rest)


def kinds(found):
    return {batch.unit: batch.kind for batch in found if batch.kind != "ordinary"}


@pytest.mark.parametrize("seed", range(5))
def test_rows_dealt_at_random_make_no_upload_stand_out(seed):
    assert kinds(Uploads(seed).judge()) == {}


@pytest.mark.parametrize("seed", range(5))
def test_the_upload_that_brought_the_poison_is_named_with_its_label(seed):
    uploads = Uploads(seed)
    rows = uploads.poison(7, 3)
    found = uploads.judge()
    assert kinds(found) == {7: "concentrated"}
    assert found[0].label == 3
    assert found[0].extreme >= 20 > 5 * found[0].expected
    assert found[0].q < 1e-6
    assert len(set(rows.tolist()) & set(found[0].extreme_rows.tolist())) >= 20


def test_poison_split_between_two_uploads_names_both():
    uploads = Uploads()
    uploads.poison(7, 3, others=(8,))
    assert kinds(uploads.judge()) == {7: "concentrated", 8: "concentrated"}


def test_poison_spread_over_all_uploads_names_none():
    uploads = Uploads()
    uploads.poison(0, 3, others=tuple(range(1, UNITS)))
    assert kinds(uploads.judge()) == {}


def test_another_camera_is_a_shift():
    uploads = Uploads()
    uploads.own[uploads.units == 5] -= 1.5
    assert kinds(uploads.judge()) == {5: "shift"}


def test_a_camera_does_not_hide_poison():
    uploads = Uploads()
    uploads.own[uploads.units == 5] -= 1
    uploads.poison(5, 3, 30)
    assert kinds(uploads.judge())[5] == "concentrated"


def test_one_odd_class_that_looks_like_no_other_is_a_shift():
    uploads = Uploads()
    label = np.bincount(uploads.labels[uploads.units == 5]).argmax()
    uploads.own[(uploads.units == 5) & (uploads.labels == label)] -= 5
    assert kinds(uploads.judge()) == {5: "shift"}


def test_careless_labels_all_over_are_scattered():
    uploads = Uploads()
    mine = np.flatnonzero(uploads.units == 5)
    uploads.own[mine[::4]] -= 5
    assert kinds(uploads.judge()) == {5: "scattered"}


def test_rows_that_another_check_named_tell_where_they_come_from():
    uploads = Uploads()
    rows = np.flatnonzero(uploads.labels == 3)[:25]
    uploads.units[rows] = 7
    found = uploads.judge(named={"patch-transplant": rows})
    assert kinds(found) == {7: "concentrated"}
    assert found[0].evidence == "patch-transplant"
    assert found[0].named == {"patch-transplant": 25}


def test_rows_that_come_in_scenes_make_no_discovery():
    """Ten frames of each scene, a scene being odd as a whole: honest, and far from independent."""
    rng = np.random.default_rng(0)
    scenes = np.arange(ROWS) // 10
    labels = rng.integers(0, CLASSES, scenes.max() + 1)[scenes]
    units = rng.integers(0, UNITS, scenes.max() + 1)[scenes]
    own = (rng.normal(0, 1, scenes.max() + 1)[scenes] + rng.normal(0, 0.2, ROWS)).astype(np.float32)
    found = batch_anomalies(units, labels, [-own], np.ones(ROWS, dtype=bool))
    assert {batch.kind for batch in found} <= {"ordinary", "shift"}


def test_a_scene_counts_as_one_piece_of_evidence():
    uploads = Uploads()
    uploads.poison(7, 3)
    assert uploads.judge()[0].kind == "concentrated"
    assert uploads.judge(rows_a_scene=lambda rows: float(len(rows)))[0].kind == "ordinary"


def test_equal_values_do_not_make_an_upload_of_consecutive_rows_odd():
    labels, units = np.zeros(1000, np.int64), np.arange(1000) // 50
    standing = standing_within_label(np.zeros(1000), labels)
    assert (standing == standing[0]).all()
    assert kinds(batch_anomalies(units, labels, [standing], np.zeros(1000, dtype=bool))) == {}


def test_a_champion_that_believes_the_labels_hides_nothing():
    uploads = Uploads()
    uploads.poison(7, 3)
    blind = uploads.rng.random(ROWS, np.float32)
    found = batch_anomalies(uploads.units, uploads.labels, [-uploads.own, blind], uploads.foreign)
    assert kinds(found) == {7: "concentrated"}


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_sets_and_uploads_of_one_row_are_taken(rows):
    labels, units = np.arange(rows), np.arange(rows)
    found = batch_anomalies(units, labels, [np.ones(rows, np.float32)], np.zeros(rows, dtype=bool))
    assert len(found) == rows
    assert all(batch.kind == "ordinary" and 0 <= batch.q <= 1 for batch in found)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_q_values_are_never_below_p_and_keep_their_order(p_values):
    p, q = np.array(p_values), false_discovery(p_values)
    assert (q >= p - 1e-12).all()
    assert (q <= 1).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_q_values_are_those_of_benjamini_and_yekutieli():
    scale = 4 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    expected = [0.001 * scale, 0.02 * scale / 2, 0.03 * scale / 3, 1]
    assert false_discovery([0.001, 0.02, 0.03, 0.9]) == pytest.approx(expected)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed):
    uploads = Uploads(1)
    uploads.poison(7, 3)
    order = np.random.default_rng(seed).permutation(ROWS)
    before = batch_anomalies(uploads.units, uploads.labels, [-uploads.own], uploads.foreign)
    after = batch_anomalies(
        uploads.units[order], uploads.labels[order], [-uploads.own[order]], uploads.foreign[order]
    )
    assert [(b.unit, b.kind, b.q) for b in before] == [(b.unit, b.kind, pytest.approx(b.q)) for b in after]


def test_foreign_rows_lie_near_a_class_that_their_label_does_not():
    rng = np.random.default_rng(0)
    middles = np.array([[4, 0, 0, 1], [4, 1, 0, 0], [0, 0, 4, 0]], np.float32)
    trusted_labels = np.repeat([0, 1, 2], 60)
    trusted = (middles[trusted_labels] + rng.normal(0, 0.1, (180, 4))).astype(np.float32)
    rows = np.array([[4, 0.2, 0, 0.9], [2, 0, 3.5, 0.5], [2, 0.4, 3.5, 0]], np.float32)
    found = foreign_rows(rows, np.array([0, 0, 1]), trusted, trusted_labels, classes=4)
    assert found.tolist() == [False, True, True]
