"""Reading logs: every format tells the same, order is kept, and nonsense is named by file and row."""

import json
import os

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promotion_gate.core.errors import InputError
from promotion_gate.monitor.log_arrow import Wanted
from promotion_gate.monitor.log_reader import Position, log_files, read_log

NAMES = ("Stop", "Yield")
NOW = 1_780_000_000.0
ROWS = [
    {"time": NOW + n, "class": NAMES[n % 2], "confidence": 0.5 + n / 1000, "version": 3, "image": f"{n}.png"}
    for n in range(100)
]


def wanted(**more):
    return Wanted(NAMES, clock=lambda: NOW + 1000, **more)


def read(*paths, positions=None, **more):
    growing = more.pop("growing", False)
    quantum = more.pop("quantum", 60.0)
    pieces = read_log([str(p) for p in paths], wanted(**more), positions, growing=growing, quantum=quantum)
    return list(pieces)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(path, rows=ROWS):
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        jsonl(path, rows)
    else:
        frame.to_parquet(path, index=False)
    return path


def flat(pieces):
    return [
        (at, NAMES[label], round(float(sure), 4), int(version))
        for piece in pieces
        for at, label, sure, version in zip(
            piece.predictions.time,
            piece.predictions.label,
            piece.predictions.confidence,
            piece.predictions.version,
            strict=True,
        )
    ]


EXPECTED = [(r["time"], r["class"], round(r["confidence"], 4), 3) for r in ROWS]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_format_tells_the_same(tmp_path, suffix):
    pieces = read(write(tmp_path / f"log.{suffix}"), image=True)
    assert flat(pieces) == EXPECTED
    assert [i for p in pieces for i in p.predictions.image] == [r["image"] for r in ROWS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1_780_000_000_000], pa.timestamp("ms")),
        pa.array([1_780_000_000_000_000_000], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([1_780_000_000]),
        pa.array([1_780_000_000.0]),
        pa.array(["2026-05-28T20:26:40Z"]),
        pa.array(["2026-05-28 22:26:40+02:00"]),
        pa.array(["2026-05-28T20:26:40"]),
    ],
)
def test_a_time_may_be_written_in_many_ways(tmp_path, column):
    pq.write_table(pa.table({"time": column, "label": [1]}), tmp_path / "a.parquet")
    (piece,) = read(tmp_path)
    assert piece.predictions.time.tolist() == [NOW]


