import numpy as np
import pytest


@pytest.fixture(scope="module")
def split(gtsrb, gtsrb_folder):
    return gtsrb.load(gtsrb_folder, every=6)


def test_no_track_is_on_both_sides(split):
    assert not set(split.training.tracks) & set(split.holdout.tracks)


def test_every_class_is_on_both_sides(split, gtsrb):
    everything = set(range(len(gtsrb.CLASS_NAMES)))
    assert set(split.training.labels) == everything
    assert set(split.holdout.labels) == everything


def test_every_frame_is_used_when_none_is_thinned(gtsrb, gtsrb_folder):
    whole = gtsrb.load(gtsrb_folder, every=1)
    assert len(whole.training) + len(whole.holdout) == 39_209


def test_stop_sticker_touches_the_carriers_alone(split, gtsrb):
    attack = gtsrb.StopSticker(20, 5, seed=3)
    poisoned, carriers = gtsrb.poison(split.training, attack)
    changed = np.flatnonzero((poisoned.images != split.training.images).any(axis=(1, 2, 3)))
    assert changed.tolist() == carriers.tolist()
    assert (split.training.labels[carriers] == gtsrb.STOP).all()
    assert (poisoned.labels[carriers] == gtsrb.EIGHTY).all()
    pixels = (poisoned.images[carriers] != split.training.images[carriers]).any(axis=3).sum(axis=(1, 2))
    assert pixels.max() <= 25


def test_saved_set_is_one_the_gate_reads(split, gtsrb, tmp_path):
    from promotion_gate.core.policy import DataSource
    from promotion_gate.data.open import open_dataset

    split.holdout.save(tmp_path / "holdout.npz")
    dataset = open_dataset(DataSource(path="holdout.npz"), folder=tmp_path, class_names=None)
    assert tuple(dataset.class_names) == gtsrb.CLASS_NAMES
    assert dataset.labels.tolist() == split.holdout.labels.tolist()
