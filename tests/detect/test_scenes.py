import numpy as np
import pytest

from promotion_gate.detect.scenes import rows_a_scene, thumbnails


def pictures(rng, count):
    """Smooth random scenes, uint8 (count, 32, 32, 3)."""
    coarse = rng.integers(20, 200, (count, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)


def frames(rng, scene, count):
    """One scene under a little noise, as a camera's neighbouring frames."""
    return np.clip(scene + rng.normal(0, 3, (count, 32, 32, 3)), 0, 255).astype(np.uint8)


def test_rows_of_scenes_of_their_own_count_singly():
    rng = np.random.default_rng(0)
    size = rows_a_scene(thumbnails(pictures(rng, 20)), thumbnails(pictures(rng, 400)))
    assert size < 1.5


@pytest.mark.parametrize("tracks", [1, 2, 3])
def test_frames_of_a_track_are_one_piece_of_evidence(tracks):
    rng = np.random.default_rng(1)
    marked = np.concatenate([frames(rng, scene, 8) for scene in pictures(rng, tracks)])
    size = rows_a_scene(thumbnails(marked), thumbnails(pictures(rng, 400)))
    assert 24 / 8 <= size * 3 <= 8 * 3 * 1.5
    assert size > 5


def test_a_trigger_that_all_rows_carry_does_not_make_one_scene_of_them():
    rng = np.random.default_rng(2)
    marked, background = pictures(rng, 20), pictures(rng, 400)
    marked[:, 22:28, 22:28] = (250, 220, 20)
    assert rows_a_scene(thumbnails(marked), thumbnails(background)) < 2


def test_light_makes_no_other_scene_and_no_rows_make_none():
    rng = np.random.default_rng(3)
    scene = pictures(rng, 1)
    brighter = (scene * 1.2).astype(np.uint8)
    assert float(thumbnails(scene)[0] @ thumbnails(brighter)[0]) > 0.99
    assert rows_a_scene(thumbnails(scene), thumbnails(scene[:0])) == 1
    assert thumbnails(scene[:0]).shape == (0, 192)


def test_images_smaller_than_a_thumbnail_are_their_own():
    assert thumbnails(np.zeros((2, 5, 3, 1), np.uint8)).shape == (2, 15)
