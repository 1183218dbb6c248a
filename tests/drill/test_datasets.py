import numpy as np
import pytest

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.drill import datasets
from promotion_gate.drill.datasets import prepare


def read(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def test_drawn_signs_are_written_once_with_their_boxes(tmp_path):
    training, holdout = prepare("signs", tmp_path / "a", training_images=30, holdout_images=20)
    first = read(training)
    assert first["images"].shape == (30, 32, 32, 3)
    assert read(holdout)["boxes"].shape == (20, 4)
    assert (first["boxes"][:, 2] > first["boxes"][:, 0]).all()
    stamp = training.stat().st_mtime_ns
    prepare("signs", tmp_path / "a", training_images=30, holdout_images=20)
    assert training.stat().st_mtime_ns == stamp
    again, _ = prepare("signs", tmp_path / "b", training_images=30, holdout_images=20)
    assert again.read_bytes() == training.read_bytes()
    other, _ = prepare("signs", tmp_path / "c", training_images=30, holdout_images=20, seed=1)
    assert (read(other)["images"] != first["images"]).any()
    assert not set(map(bytes, first["images"])) & set(map(bytes, read(holdout)["images"]))


@pytest.fixture
def real_images(tmp_path, monkeypatch):
    """Made-up files of the real sets' layout: 43 classes with 10 tracks of 6 frames, and digits."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(43), 60)
    frames = np.tile(np.stack([np.repeat(np.arange(10), 6), np.tile(np.arange(6), 10)], axis=1), (43, 1))
    images = rng.integers(0, 255, (len(labels), 4, 4, 3), dtype=np.uint8)
    # Every image tells its track, so that it can be recognised.
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels, frames[:, 0]
    roi = np.tile(np.float32([1, 2, 30, 31]), (len(labels), 1))
    np.savez(tmp_path / "gtsrb32.npz", x=images, y=labels, track_frame=frames, roi=roi)
    digits = rng.integers(0, 255, (300, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist10k.npz", x=digits, y=np.arange(300) % 10)
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    return tmp_path


def test_real_signs_are_split_by_track_and_keep_every_class(real_images, tmp_path):
    training, holdout = (
        read(path) for path in prepare("gtsrb", tmp_path / "out", training_images=400, holdout_images=100)
    )
    tracks = [{(int(i[0, 0, 0]), int(i[0, 0, 1])) for i in part["images"]} for part in (training, holdout)]
    assert not tracks[0] & tracks[1]
    for part, about in ((training, 400), (holdout, 100)):
        assert set(part["labels"].tolist()) == set(range(43))
        assert abs(len(part["labels"]) - about) <= 43
    assert training["boxes"][0].tolist() == [1, 2, 30, 31]
    assert training["class_names"][14] == "stop"
    assert len(datasets.GTSRB_CLASSES) == 43


def test_digits_are_grey_and_split_without_overlap(real_images, tmp_path):
    paths = prepare("digits", tmp_path / "out", training_images=150, holdout_images=1000)
    training, holdout = map(read, paths)
    assert training["images"].shape == (150, 28, 28, 1)
    assert len(holdout["images"]) == 100, "a third of the set at most"
    assert not set(map(bytes, training["images"])) & set(map(bytes, holdout["images"]))
    assert "boxes" not in training


def test_real_images_that_are_not_there_are_one_clear_line(tmp_path, monkeypatch, real_images):
    monkeypatch.delenv(datasets.DATA_VARIABLE)
    with pytest.raises(UsageError, match=r"GATE_TEST_DATA is not set; .*gtsrb32\.npz"):
        prepare("gtsrb", tmp_path / "out", training_images=100, holdout_images=50)
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"mnist10k\.npz cannot be read"):
        prepare("digits", tmp_path / "out", training_images=100, holdout_images=50)
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(real_images))
    np.savez(real_images / "mnist10k.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="has no array y"):
        prepare("digits", tmp_path / "out", training_images=100, holdout_images=50)
