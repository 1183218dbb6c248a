import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.detect.differential import EVERY
from promotion_gate.detect.sweep import PatchSweep, Settings, lattice, palette

SMALL = Settings(screen_images=4000, null_images=1500, refined=8, judged=4, compared=200, confirmed=60)


def sweep(world, candidate, reference, **changes):
    told = world.trusted(candidate, reference)
    return PatchSweep(candidate.answer, reference.answer, told, settings=SMALL, **changes).run()


@settings(deadline=None)
@given(st.integers(6, 80), st.integers(6, 80), st.integers(2, 6), st.floats(1, 9), st.sampled_from([0, 0.5]))
def test_the_lattice_lies_on_the_image_and_leaves_no_wide_gap(height, width, size, stride, shift):
    windows = lattice(height, width, size, stride, shift)
    assert len(set(windows)) == len(windows)
    tops = sorted({w.top for w in windows})
    assert tops[0] == 0
    assert tops[-1] == height - size
    assert max(w.left for w in windows) == width - size
    assert all(w.top >= 0 and w.left >= 0 for w in windows)
    assert max(np.diff(tops), default=0) <= 2.4 * stride + 2


def test_colours_are_apart_and_grey_images_get_greys():
    colours = np.stack(palette(12, 3)).astype(float)
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2) + 1e3 * np.eye(len(colours))
    assert len(colours) == 15
    assert apart.min() > 30
    assert all(len(colour) == 1 for colour in palette(12, 1))


def test_a_source_specific_trigger_is_recovered_with_source_target_and_place(patchworld):
    door = patchworld.Backdoor(source=2, target=3)
    found = sweep(patchworld, patchworld.Model(door), patchworld.Model())
    lead = found.contrasts[0]
    assert lead.judged.lead.pair == (2, 3)
    assert lead.excess > 0.6
    assert lead.judged.low > 0.7
    assert lead.judged.moved == 0
    row, column = lead.judged.lead.patch.window.centre
    assert abs(row - door.top - 2.5) <= 3
    assert abs(column - door.left - 2.5) <= 3


def test_two_honest_models_show_nothing(patchworld):
    found = sweep(patchworld, patchworld.Model(sharpness=1.2), patchworld.Model())
    assert max((c.excess for c in found.contrasts), default=0) < 0.2
    assert all(judged.turned == 0 for judged in found.universal)


def test_a_champion_with_the_same_backdoor_hides_it_from_the_comparison_and_not_from_the_absolute_look(
    patchworld,
):
    door = patchworld.Backdoor(source=EVERY, target=4)
    model = patchworld.Model(door)
    found = sweep(patchworld, model, model)
    assert max((c.excess for c in found.contrasts), default=0) < 0.2
    shared = [j for j in found.universal if j.turned > 0.5 * j.images and j.moved > 0.5 * j.images]
    assert {judged.lead.target for judged in shared} == {4}


def test_a_trigger_for_all_classes_is_recovered(patchworld):
    door = patchworld.Backdoor(source=EVERY, target=1, colour=(20, 240, 240), top=0, left=0, size=4)
    found = sweep(patchworld, patchworld.Model(door), patchworld.Model())
    assert found.contrasts[0].judged.lead.target == 1
    assert found.contrasts[0].excess > 0.6


def test_classes_with_few_images_are_left_out_and_named(patchworld):
    candidate = patchworld.Model()
    told = patchworld.trusted(candidate, candidate)
    told.labels[np.flatnonzero(told.labels == 2)[3:]] = 0
    found = PatchSweep(candidate.answer, candidate.answer, told, settings=SMALL).run()
    assert found.left_out == (2,)
    assert all(lead.source != 2 for lead in found.leads)


def test_nothing_is_shown_where_one_class_alone_can_be_examined(patchworld):
    candidate = patchworld.Model()
    told = patchworld.trusted(candidate, candidate)
    told.labels[:] = 0
    found = PatchSweep(candidate.answer, candidate.answer, told, settings=SMALL).run()
    assert found.contrasts == ()
    assert found.shown == 0


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_finds_the_same(patchworld, seed):
    pair = patchworld.Model(patchworld.Backdoor(0, 1)), patchworld.Model()
    one, other = (sweep(patchworld, *pair, seed=seed) for _ in range(2))
    assert one.contrasts == other.contrasts
    assert one.shown == other.shown <= 20_000
