"""What is kept after an alarm, in which order, and as a data set that the next gate run can read."""

import csv
import io
import json
import stat
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.core.types import ModelRef
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.open import open_dataset
from promotion_gate.monitor.images import LiveImages
from promotion_gate.monitor.interface import Baseline, Predictions
from promotion_gate.monitor.quarantine import Span, choose, facts_of, take, write_quarantine

NAMES = ("stop", "yield", "=limit 80")


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def predictions(labels, confidence=0.9, time=None, version=3, image=None, embedding=None, names=NAMES):
    count = len(labels)
    return Predictions(
        names,
        np.arange(count, dtype=np.float64) if time is None else np.asarray(time, np.float64),
        np.asarray(labels, np.int32),
        np.broadcast_to(np.float32(confidence), (count,)),
        np.broadcast_to(np.int32(version), (count,)),
        None if embedding is None else np.asarray(embedding, np.float32),
        [f"{i}.png" for i in range(count)] if image is None else image,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "live").mkdir()
    for i in range(12):
        (tmp_path / "live" / f"{i}.png").write_bytes(png(i))
    return tmp_path


def baseline(mean, distances):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Baseline(
        ModelRef("signs", 3), "d" * 64, NAMES, "holdout", at, [[1, 1, 1]], [0, 1], [[1]] * 3, mean, distances
    )


def references(chosen):
    return [suspect.reference for suspect in chosen.suspects]


def test_only_the_class_and_the_time_that_stood_out():
    piece = predictions([0, 2, 2, 1, 2, 2])
    assert set(references(choose([piece], [Span("=limit 80", 1, 5)], 10))) == {"1.png", "2.png", "4.png"}
    assert len(choose([piece], [Span("=limit 80"), Span("stop", 0, 1)], 10).suspects) == 5
    assert len(choose([piece], [Span("", 0, 2)], 10).suspects) == 2
    assert references(choose([piece], [Span("never heard of")], 10)) == []


def test_only_the_version_that_alarmed_and_known_classes():
    piece = predictions([2, 2, 2, -1, 9], version=np.array([3, 4, 0, 3, 3]))
    assert set(references(choose([piece], [Span("")], 10, version=3))) == {"0.png", "2.png"}


def test_the_sure_and_far_come_first():
    far = [[9, 0], [0, 0], [9, 0], [0, 0]]
    piece = predictions([2] * 4, np.array([0.5, 0.5, 1.0, 1.0]), embedding=far)
    chosen = choose([piece], [Span("")], 10, baseline=baseline([0, 0], np.linspace(0, 5, 101)))
    assert references(chosen)[0] == "2.png"
    assert references(chosen)[-1] == "1.png"
    assert chosen.suspects[0].embedding_standing == 1


@pytest.mark.parametrize("embedding", [None, [[1.0] * 3] * 4, [[np.nan, 0]] * 4])
def test_without_usable_embeddings_and_confidence_there_is_still_an_order(embedding):
    piece = predictions([2] * 4, np.array([np.nan, 0.2, 0.9, np.nan]), embedding=embedding)
    chosen = choose([piece], [Span("")], 10, baseline=baseline([0, 0], np.linspace(0, 5, 101)))
    assert references(chosen)[:2] == ["2.png", "1.png"]
    assert all(np.isnan(one.embedding_standing) for one in chosen.suspects)


def test_a_log_of_any_length_is_held_in_little():
    pieces = (
        predictions([2] * 500, np.linspace(0, 1, 500), image=[f"{p}/{i}" for i in range(500)])
        for p in range(40)
    )
    chosen = choose(pieces, [Span("=limit 80")], 3)
    assert chosen.matching == 20_000
    assert len(chosen.suspects) == 64
    assert all(reference.endswith(("/499", "/498")) for reference in references(chosen))


