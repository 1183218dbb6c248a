from __future__ import annotations

import os
import socket
from pathlib import Path

import fsspec
import numpy as np
import pytest

from promotion_gate.core.errors import ExitCode, InputError
from promotion_gate.data.files import digest_files, without_credentials
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.data.open import require_every_class


@pytest.mark.parametrize(
    "path", ["nowhere", "nowhere.npz", "memory://nowhere/at/all", "file:///nowhere/x.csv"]
)
def test_a_missing_set_is_one_clear_line_that_holds(open_at, path):
    with pytest.raises(InputError, match="nowhere") as caught:
        open_at(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.HELD


@pytest.mark.parametrize("path", ["gs://bucket/x.npz", "nonsense://x"])
def test_a_url_without_a_driver_is_an_input_error(open_at, path):
    with pytest.raises(InputError, match="cannot open"):
        open_at(path)


def test_a_server_that_does_not_answer_is_no_missing_file(open_at):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens there
        port = probe.getsockname()[1]
        with pytest.raises(InputError, match=r"cannot read http://127.*is the server up\?"):
            open_at(f"http://127.0.0.1:{port}/signs.npz")


def test_an_unknown_suffix_asks_for_the_format(open_at, tmp_path):
    (tmp_path / "signs.tar").write_bytes(b"x")
    with pytest.raises(InputError, match="set format"):
        open_at("signs.tar")


def test_a_format_that_is_not_what_lies_there_is_refused(open_at, image_folder):
    with pytest.raises(InputError, match="is a folder, but the format is npz"):
        open_at("signs", format="npz")


def test_credentials_never_reach_a_message(open_at):
    with pytest.raises(InputError) as caught:
        open_at("memory://user:hunter2@nowhere/x.npz")
    assert "hunter2" not in str(caught.value)
    assert without_credentials("https://h/x.npz?X-Amz-Signature=hunter2") == "https://h/x.npz"
    assert without_credentials("s3://bucket/a@b") == "s3://bucket/a@b"


def test_every_class_is_required_by_name():
    dataset = InMemoryDataset(np.zeros((2, 4, 4), np.uint8), [0, 2], ["stop", "yield", "priority"])
    with pytest.raises(InputError, match="no image of 1 classes: 'yield'"):
        require_every_class(dataset)
    require_every_class(InMemoryDataset(np.zeros((2, 4, 4), np.uint8), [0, 1]))


def test_the_digest_is_of_the_canonical_listing(tmp_path):
    import hashlib

    for name, content in {"b": b"two", "a": b"one"}.items():
        (tmp_path / name).write_bytes(content)
    listing = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in (("a", b"one"), ("b", b"two"))
    )
    digest = digest_files(fsspec.filesystem("file"), [("b", str(tmp_path / "b")), ("a", str(tmp_path / "a"))])
    assert digest == hashlib.sha256(listing.encode()).hexdigest()


def test_memory_data_checks_its_arrays_and_reads_in_any_order(images, shape):
    dataset = InMemoryDataset(images, [0, 1] * 5)
    assert dataset.class_names == ("0", "1")
    assert np.array_equal(dataset.read([3, 0, 3], shape), images[[3, 0, 3]])
    assert [len(batch) for batch in dataset.stream(shape, 4)] == [4, 4, 2]
    with pytest.raises(IndexError):
        dataset.read([10], shape)
    with pytest.raises(InputError, match="labels of shape"):
        InMemoryDataset(images, [0, 1])
    with pytest.raises(InputError, match="uint8"):
        InMemoryDataset(images.astype(np.float32), [0] * 10)
    changed = images.copy()
    changed[9, 7, 7, 2] ^= 1
    assert InMemoryDataset(changed, [0, 1] * 5).sha256() != dataset.sha256()


@pytest.mark.parametrize(("name", "classes"), [("gtsrb32.npz", 43), ("mnist10k.npz", 10)])
def test_real_data_streams_and_reads_alike(open_at, name, classes):
    folder = os.environ.get("GATE_TEST_DATA")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"GATE_TEST_DATA names no folder with {name}")
    dataset = open_at((Path(folder) / name).resolve())
    assert len(dataset.class_names) == classes
    require_every_class(dataset)
    shape = ImageShape(32, 32, 3)
    rows, seen = [], 0
    for batch in dataset.stream(shape):
        rows.append(batch[0])
        seen += len(batch)
    assert seen == len(dataset) == len(dataset.ids)
    assert np.array_equal(np.stack(rows), dataset.read(np.arange(0, seen, 512), shape))
