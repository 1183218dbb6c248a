import numpy as np
import pytest

from promotion_gate.validation.alike import find_alike
from promotion_gate.validation.drifting import drift, drifted
from promotion_gate.validation.expectations import Drift, Likeness
from promotion_gate.validation.judged import State

RNG = np.random.default_rng


def contributed(seed, rows=600, units=8):
    """Noise images dealt at random to contributors."""
    rng = RNG(seed)
    images = rng.integers(60, 180, (rows, 8, 8, 3), dtype=np.uint8)
    return images, rng.integers(0, 3, rows), rng.integers(0, units, rows)


def found(in_memory, images, labels, units, **options):
    names = [f"c{unit}" for unit in units]
    data = in_memory(images, labels, ("a", "b", "c"), contributor=names)
    expected = Drift(columns=["contributor"], **options)
    return drifted(data, find_alike(data, None, Likeness()), "contributor", expected, 0.01)


def test_rows_dealt_at_random_do_not_drift(in_memory):
    assert [found(in_memory, *contributed(seed)) for seed in range(6)] == [[]] * 6


@pytest.mark.parametrize(
    ("change", "measure"),
    [
        (lambda x: x // 2, "brightness"),
        (lambda x: (x.astype(int) - 120) // 3 + 120, "contrast"),
        (lambda x: np.concatenate([x[..., :1], x[..., 1:] // 2], axis=-1), "red less green"),
        (lambda x: np.repeat(x.mean(axis=-1, keepdims=True), 3, axis=-1), "saturation"),
    ],
)
def test_another_camera_is_named(in_memory, change, measure):
    images, labels, units = contributed(1)
    images[units == 3] = change(images[units == 3])
    drifting = found(in_memory, images, labels, units)
    assert measure in {one.measure for one in drifting if one.unit == "c3"}
    assert {one.unit for one in drifting} == {"c3"}


def test_another_mix_of_labels_is_named_and_nothing_else(in_memory):
    images, labels, units = contributed(2)
    labels[(units == 5) & (labels == 0)] = 1
    drifting = found(in_memory, images, labels, units)
    assert {(one.unit, one.measure) for one in drifting} == {("c5", "labels")}
    assert found(in_memory, images, labels, units, measures=["brightness", "copies"]) == []


def test_copies_are_named(in_memory):
    images, labels, units = contributed(3)
    mine = np.flatnonzero(units == 2)
    images[mine[: len(mine) // 2]] = images[mine[0]]
    assert ("c2", "copies") in {(one.unit, one.measure) for one in found(in_memory, images, labels, units)}


def test_few_rows_are_not_judged(in_memory):
    images, labels, units = contributed(4)
    units[units == 7] = 6
    units[:5] = 7
    images[:5] = 0
    assert all(one.unit != "c7" for one in found(in_memory, images, labels, units))


def test_one_contributor_cannot_be_compared(in_memory):
    images, labels, _ = contributed(5, rows=60)
    data = in_memory(images, labels, ("a", "b", "c"), contributor=["one"] * 60)
    (one,) = drift(data, find_alike(data, None, Likeness()), Drift())
    assert (one.name, one.state) == ("drift.contributor", State.UNEXAMINED)
