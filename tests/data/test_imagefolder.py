from __future__ import annotations

import os

import fsspec
import numpy as np
import pytest

from promotion_gate.core.errors import InputError
from promotion_gate.data.open import require_every_class


def test_reads_rows_in_byte_order_of_their_names(open_at, image_folder, images, shape):
    dataset = open_at("signs")
    assert dataset.class_names == ("stop", "yield")
    assert dataset.labels.tolist() == [0] * 5 + [1] * 5
    assert dataset.ids[0] == "stop/0.png"
    assert np.array_equal(np.concatenate(list(dataset.stream(shape, 3))), images)
    assert np.array_equal(dataset.read([9, 0, 9], shape), images[[9, 0, 9]])
    assert dataset.columns == {}


def test_given_class_names_fix_the_order_and_unknown_ones_are_named(open_at, image_folder):
    assert open_at("signs", ["yield", "stop", "priority"]).labels.tolist() == [1] * 5 + [0] * 5
    with pytest.raises(InputError, match=r"'yield/5.png' has the unknown label 'yield'"):
        open_at("signs", ["stop", "priority"])


def test_numbered_folders_are_indices_only_where_the_names_are_given(open_at, tmp_path, encode, images):
    for name in ("0", "2", "10"):
        (tmp_path / "n" / name).mkdir(parents=True)
        (tmp_path / "n" / name / "a.png").write_bytes(encode(images[0]))
    # torchvision's ImageFolder sorts folder names as text, and so do models trained through it.
    assert open_at("n").class_names == ("0", "10", "2")
    assert open_at("n", [f"sign {i}" for i in range(11)]).labels.tolist() == [0, 10, 2]


def test_an_empty_class_folder_keeps_its_place_and_is_reported(open_at, image_folder):
    (image_folder / "priority").mkdir()
    dataset = open_at("signs")
    assert dataset.class_names == ("priority", "stop", "yield")
    with pytest.raises(InputError, match="'priority'"):
        require_every_class(dataset)


def test_a_split_has_to_be_chosen(open_at, tmp_path, image_folder):
    (tmp_path / "all").mkdir()
    image_folder.rename(tmp_path / "all" / "train")
    (tmp_path / "all" / "test" / "stop").mkdir(parents=True)
    with pytest.raises(InputError, match="holds the splits test, train"):
        open_at("all")
    assert len(open_at("all", split="train")) == 10


def test_a_folder_without_classes_or_images_is_refused(open_at, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no folder per class"):
        open_at("empty")
    (tmp_path / "empty" / "stop").mkdir()
    (tmp_path / "empty" / "stop" / "readme.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        open_at("empty")


def test_a_corrupt_image_is_named(open_at, image_folder, shape):
    (image_folder / "stop" / "3.png").write_bytes(b"not an image")
    dataset = open_at("signs")
    with pytest.raises(InputError, match=r"stop/3\.png"):
        list(dataset.stream(shape))


def test_a_pipe_among_the_images_is_refused_and_never_waited_for(open_at, image_folder, shape):
    os.mkfifo(image_folder / "stop" / "z.png")
    dataset = open_at("signs")
    with pytest.raises(InputError, match="not a plain file"):
        list(dataset.stream(shape))
    with pytest.raises(InputError, match="not a plain file"):
        dataset.sha256()


def test_a_folder_that_links_to_itself_ends(open_at, image_folder):
    (image_folder / "stop" / "loop").symlink_to(image_folder, target_is_directory=True)
    assert len(open_at("signs")) == 10


def test_a_linked_class_folder_counts(open_at, image_folder, tmp_path):
    (image_folder / "yield").rename(tmp_path / "elsewhere")
    (image_folder / "yield").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(open_at("signs")) == 10


def test_the_digest_sees_names_and_bytes_and_is_the_same_on_any_file_system(open_at, image_folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(image_folder), "/imagefolder-test", recursive=True)
    before = open_at("signs").sha256()
    assert open_at("memory://imagefolder-test").sha256() == before
    assert open_at(f"file://{image_folder}").sha256() == before
    (image_folder / "stop" / "0.png").rename(image_folder / "stop" / "00.png")
    assert open_at("signs").sha256() != before


def test_a_url_reads_as_the_local_folder_does(open_at, image_folder, images, shape):
    fsspec.filesystem("memory").put(str(image_folder), "/imagefolder-read", recursive=True)
    dataset = open_at("memory://imagefolder-read")
    assert dataset.uri == "memory://imagefolder-read"
    assert dataset.ids == open_at("signs").ids
    assert np.array_equal(np.concatenate(list(dataset.stream(shape))), images)
    fsspec.filesystem("memory").rm("/imagefolder-read/stop/2.png")
    with pytest.raises(InputError, match=r"no such file: .*stop/2\.png"):
        list(dataset.stream(shape))
