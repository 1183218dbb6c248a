from __future__ import annotations

import os
import zipfile

import fsspec
import numpy as np
import pytest

from promotion_gate.core.errors import InputError
from promotion_gate.data.interface import ImageShape

LABELS = np.array([0, 1] * 5)


@pytest.fixture
def save(tmp_path):
    def save_(compressed: bool = True, **arrays) -> str:
        (np.savez_compressed if compressed else np.savez)(tmp_path / "signs.npz", **arrays)
        return "signs.npz"

    return save_


@pytest.mark.parametrize("compressed", [True, False])
def test_streams_and_reads(open_at, save, images, shape, compressed):
    dataset = open_at(save(compressed, x=images, y=LABELS))
    assert (len(dataset), dataset.ids[3], dataset.class_names) == (10, "signs.npz#3", ("0", "1"))
    assert [len(batch) for batch in dataset.stream(shape, 4)] == [4, 4, 2]
    assert np.array_equal(np.concatenate(list(dataset.stream(shape, 4))), images)
    assert np.array_equal(dataset.read([9, 0, 9], shape), images[[9, 0, 9]])


def test_other_keys_grey_images_names_and_columns(open_at, save, images):
    names = np.array(["stop", "yield"])
    dataset = open_at(
        save(images=images[..., 0], labels=names[LABELS], class_names=names[::-1], contributor=LABELS + 7)
    )
    assert dataset.class_names == ("yield", "stop")
    assert dataset.labels.tolist() == (1 - LABELS).tolist()
    assert dataset.columns["contributor"][:2] == ["7", "8"]
    grey = dataset.read([2], ImageShape(8, 8, 1))
    assert np.array_equal(grey[0, :, :, 0], images[2, :, :, 0])


def test_own_names_are_matched_to_the_given_ones_by_name(open_at, save, images):
    name = save(x=images, y=LABELS, class_names=np.array(["stop", "yield"]))
    assert open_at(name, ["yield", "priority", "stop"]).labels.tolist() == [2, 0] * 5
    with pytest.raises(InputError, match="row 1 has the unknown label 'yield'"):
        open_at(name, ["stop", "priority"])


def test_a_split_picks_its_arrays(open_at, save, images):
    name = save(x_train=images, y_train=LABELS, test_images=images[:4], test_labels=LABELS[:4])
    assert len(open_at(name, split="train")) == 10
    assert len(open_at(name, split="test")) == 4
    with pytest.raises(InputError, match="has no array x or images; its arrays are 'x_train'"):
        open_at(name)


def test_column_order_reads_the_same(open_at, save, images, shape):
    dataset = open_at(save(x=np.asfortranarray(images), y=LABELS.reshape(10, 1)))
    assert np.array_equal(np.concatenate(list(dataset.stream(shape))), images)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": LABELS}, "no array x or images"),
        ({"x": np.zeros((10, 8, 8, 3), np.float32), "y": LABELS}, "images of type float32"),
        ({"x": np.zeros((10, 3, 8, 8), np.uint8), "y": LABELS}, "images of shape"),
        ({"x": np.zeros((10, 64), np.uint8), "y": LABELS}, "images of shape"),
        ({"x": np.zeros((0, 8, 8), np.uint8), "y": LABELS[:0]}, "holds no images"),
        ({"x": np.zeros((9, 8, 8), np.uint8), "y": LABELS}, "9 images but labels of shape"),
        ({"x": np.zeros((10, 8, 8), np.uint8), "y": LABELS - 1}, "row 0 has the negative label -1"),
        ({"x": np.zeros((10, 8, 8), np.uint8), "y": LABELS * 2**40}, "row 1 has the label"),
        ({"x": np.zeros((10, 8, 8), np.uint8), "y": LABELS / 1}, "labels of type float64"),
        ({"x": np.zeros((10, 8, 8), np.uint8), "y": np.eye(10, dtype=int)}, "labels of shape"),
        ({"x": np.zeros((10, 8, 8), np.uint8), "y": LABELS.astype(object)}, "pickled objects"),
    ],
)
def test_bad_arrays_are_one_line(open_at, save, arrays, message):
    with pytest.raises(InputError, match=message):
        open_at(save(**arrays))


def test_a_pickle_inside_is_never_run(open_at, save, images, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(InputError, match="pickled objects"):
        open_at(save(x=images, y=np.array([Payload()] * 10, dtype=object)))
    assert not (tmp_path / "ran").exists()


def test_a_cut_off_file_is_refused(open_at, save, images, tmp_path):
    name = save(x=images, y=LABELS)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a whole"):
        open_at(name)


def rewrite(path, member: str, change) -> None:
    """Replace one member of a zip file with other bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[member] = change(members[member])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x"])
@pytest.mark.parametrize("member", ["x.npy", "y.npy"])
def test_an_array_of_another_length_than_its_shape_is_refused(
    open_at, save, images, shape, tmp_path, member, change
):
    rewrite(tmp_path / save(x=images, y=LABELS), member, change)
    with pytest.raises(InputError, match="cut off or too long"):
        list(open_at("signs.npz").stream(shape))


def test_a_shape_that_no_disk_could_hold_is_refused(open_at, save, images, shape, tmp_path):
    def promise(content: bytes) -> bytes:
        return content.replace(b"(10, 8, 8, 3), }".ljust(30), b"(10, 999999999, 999999999, 3)}".ljust(30))

    name = save(x=images, y=LABELS)
    rewrite(tmp_path / name, "x.npy", promise)
    with pytest.raises(InputError, match="unpacks to"):
        next(iter(open_at(name).stream(shape)))


def test_reads_through_a_url(open_at, save, images, shape, tmp_path):
    name = save(x=images, y=LABELS)
    fsspec.filesystem("memory").put(str(tmp_path / name), "/npz-test/signs.npz")
    dataset = open_at("memory://npz-test/signs.npz")
    assert np.array_equal(np.concatenate(list(dataset.stream(shape))), images)
    assert dataset.sha256() == open_at(name).sha256()


def test_no_trace_of_the_unpacked_images_stays_behind(open_at, save, images, shape, tmp_path, monkeypatch):
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    dataset = open_at(save(x=images, y=LABELS))
    assert len(dataset.read([0], shape)) == 1
    assert list(spool.iterdir()) == []