def test_any_url_can_be_read():
    with fsspec.open("memory://logs/a.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert flat(read("memory://logs")) == EXPECTED[:1]
    assert flat(read("memory://logs/*.jsonl")) == EXPECTED[:1]


def test_files_are_merged_by_time(tmp_path):
    for number in range(3):
        jsonl(tmp_path / f"{number}.jsonl", ROWS[number::3])
    pieces = read(tmp_path, quantum=1.0)
    assert flat(pieces) == EXPECTED
    coarse = flat(read(tmp_path, quantum=10.0))
    assert sorted(coarse) == EXPECTED
    slots = [at // 10 for at, *_ in coarse]
    assert slots == sorted(slots)


def test_rows_out_of_order_are_put_into_order_with_their_names(tmp_path):
    rows = [dict(r) for r in ROWS[:6]][::-1]
    rows[1]["class"] = "Pizza"
    (piece,) = read(jsonl(tmp_path / "a.jsonl", rows))
    assert np.all(np.diff(piece.predictions.time) > 0)
    assert piece.predictions.label.tolist() == [0, 1, 0, 1, -1, 1]
    assert list(piece.unseen) == ["Pizza"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_growing_file_is_read_on_from_where_it_was_left(tmp_path, suffix):
    path = write(tmp_path / f"log.{suffix}", ROWS[:10])
    whole = write(tmp_path / f"whole.{suffix}", ROWS[:20]).read_bytes()
    (tmp_path / f"whole.{suffix}").unlink()
    positions = {p.key: p.after for p in read(path)}
    path.write_bytes(whole[:-7])
    second = read(path, positions=positions, growing=True)
    assert flat(second) == EXPECTED[10:19]
    positions |= {p.key: p.after for p in second}
    path.write_bytes(whole)
    assert flat(read(path, positions=positions, growing=True)) == EXPECTED[19:20]
    positions |= {p.key: p.after for p in read(path, positions=positions)}
    assert read(path, positions=positions) == []


def test_a_file_that_took_anothers_place_is_read_from_its_beginning(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    positions = {p.key: p.after for p in read(path)}
    jsonl(path, ROWS[50:60])
    assert flat(read(path, positions=positions)) == EXPECTED[50:60]


def test_every_position_between_pieces_can_be_gone_on_from(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.csv", ROWS[number::2])
    pieces = read(tmp_path, quantum=7.0)
    assert len(pieces) > 10
    for cut in range(0, len(pieces), 3):
        positions = {}
        for piece in pieces[:cut]:
            positions[piece.key] = piece.after
        rest = read(tmp_path, positions=positions)
        assert sorted(flat(pieces[:cut]) + flat(rest)) == EXPECTED


def test_parquet_that_was_read_is_not_opened_again(tmp_path):
    path = write(tmp_path / "a.parquet")
    positions = {p.key: p.after for p in read(path)}
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    assert read(path, positions=positions) == []


def test_parquet_with_fewer_rows_than_before_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", ROWS[:5])
    with pytest.raises(InputError, match="was replaced"):
        read(path, positions={str(path)[: -len(".parquet")]: Position(rows=50)})


def test_large_files_come_in_bounded_pieces(tmp_path):
    rows = 200_000
    table = pa.table({"time": NOW + np.arange(rows) / rows, "label": np.zeros(rows, dtype=np.int64)})
    pq.write_table(table, tmp_path / "a.parquet")
    lengths = [len(p) for p in read(tmp_path)]
    assert sum(lengths) == rows
    assert max(lengths) <= 65_536


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"class": "Stop"}, "it has no time"),
        ({"time": "soon", "class": "Stop"}, "not a time"),
        (
            {"time": NOW + 1e6, "class": "Stop"},
            r"its time 20\d\d-.*\+00:00 lies in the future.*look at the clock",
        ),
        ({"time": 1e3 * NOW, "class": "Stop"}, "is no time; times are seconds since the epoch"),
        ({"time": -1, "class": "Stop"}, "is no time"),
        ({"time": float("nan"), "class": "Stop"}, "is no time"),
        ({"time": NOW}, "neither class nor label"),
        ({"time": NOW, "class": ["Stop"]}, "not a class name"),
        ({"time": NOW, "class": "x" * 5000}, "not a class name"),
        ({"time": NOW, "label": 1.5}, "not a whole number"),
        ({"time": NOW, "label": 10**30, "class": ""}, ""),
        ({"time": NOW, "class": "Stop", "confidence": float("nan")}, "not a probability"),
        ({"time": NOW, "class": "Stop", "confidence": 1.5}, "not a probability"),
        ({"time": NOW, "class": "Stop", "confidence": "high"}, "not a number"),
        ({"time": NOW, "class": "Stop", "version": -3}, "not a version"),
        ({"time": NOW, "class": "Stop", "image": "x" * 10_000}, "no short text"),
        ({"time": NOW, "class": "Stop", "embedding": [1.0, 2.0]}, "its embedding has 2 numbers"),
        ({"time": NOW, "class": "Stop", "embedding": "["}, ""),
    ],
)
def test_a_row_that_makes_no_sense_is_named(tmp_path, row, says):
    path = jsonl(tmp_path / "a.jsonl", [ROWS[0], row])
    if not says:
        says = "row 2" if "embedding" in row else None
    if says is None:
        (piece,) = read(path)
        assert piece.predictions.label.tolist() == [0, -1]
        return
    with pytest.raises(InputError, match=says) as caught:
        read(path, width=3)
    assert f"{path}, row 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'"x"'])
def test_lines_that_are_no_json_objects_are_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match="row 2: not"):
        read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("when,what\n1,2\n", "must name the columns time"),
        ("time,class\n1\n", "row 1: it has 1 values for 2 columns"),
        ('time,class\n1,"Stop\nx"\n', "row 1"),
        ("time,class,confidence\n1,Stop,oops\n", "row 1: its confidence is not a number"),
        ("", "must name the columns"),
    ],
)
def test_csv_that_makes_no_sense_is_named(tmp_path, text, says):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read(path)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"when": [1.0], "class": ["Stop"]}, "needs the columns time"),
        ({"time": [NOW, None], "class": ["Stop", "Stop"]}, "row 2: it has no time"),
        ({"time": [NOW, NOW + 1e6], "class": ["Stop", "Stop"]}, "row 2: its time .* future"),
        ({"time": [NOW, float("nan")], "class": ["Stop", "Stop"]}, "row 2: nan is no time"),
        ({"time": [True], "class": ["Stop"]}, "row 1: time is bool"),
        ({"time": [NOW, NOW], "class": ["Stop", None]}, "row 2: it has no class"),
        ({"time": [NOW, NOW], "class": ["Stop", "x" * 5000]}, "row 2: not a class name"),
        ({"time": [NOW], "class": [3.5]}, "class is double"),
        ({"time": [NOW], "label": ["Stop"]}, "label is string"),
        (
            {"time": [NOW, NOW], "label": [1, 1], "confidence": [0.5, float("nan")]},
            "row 2: its confidence is nan",
        ),
        ({"time": [NOW, NOW], "label": [1, 1], "confidence": [0.5, -0.1]}, "row 2"),
        ({"time": [NOW], "label": [1], "confidence": ["x"]}, "confidence is string"),
        ({"time": [NOW], "label": [1], "version": [-1]}, "not a version"),
        ({"time": [NOW], "label": [1], "version": ["one"]}, "version is string"),
        ({"time": [NOW], "label": [1], "image": ["x" * 9000]}, "image reference has 9,000 letters"),
        (
            {"time": [NOW], "label": [1], "embedding": [[1.0]]},
            "its embedding has 1 numbers, the baseline's 3",
        ),
        ({"time": [NOW], "label": [1], "embedding": [[1.0, 2.0, float("inf")]]}, "not finite"),
        ({"time": [NOW], "label": [1], "embedding": ["abc"]}, "not a list of numbers"),
    ],
)
def test_parquet_that_makes_no_sense_is_named(tmp_path, columns, says):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=says):
        read(tmp_path, image=True, width=3)


def test_what_is_no_log_is_said(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet"):
        read(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="is no log"):
        read(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="no file matches"):
        read(tmp_path / "*.nothing")
    with pytest.raises(InputError, match="cannot open"):
        read("nonsense://x")


def test_a_journal_stands_back_for_its_parquet(tmp_path):
    from promotion_gate.monitor.log_format import log_schema

    write(tmp_path / "m-1.parquet")
    (tmp_path / "m-1.arrows").write_bytes(bytes(log_schema().serialize()))
    (file,) = log_files([str(tmp_path)])
    assert file.suffix == ".parquet"
    assert flat(read(tmp_path)) == EXPECTED


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.arrows"])
def test_a_pipe_in_the_folder_keeps_nobody_waiting(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: not a plain file"):
        read(tmp_path)


def test_a_pattern_is_shown_without_its_password():
    fsspec.filesystem("memory").pipe("/ada:geheim@logs-x/a.txt", b"")
    with pytest.raises(InputError) as raised:
        read("memory://ada:geheim@logs-x/*.csv")
    assert "geheim" not in str(raised.value)