def test_the_same_bytes_are_kept_once_and_counted(folder):
    for i in (1, 2, 3):
        (folder / "live" / f"{i}.png").write_bytes(png(0))
    chosen = choose(
        [predictions([2] * 5, image=["0.png", "0.png", "1.png", "2.png", "3.png"])], [Span("")], 10
    )
    (kept,) = take(chosen.suspects, LiveImages(str(folder / "live")), 10)
    assert kept.seen == 4


def test_what_cannot_be_taken_makes_room_for_the_next(folder):
    hostile = ["../secret.png", "none.png", "/etc/passwd", "5.png", "6.png"]
    images = LiveImages(str(folder / "live"))
    chosen = choose([predictions([2] * 5, np.linspace(1, 0.5, 5), image=hostile)], [Span("")], 2)
    assert [one.suspect.reference for one in take(chosen.suspects, images, 2)] == ["5.png", "6.png"]
    assert images.refused == {"outside the folder": 2, "not there": 1}


def test_the_concentration_of_the_evidence_has_a_say(folder):
    chosen = choose([predictions([2] * 4, np.array([0.99, 0.98, 0.97, 0.96]))], [Span("")], 2)
    kept = take(chosen.suspects, LiveImages(str(folder / "live")), 2, lambda contents, name: [0, 0, 0, 1])
    assert [one.suspect.reference for one in kept] == ["3.png", "0.png"]
    assert kept[0].suspect.concentration == 1


EVERY = (Span(""),)


def quarantined(folder, piece, spans=EVERY):
    images = LiveImages(str(folder / "live"))
    chosen = choose([piece], spans, 10, version=3)
    kept = take(chosen.suspects, images, 10)
    out = folder / "out"
    write_quarantine(out, kept, facts_of("signs", 3, spans, chosen, kept, images, None))
    return out


def test_it_reads_as_a_data_set_with_the_prediction_as_label(folder):
    labels = [2, 0, 1, 2, 2]
    out = quarantined(folder, predictions(labels))
    data = open_dataset(DataSource(path=str(out / "manifest.csv")), folder=folder, class_names=NAMES)
    assert sorted(data.labels.tolist()) == sorted(labels)
    pixels = data.read(range(len(data)), ImageShape(8, 8, 3))[:, 0, 0, 0]
    assert {(int(p), labels[int(p)]) for p in pixels} == set(
        zip(pixels.tolist(), data.labels.tolist(), strict=True)
    )


def test_the_folder_is_private_and_its_files_are_named_by_content(folder):
    out = quarantined(folder, predictions([2, 2]))
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    facts = json.loads((out / "quarantine.json").read_text())
    assert facts["kept"] == 2
    assert facts["matching_predictions"] == 2
    assert "nobody says" in facts["note"]
    for one in facts["images"]:
        path = out / one["path"]
        assert path.name == f"{one['sha256']}.png"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in folder.iterdir()) == ["live", "out"]


def test_a_reference_is_no_formula_and_no_second_line(folder):
    name = "=cmd()\n,x,y.png"
    (folder / "live" / name).write_bytes(png(77))
    out = quarantined(folder, predictions([2], image=[name]))
    (row,) = csv.DictReader(io.StringIO((out / "manifest.csv").read_text()))
    assert row["reference"] == "'=cmd() ,x,y.png"
    assert json.loads((out / "quarantine.json").read_text())["images"][0]["reference"] == name


def test_nothing_is_left_where_it_cannot_be_written(folder, monkeypatch):
    with pytest.raises(InputError):
        quarantined(folder, predictions([2], image=["none.png"]))
    (folder / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        quarantined(folder, predictions([2]))
    (folder / "out").rmdir()
    monkeypatch.setattr("promotion_gate.monitor.quarantine._csv", lambda kept: _full())
    with pytest.raises(UsageError, match="No space"):
        quarantined(folder, predictions([2]))
    assert [p.name for p in folder.iterdir()] == ["live"]


def _full():
    raise OSError(28, "No space left on device")
