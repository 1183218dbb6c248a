import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.open import open_dataset
from promotion_gate.drill.signs import CLASS_NAMES, Sticker, draw_face, draw_signs, redraw, sign_boxes


def test_there_are_at_least_16_different_signs():
    faces = {name: draw_face(name).tobytes() for name in CLASS_NAMES}
    assert len(set(faces.values())) == len(CLASS_NAMES) >= 16


def test_every_class_is_drawn():
    assert set(draw_signs(200, 0).labels) == set(range(len(CLASS_NAMES)))


def test_same_seed_same_signs_other_seed_others():
    first, again, other = draw_signs(20, 1), draw_signs(20, 1), draw_signs(20, 2)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.images, other.images)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**40), positions=st.lists(st.integers(0, 29), min_size=1, max_size=5))
def test_any_row_can_be_redrawn_alone(seed, positions):
    signs = draw_signs(30, seed)
    assert np.array_equal(redraw(signs, positions), signs.images[positions])


def test_fewer_rows_are_the_first_of_more():
    assert np.array_equal(draw_signs(5, 3).images, draw_signs(9, 3).images[:5])


def test_sticker_changes_a_small_patch_of_the_same_scene():
    plain = draw_signs(60, 4, classes=["stop"])
    stickered = draw_signs(60, 4, classes=["stop"], sticker=Sticker())
    difference = np.abs(plain.images.astype(int) - stickered.images.astype(int)).max(axis=3) > 12
    area = difference.sum(axis=(1, 2))
    assert 8 <= np.median(area) <= 60
    assert area.max() < 100
    shown = np.flatnonzero(area > 4)
    rows = [np.argwhere(difference[i]).mean(axis=0) for i in shown]
    assert len(shown) > 50
    assert np.ptp(np.array(rows), axis=0).min() > 3, "the sticker moves with the sign"


def test_chosen_classes_keep_their_labels():
    signs = draw_signs(30, 5, classes=["yield", "stop"])
    assert {CLASS_NAMES[label] for label in signs.labels} == {"yield", "stop"}


def test_leaving_rows_out_keeps_the_rest_redrawable():
    signs = draw_signs(12, 6)
    rest = signs.without([0, 5, 11])
    assert rest.rows.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert np.array_equal(redraw(rest, range(len(rest))), rest.images)


def test_saved_set_is_one_the_gate_reads(tmp_path):
    signs = draw_signs(80, 7)
    signs.save(tmp_path / "signs.npz")
    dataset = open_dataset(DataSource(path="signs.npz"), folder=tmp_path, class_names=None)
    assert tuple(dataset.class_names) == CLASS_NAMES
    assert dataset.labels.tolist() == signs.labels.tolist()


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        draw_signs(10, 8).save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("count", "classes"), [(0, None), (-1, None), (3, []), (3, ["stop", "no such sign"])]
)
def test_nothing_to_draw_is_a_clear_line(count, classes):
    with pytest.raises(UsageError):
        draw_signs(count, 0, classes=classes)


def test_a_sticker_lies_where_the_box_says():
    plain = draw_signs(60, 3)
    stickered = redraw(plain, range(60), Sticker(centre=(0.72, 0.74), size=0.2, colour=(255, 0, 255)))
    left, top, right, bottom = sign_boxes(plain).T
    off = []
    for i in range(60):
        down, across = np.nonzero((stickered[i] != plain.images[i]).any(axis=2))
        if len(down):
            off.append(
                (
                    down.mean() + 0.5 - (top[i] + 0.74 * (bottom[i] - top[i])),
                    across.mean() + 0.5 - (left[i] + 0.72 * (right[i] - left[i])),
                )
            )
    # Signs are turned by up to 22 degrees, and their boxes are not.
    assert len(off) > 50
    assert np.median(np.abs(off)) < 1
    assert np.abs(off).max() < 6
