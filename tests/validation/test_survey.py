import hashlib
import os
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.data import decode
from promotion_gate.data.interface import ImageShape
from promotion_gate.validation.alike import find_alike
from promotion_gate.validation.expectations import Likeness
from promotion_gate.validation.survey import open_data, survey
from promotion_gate.validation.table import metadata_table, write_metadata


def errors(found):
    return {found.ids[row]: text for row, text in enumerate(found.column("error")) if text}


def test_every_broken_file_is_a_row_with_an_error(folder, encode, picture, monkeypatch):
    whole = encode(picture(1))
    wrong_crc = bytearray(whole)
    at = whole.index(b"IDAT") + 4
    wrong_crc[at + int.from_bytes(whole[at - 8 : at - 4], "big")] ^= 1
    jpeg = encode(picture(2, 64), "JPEG", quality=95)
    monkeypatch.setattr(decode, "MAX_PIXELS", 10_000)
    bad = {
        "stop/truncated.png": whole[: len(whole) // 2],
        "stop/crc.png": bytes(wrong_crc),
        "stop/truncated.jpg": jpeg[: len(jpeg) // 2],
        "stop/text.png": b"not an image",
        "stop/empty.png": b"",
        "stop/bomb.png": encode(np.zeros((101, 100, 3), np.uint8)),
    }
    for name, content in bad.items():
        folder.add(name, content)
    os.mkfifo(folder.path / "stop" / "pipe.png")
    found = folder.survey()
    assert errors(found).keys() == bad.keys() | {"stop/pipe.png"}
    assert "10,100 pixels" in errors(found)["stop/bomb.png"] or "100 x 101" in errors(found)["stop/bomb.png"]
    assert found.readable.sum() == 20
    assert (found.column("width")[found.readable] == 32).all()


def test_a_dangling_link_is_a_row_with_an_error(folder):
    (folder.path / "stop" / "gone.png").symlink_to("/nowhere")
    assert "no such file" in errors(folder.survey())["stop/gone.png"]


def test_what_is_measured(folder, encode):
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4] = (200, 100, 0)
    content = encode(pixels)
    found = folder.add("stop/half.png", content).survey()
    row = list(found.ids).index("stop/half.png")
    assert (found.column("width")[row], found.column("height")[row]) == (8, 6)
    assert found.column("sha256")[row].tobytes() == hashlib.sha256(content).digest()
    assert found.column("mean")[row] == pytest.approx([100, 50, 0])
    assert found.column("std")[row] == pytest.approx([100, 50, 0])
    assert found.column("saturation")[row] == pytest.approx(0.5)
    assert found.column("mode")[row] == "RGB"
    assert found.column("bytes")[row] == len(content)


def test_the_same_rows_in_every_format_are_measured_alike(folder, tmp_path, picture, encode):
    import pyarrow as pa

    first = folder.survey()
    images = np.stack([picture(int(name.split("/")[1][:-4])) for name in first.ids])
    np.savez(tmp_path / "signs.npz", images=images, labels=first.labels)
    cells = [{"bytes": encode(image), "path": ""} for image in images]
    pq.write_table(
        pa.table({"image": cells, "label": first.labels}), tmp_path / "signs.parquet", row_group_size=7
    )
    lines = [f"signs/{name},{first.label(row)}" for row, name in enumerate(first.ids)]
    (tmp_path / "signs.csv").write_text("\n".join(["path,label", *lines]))
    for name in ("signs.npz", "signs.parquet", "signs.csv"):
        other = survey(open_data(DataSource(path=str(tmp_path / name))), looks=True)
        for column in ("pixels_sha256", "phash", "mean", "sharpness", "tone"):
            assert np.array_equal(other.column(column), first.column(column)), (name, column)


def test_workers_find_what_one_process_finds(folder):
    folder.add("stop/broken.png", b"broken")
    alone, together = folder.survey(looks=True, jobs=1), folder.survey(looks=True, jobs=2)
    for name, values in alone.facts.items():
        assert np.array_equal(values, together.facts[name]), name


def test_unreadable_cells_of_parquet_are_rows_with_errors(tmp_path, encode, picture):
    import pyarrow as pa

    cells = [
        {"bytes": encode(picture(1)), "path": ""},
        {"bytes": None, "path": "x"},
        {"bytes": b"x", "path": ""},
    ]
    pq.write_table(pa.table({"image": cells, "label": ["a", "b", "a"]}), tmp_path / "set.parquet")
    dataset = open_data(DataSource(path=str(tmp_path / "set.parquet")))
    found = survey(dataset)
    assert found.readable.tolist() == [True, False, False]
    assert "no bytes" in found.column("error")[1]
    assert len(dataset.stored([2, 0, 0])) == 3
    assert dataset.stored([2, 0])[0] == b"x"


def test_stored_rows_are_those_that_are_streamed(folder):
    dataset = open_data(DataSource(path=str(folder.path)))
    streamed = [one for part in dataset.stream_stored() for one in part]
    assert streamed == dataset.stored(range(len(dataset)))
    shape = ImageShape(32, 32, 3)
    assert np.array_equal(
        np.stack([decode.decode_whole(one, "x").pixels for one in streamed]), next(dataset.stream(shape))
    )


def test_missing_data_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        open_data(DataSource(path=str(tmp_path / "nothing")))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "set.csv")
    with pytest.raises(UsageError, match="neither a folder nor a plain file"):
        open_data(DataSource(path=str(tmp_path / "set.csv")))


def test_compressed_bombs_are_told_not_unpacked(folder, encode):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    found = folder.add("stop/bomb.png", bomb + chunk(b"IEND", b"")).survey()
    assert "50,000,000" in errors(found)["stop/bomb.png"]


def test_metadata_has_a_row_an_image(folder, tmp_path, picture):
    folder.add("stop/broken.png", b"x").add("yield/copy.png", picture(0))
    data = folder.survey()
    alike = find_alike(data, None, Likeness())
    write_metadata(tmp_path / "m.parquet", data, alike)
    frame = pq.read_table(tmp_path / "m.parquet").to_pandas().set_index("id")
    assert len(frame) == 22
    assert frame.loc["stop/broken.png", "error"]
    assert frame.loc[["stop/broken.png"], "width"].isna().all()
    assert frame["error"].notna().sum() == 1
    assert frame.loc["yield/copy.png", "copy_of"] == "stop/0.png"
    assert frame.loc["yield/copy.png", "other_label"] == "stop/0.png"
    assert frame.loc["stop/0.png", "phash"] == frame.loc["yield/copy.png", "phash"]
    assert len(frame.loc["stop/0.png", "sha256"]) == 64
    assert metadata_table(data, alike, slice(3, 5)).num_rows == 2
