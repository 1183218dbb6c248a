"""Watching production: what raises an alarm, what resolves it, and that nothing is counted twice."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promotion_gate.core.errors import (
    InputError,
    NotInRegistry,
    RegistryConflict,
    SigningError,
    UsageError,
)
from promotion_gate.core.production import Production
from promotion_gate.core.types import ModelRef
from promotion_gate.monitor import state as state_module
from promotion_gate.monitor.baseline import sign_baseline, store_window_baseline
from promotion_gate.monitor.report import alarm_lines, outcomes_json, window_lines
from promotion_gate.monitor.watch import Watched, require_window, watch

CLASSES = ("Stop", "Yield", "Speed limit 80")
SHARES = (0.7, 0.295, 0.005)
NOW = 1_780_000_000.0 // 3600 * 3600
SURGE = (0.6, 0.25, 0.15)


def predictions(rng, rows, begin, seconds=3600.0, shares=SHARES, version=1, image=False, **columns):
    """A table of a log over ``seconds`` from ``begin``."""
    label = rng.choice(len(shares), rows, p=shares)
    at = np.sort(begin + rng.random(rows) * seconds)
    table = {
        "time": pa.array((at * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC")),
        "class": np.array(CLASSES)[label],
        "version": np.full(rows, version, dtype=np.int32),
    }
    if image:
        table["image"] = [f"s3://frames/{n}.png" for n in range(rows)]
    return pa.table(table | columns)


def hours(rng, path, shares, rows=4000, begin=NOW - 36_000, **more):
    """One file an hour, each with its own shares."""
    path.mkdir(exist_ok=True)
    for number, share in enumerate(shares):
        table = predictions(rng, rows, begin + 3600 * number, shares=share, **more)
        pq.write_table(table, path / f"hour-{number:02d}.parquet")


def look(world, tmp_path, **changes):
    options = {
        "name": "signs",
        "logs": [str(tmp_path / "logs")],
        "state": tmp_path / "state",
        "trusted": world.keys.trusted,
        "clock": lambda: NOW,
    }
    return list(watch(world.registry, Watched(**options | changes)))


def alarms(outcomes):
    return [(a.kind, a.subject, a.state) for outcome in outcomes for a in outcome.alarms]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_what_the_baseline_holds_raises_nothing(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES] * 9)
    outcomes = look(world, tmp_path)
    assert [o.complete for o in outcomes] == [True] * 9
    assert alarms(outcomes) == []
    assert not outcomes[-1].drifted
    assert sum(o.predictions for o in outcomes) == 36_000
    expected = {share.name: share.expected for share in outcomes[0].classes}
    assert expected["Stop"] == pytest.approx(2800, rel=0.02)
    assert all(abs(share.sigma) < 5 for o in outcomes for share in o.classes)


def test_a_surge_is_told_in_the_words_of_the_playbook_and_resolved_when_it_is_over(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES, SHARES, SURGE, SHARES, SHARES, SHARES])
    outcomes = look(world, tmp_path)
    fired = [a for o in outcomes for a in o.alarms if a.state == "firing" and a.subject == "Speed limit 80"]
    assert len(fired) == 1
    start = datetime.fromtimestamp(NOW - 36_000 + 2 * 3600, UTC)
    assert fired[0].message.startswith("prediction distribution for class 'Speed limit 80' has deviated by ")
    assert fired[0].message.endswith(" standard deviations from baseline")
    assert fired[0].sigma > 5
    assert (fired[0].at - start).total_seconds() < 3600
    assert abs((fired[0].since - start).total_seconds()) < 3600
    assert fired[0].detail["side"] == "surge"
    assert ("class-share", "Speed limit 80", "resolved") in alarms(outcomes)
    assert not outcomes[-1].drifted
    assert any(line.startswith("ALARM") for o in outcomes for line in alarm_lines(o))


def test_a_class_that_is_gone_raises_an_alarm(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [(0.995, 0.0, 0.005)])
    fired = {(a.subject, a.detail["side"]) for a in look(world, tmp_path)[-1].firing}
    assert fired == {("Yield", "loss"), ("Stop", "surge")}


def test_a_run_in_pieces_sees_what_one_run_sees(world, tmp_path, rng):
    logs = tmp_path / "logs"
    hours(rng, logs, [SHARES, SHARES, SURGE, SURGE])
    whole = look(world, tmp_path)
    later = tmp_path / "later"
    later.mkdir()
    state = tmp_path / "other-state"
    pieces = []
    for file in sorted(logs.iterdir()):
        (later / file.name).write_bytes(file.read_bytes())
        pieces += look(world, tmp_path, logs=[str(later)], state=state)
    assert alarms(pieces) == alarms(whole)
    assert pieces[-1].firing == whole[-1].firing
    np.testing.assert_allclose(
        [s.evidence for s in pieces[-1].classes], [s.evidence for s in whole[-1].classes]
    )
    again = look(world, tmp_path, logs=[str(later)], state=state)
    assert alarms(again) == []
    assert again[-1].drifted, "an alarm stands until it is over"
    assert again[-1].predictions == 0


def test_a_crash_before_the_state_is_written_loses_no_alarm(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES, SURGE])
    seen = []

    def crash(outcome):
        seen.extend(outcome.alarms)
        if outcome.alarms:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(world, tmp_path, on_window=[crash])
    told = [a.key for o in look(world, tmp_path) for a in o.alarms]
    assert {a.key for a in seen} <= set(told)


def test_predictions_of_other_versions_are_counted_apart(world, tmp_path, rng):
    logs = tmp_path / "logs"
    hours(rng, logs, [SHARES])
    pq.write_table(predictions(rng, 3000, NOW - 36_000, shares=SURGE, version=2), logs / "other.parquet")
    (outcome,) = look(world, tmp_path)
    assert outcome.other_versions == {2: 3000}
    assert outcome.predictions == 4000
    assert not outcome.drifted


def test_a_log_without_the_production_version_is_an_error(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES], version=2)
    with pytest.raises(InputError, match=r"no prediction of signs/1.*version 2: 4,000"):
        look(world, tmp_path)


def test_a_class_that_the_baseline_does_not_know_is_told_at_once(world, tmp_path):
    path = tmp_path / "logs"
    path.mkdir()
    rows = [{"time": NOW - 7200 + n, "class": "Stop", "version": 1} for n in range(50)]
    rows.insert(20, {"time": NOW - 7200 + 19.5, "class": "Pizza\x1b[2J", "version": 1})
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = look(world, tmp_path)
    assert ("unseen-class", "Pizza\x1b[2J", "firing") in alarms(outcomes)
    with (path / "log.jsonl").open("a") as file:
        file.write(
            "".join(json.dumps({**r, "time": r["time"] + 3600}) + "\n" for r in rows if r["class"] == "Stop")
        )
    outcomes = look(world, tmp_path, clock=lambda: NOW + 3600)
    assert ("unseen-class", "Pizza\x1b[2J", "resolved") in alarms(outcomes)


def test_a_flood_of_unknown_classes_stays_bounded(world, tmp_path):
    path = tmp_path / "logs"
    path.mkdir()
    rows = [{"time": NOW - 7200 + n / 10, "class": f"x{n}"} for n in range(500)]
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = look(world, tmp_path)[-1]
    assert len(outcome.firing) <= 21
    assert sum(outcome.unseen.values()) == 500


def test_confidence_that_falls_raises_an_alarm(world, tmp_path, rng):
    logs = tmp_path / "logs"
    logs.mkdir()
    n = 4000
    for hour, lowest in ((0, 0.1), (1, 0.1)):
        label = rng.choice(3, n, p=SHARES)
        table = predictions(rng, n, NOW - 36_000 + hour * 3600)
        table = table.set_column(1, "class", [np.array(CLASSES)[label]])
        sure = np.where(label == 1, lowest, 0.75 + 0.2 * rng.random(n)).astype(np.float32)
        pq.write_table(table.append_column("confidence", [sure]), logs / f"{hour}.parquet")
    kinds = {(a.kind, a.subject, a.detail["side"]) for o in look(world, tmp_path) for a in o.firing}
    assert ("confidence", "Yield", "unsure") in kinds


def test_embeddings_that_move_away_raise_an_alarm_and_show_their_images(world, tmp_path, rng):
    logs = tmp_path / "logs"
    logs.mkdir()
    for hour, shift in enumerate((0.0, 3.0)):
        vectors = (rng.normal(0, 1, (3000, 4)) + shift).astype(np.float32)
        rows = pa.array(list(vectors), pa.list_(pa.float32()))
        table = predictions(rng, 3000, NOW - 36_000 + hour * 3600, image=True, embedding=rows)
        pq.write_table(table, logs / f"{hour}.parquet")
    outcomes = look(world, tmp_path)
    assert ("embedding", "", "firing") in alarms(outcomes)
    assert not outcomes[0].firing
    samples = outcomes[-1].samples
    assert 0 < len(samples) <= 32
    assert all(reference.startswith("s3://frames/") for reference in samples.image)
    assert samples.embedding.shape == (len(samples), 4)


def test_samples_are_the_newest_of_the_class_that_drifts(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES, SURGE], image=True)
    samples = look(world, tmp_path)[-1].samples
    named = {CLASSES[label] for label in samples.label}
    assert "Speed limit 80" in named
    assert np.all(np.diff(samples.time) >= 0)


def test_rows_that_come_after_their_window_are_counted_as_late(world, tmp_path, rng):
    logs = tmp_path / "logs"
    hours(rng, logs, [SHARES] * 2)
    look(world, tmp_path)
    pq.write_table(predictions(rng, 10, NOW - 36_000), logs / "straggler.parquet")
    outcome = look(world, tmp_path)[-1]
    assert outcome.late == 10
    assert outcome.start >= datetime.fromtimestamp(NOW - 36_000 + 7200, UTC)


def test_a_promotion_ends_the_alarms_of_the_version_that_left(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES, SURGE])
    assert look(world, tmp_path)[-1].drifted
    world.promote(ModelRef("signs", 2), world.of_holdout)
    pq.write_table(predictions(rng, 500, NOW - 20_000, 600, version=2), tmp_path / "logs" / "z.parquet")
    outcomes = look(world, tmp_path)
    assert {state for *_, state in alarms(outcomes)} == {"resolved"}
    assert outcomes[-1].version == 2
    assert not outcomes[-1].drifted


def test_an_older_baseline_is_not_taken_after_a_newer_one(world, tmp_path, rng):
    from promotion_gate.monitor.baseline import load_baseline

    hours(rng, tmp_path / "logs", [SHARES])
    run = world.registry.last_gate_run(world.ref)
    first = load_baseline(world.registry, world.ref, world.keys.trusted)
    newer = replace(first, source="window", at=datetime.fromtimestamp(NOW, UTC))
    store_window_baseline(world.registry, newer, run, world.keys.signing)
    look(world, tmp_path)
    older = replace(newer, at=datetime.fromtimestamp(NOW - 60, UTC))
    world.registry.log_file(run, "baseline-window.dsse.json", sign_baseline(older, world.keys.signing))
    with pytest.raises(SigningError, match="older than the one used before"):
        look(world, tmp_path)


def test_nothing_in_production_is_said(world, tmp_path):
    with pytest.raises(NotInRegistry, match="nothing is in production"):
        look(world, tmp_path, production=Production(alias="staging"))


def test_two_monitors_do_not_share_a_state(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES])
    with state_module.held(tmp_path / "state"), pytest.raises(RegistryConflict, match="another monitor"):
        look(world, tmp_path)


@pytest.mark.parametrize("spoil", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_state_is_said(world, tmp_path, rng, spoil):
    hours(rng, tmp_path / "logs", [SHARES])
    look(world, tmp_path)
    (tmp_path / "state" / state_module.STATE_FILE).write_bytes(spoil)
    with pytest.raises(UsageError, match="remove it to begin anew"):
        look(world, tmp_path)


def test_following_takes_what_is_appended_and_closes_windows_by_the_clock(world, tmp_path):
    path = tmp_path / "logs"
    path.mkdir()
    now = [NOW]
    looks = []

    def line(at, end="\n"):
        return json.dumps({"time": at, "class": "Stop", "version": 1}) + end

    (path / "a.jsonl").write_text(line(NOW - 10) + line(NOW - 5, end="")[:20])

    def sleep(_):
        looks.append(1)
        if len(looks) == 1:
            (path / "a.jsonl").write_text(line(NOW - 10) + line(NOW - 5) + line(NOW - 4))
        elif len(looks) == 2:
            now[0] += 60
        else:
            raise KeyboardInterrupt

    found = []
    following = {"follow": True, "clock": lambda: now[0], "sleep": sleep, "on_window": [found.append]}
    with pytest.raises(KeyboardInterrupt):
        look(world, tmp_path, **following)
    assert [(o.predictions, o.complete) for o in found] == [(3, True)]


def test_the_report_is_text_and_json(world, tmp_path, rng):
    hours(rng, tmp_path / "logs", [SHARES, SURGE])
    outcomes = look(world, tmp_path)
    text = "\n".join(window_lines(outcomes[-1], every=True))
    assert "4,000 predictions of signs/1" in text
    assert "Speed limit 80" in text
    assert "ALARM" in text
    outcomes_json(tmp_path / "out.json", "signs", outcomes[-1], outcomes[-1].alarms)
    said = json.loads((tmp_path / "out.json").read_text())
    assert said["drifted"] is True
    assert {c["name"] for c in said["window"]["classes"]} == set(CLASSES)


def test_a_mark_says_what_the_alarm_is_about(looks):
    kinds = {
        "stop": ["confidence"],
        "yield": ["class-share", "confidence"],
        "speed limit 80": ["class-share"],
    }
    firing = [looks.alarm(name, kind=kind) for name, found in kinds.items() for kind in found]
    lines = window_lines(looks.look(5, firing=firing), every=True)
    marks = {name: next(line for line in lines if line.startswith(name)) for name in kinds}
    assert marks["stop"].endswith("ALARM (confidence)")
    assert marks["yield"].endswith("ALARM (share and confidence)")
    assert marks["speed limit 80"].endswith("ALARM")


def test_no_sigma_is_less_than_nothing(looks):
    seen = looks.look(5)
    seen = replace(seen, classes=[replace(one, sigma=-0.04) for one in seen.classes])
    assert "-0.0" not in "\n".join(window_lines(seen, every=True))


@pytest.mark.parametrize(("seconds", "said"), [(5.0, "window of 5 s"), (60 * 86_400.0, "window of 60 days")])
def test_a_window_that_cannot_be_used_is_told_in_plain_units(seconds, said):
    with pytest.raises(UsageError, match=said):
        require_window(seconds)
