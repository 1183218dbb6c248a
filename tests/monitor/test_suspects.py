"""From a log with a surge to a quarantine: which predictions an alarm stood for, and what is refused."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from promotion_gate.cli import main
from promotion_gate.core.errors import InputError, NotInRegistry, UsageError
from promotion_gate.monitor.suspects import Asked, keep_suspects

CLASSES = ("Stop", "Yield", "Speed limit 80")
SHARES, SURGE = (0.7, 0.295, 0.005), (0.6, 0.25, 0.15)
NOW = 1_780_000_000.0 // 3600 * 3600
BEGIN = NOW - 36_000


@pytest.fixture
def live(tmp_path):
    """Six hours of a log, the fourth with a surge of the third class; every image is another."""
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(3)
    lines = []
    for hour in range(6):
        shares = SURGE if hour == 3 else SHARES
        for at in np.sort(rng.random(1500)) * 3600:
            label = int(rng.choice(3, p=shares))
            name = f"{hour}-{len(lines)}.png" if label == 2 else ""
            if name:
                pixels = np.full((4, 4, 3), (len(lines) % 256, len(lines) // 256, hour), np.uint8)
                Image.fromarray(pixels).save(folder / name)
            lines.append(
                {"time": BEGIN + 3600 * hour + at, "class": CLASSES[label], "version": 1, "image": name}
            )
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def keep(world, live, model="signs", **changes):
    asked = {
        "logs": [str(live / "log.jsonl")],
        "images": str(live / "frames"),
        "out": live / "out",
        "trusted": world.keys.trusted,
    }
    lines = keep_suspects(world.registry, Asked(model, **asked | changes))
    with (live / "out" / "manifest.csv").open(newline="") as file:
        return lines, list(csv.DictReader(file))


def test_what_an_alarm_stood_for_is_kept(world, live):
    lines, rows = keep(world, live)
    hours = [int(row["reference"][0]) for row in rows]
    assert set(hours) <= {2, 3, 4, 5}, "the windows from when the evidence began until the alarm was over"
    assert np.mean([hour == 3 for hour in hours]) > 0.9
    assert {row["label"] for row in rows} == {"Speed limit 80"}
    assert lines[0].startswith(f"kept {len(rows)} images of ")
    assert "[data.suspects]" in lines[-1]
    (asked,) = json.loads((live / "out" / "quarantine.json").read_text())["asked_for"]
    assert asked["class"] == "Speed limit 80", "a class that became rare is not kept"
    assert asked["from"] is not None


def test_a_person_may_name_class_and_time_without_any_alarm(world, live):
    _, rows = keep(world, live, class_name="Speed limit 80", since=BEGIN, until=BEGIN + 3600, model="signs/1")
    assert rows
    assert all(row["reference"].startswith("0-") for row in rows)


def test_a_time_narrows_what_alarms_stood_for(world, live):
    _, rows = keep(world, live, since=BEGIN + 3 * 3600 + 1800, limit=5)
    assert len(rows) == 5
    with pytest.raises(InputError, match="no alarm of signs/1"):
        keep(world, live, until=BEGIN + 3600, out=live / "other")


def test_what_cannot_be_kept_is_said_in_one_line_and_nothing_is_left(world, live):
    refused = [
        ({"class_name": "never heard of"}, UsageError, "knows no class"),
        ({"class_name": "Yield", "since": BEGIN}, InputError, "name no image"),
        ({"limit": 0}, UsageError, "--limit"),
        ({"window": 1.0}, UsageError, "window"),
        ({"since": BEGIN, "until": BEGIN}, UsageError, "--from is not before"),
        ({"images": str(live / "none")}, UsageError, "--images"),
        ({"out": live / "frames"}, UsageError, "exists already"),
        ({"model": "signs/9"}, NotInRegistry, "signs/9"),
        ({"model": "nobody"}, NotInRegistry, "nobody"),
        ({"logs": [str(live / "none.jsonl")]}, InputError, "none.jsonl"),
        (
            {"since": math.nextafter(NOW, math.inf), "class_name": "Stop"},
            InputError,
            "none of its predictions",
        ),
    ]
    before = sorted(path.name for path in live.iterdir())
    for changes, error, told in refused:
        with pytest.raises(error, match=told):
            keep(world, live, **changes)
    assert sorted(path.name for path in live.iterdir()) == before


def test_every_log_that_is_named_counts(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("promotion_gate.monitor.suspects.keep_suspects", lambda _, a: asked.append(a) or [])
    logs = ["--log", "a.csv", "b.csv", "--log", "c.csv"]
    words = [*logs, "--images", "frames", "--out", str(tmp_path / "out")]
    assert main(["quarantine", "signs", *words, "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]) == 0
    assert asked[0].logs == ["a.csv", "b.csv", "c.csv"]
