from __future__ import annotations

import json

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promotion_gate.core.errors import InputError

LABELS = [0, 1] * 5


@pytest.fixture
def cells(images, encode):
    return [{"bytes": encode(image), "path": f"{i}.png"} for i, image in enumerate(images)]


@pytest.fixture
def save(tmp_path):
    """Write a table with small row groups, and Hugging Face's metadata where ``names`` is given."""

    def save_(columns: dict, name: str = "signs.parquet", names=None) -> str:
        table = pa.table(columns)
        if names:
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / name, row_group_size=3)
        return name

    return save_


def test_the_hugging_face_layout(open_at, save, cells, images, shape):
    name = save({"image": cells, "label": LABELS, "batch": list("abcdefghij")}, names=["stop", "yield"])
    dataset = open_at(name)
    assert (len(dataset), dataset.class_names, dataset.labels.tolist()) == (10, ("stop", "yield"), LABELS)
    assert dataset.ids[4] == "signs.parquet#4"
    assert dataset.columns == {"batch": list("abcdefghij")}
    assert [len(batch) for batch in dataset.stream(shape, 4)] == [4, 4, 2]
    assert np.array_equal(np.concatenate(list(dataset.stream(shape, 4))), images)
    assert np.array_equal(dataset.read([9, 0, 9, 4], shape), images[[9, 0, 9, 4]])
    assert open_at(name, ["yield", "stop"]).labels.tolist() == [1, 0] * 5


def test_plain_binary_and_text_labels_in_named_columns(open_at, save, cells, images, shape):
    columns = {"png": [c["bytes"] for c in cells], "sign": ["stop", "yield"] * 5}
    dataset = open_at(save(columns), image_column="png", label_column="sign")
    assert dataset.class_names == ("stop", "yield")
    assert np.array_equal(np.concatenate(list(dataset.stream(shape))), images)


def test_shards_are_read_in_order_and_split(open_at, save, cells, images, shape, tmp_path):
    for i in (1, 0):
        part = slice(5 * i, 5 * i + 5)
        save({"image": cells[part], "label": LABELS[part]}, f"hub/data/train-0000{i}-of-00002.parquet")
    assert open_at("hub").ids[5] == "data/train-00001-of-00002.parquet#0"
    save({"image": cells[:1], "label": [0]}, "hub/data/test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="holds the splits test, train"):
        open_at("hub")
    dataset = open_at("hub", split="train")
    assert np.array_equal(np.concatenate(list(dataset.stream(shape, 7))), images)
    assert np.array_equal(dataset.read([7, 2, 5], shape), images[[7, 2, 5]])
    assert len(open_at("hub", split="test")) == 1
    with pytest.raises(InputError, match=r"no \.parquet files of split 'validation'"):
        open_at("hub", split="validation")
    fsspec.filesystem("memory").put(str(tmp_path / "hub"), "/parquet-test", recursive=True)
    remote = open_at("memory://parquet-test", split="train")
    assert remote.sha256() == dataset.sha256()
    assert np.array_equal(np.concatenate(list(remote.stream(shape))), images)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABELS}, "no column 'image'"),
        ({"image": [b"x"] * 10, "y": LABELS}, "no column 'label'; its columns are 'image', 'y'"),
        ({"image": ["a.png"] * 10, "label": LABELS}, "is of type string"),
        ({"image": [b"x"] * 10, "label": [0, None] * 5}, r"row signs.parquet#1 has no label"),
        ({"image": [b"x"] * 10, "label": [0, -3] * 5}, "signs.parquet#1 has the negative label -3"),
        ({"image": [b"x"] * 10, "label": [0.0, 1.0] * 5}, "labels of type float"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "holds no images"),
    ],
)
def test_bad_tables_are_one_line(open_at, save, columns, message):
    with pytest.raises(InputError, match=message):
        open_at(save(columns))


def test_a_file_that_is_not_parquet_is_refused(open_at, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(InputError, match="cannot read"):
        open_at("a.parquet")


def test_images_that_are_only_named_or_damaged_are_refused_by_row(open_at, save, cells, shape):
    cells[6] = {"bytes": None, "path": "6.png"}
    dataset = open_at(save({"image": cells, "label": LABELS}))
    assert len(dataset.read([5], shape)) == 1
    with pytest.raises(InputError, match=r"signs.parquet#6 has no bytes"):
        list(dataset.stream(shape))
    cells[6] = {"bytes": b"junk", "path": "6.png"}
    with pytest.raises(InputError, match=r"signs.parquet#6 is not a readable image"):
        open_at(save({"image": cells, "label": LABELS})).read([6], shape)
