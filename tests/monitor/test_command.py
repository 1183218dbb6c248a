"""The command: what it prints, its exit codes, and that wrong input is one line."""

import json

import pytest

from promotion_gate.cli import main
from promotion_gate.commands import monitor as command

NOW = 1_780_000_000.0 // 3600 * 3600


@pytest.fixture
def run(world, tmp_path, monkeypatch, capsys):
    """Run the command on the world's registry, with its keys."""
    from promotion_gate.core import keys
    from promotion_gate.monitor import make_baseline, watch

    monkeypatch.setattr(command, "_registry", lambda args: world.registry)
    monkeypatch.setattr(keys, "load_trusted_keys", lambda: world.keys.trusted)
    monkeypatch.setattr(make_baseline, "Keyring", lambda: world.keys)
    monkeypatch.setattr(watch.time, "time", lambda: NOW)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments):
        code = main(["monitor", *arguments])
        return code, capsys.readouterr()

    return call


def log(path, counts, begin=NOW - 7000):
    rows = [name for name, count in counts.items() for _ in range(count)]
    lines = [
        {"time": begin + 3000 * n / len(rows), "class": rows[(n * 7919) % len(rows)]}
        for n in range(len(rows))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_stationary_predictions_are_done(run, tmp_path):
    code, out = run(
        "signs", "--log", log(tmp_path / "a.jsonl", {"Stop": 700, "Yield": 295, "Speed limit 80": 5})
    )
    assert code == 0, out
    assert "1,000 predictions of signs/1" in out.out
    assert "no alarm" in out.out


def test_drift_is_exit_3_now_and_while_it_lasts(run, tmp_path):
    path = log(tmp_path / "a.jsonl", {"Stop": 600, "Yield": 250, "Speed limit 80": 151})
    code, out = run("signs", "--log", path, "--json", str(tmp_path / "out.json"))
    assert code == 3
    assert "prediction distribution for class 'Speed limit 80' has deviated by" in out.out
    said = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert said["drifted"] is True
    assert said["window"]["classes"][0]["unsure"] is None, "the log tells no confidences"
    code, out = run("signs", "--log", path)
    assert code == 3, "the alarm still stands"


def test_a_baseline_is_made_and_then_used(run, tmp_path):
    path = log(tmp_path / "a.jsonl", {"Stop": 600, "Yield": 250, "Speed limit 80": 151})
    code, out = run("baseline", "signs", "--log", path, "--from", "2020-01-01", "--to", "2030-01-01T00:00Z")
    assert code == 0
    assert "1,001 predictions of 3 classes" in out.out
    assert run("signs", "--log", path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing", "--log", "a.jsonl"], 5, "no registered model"),
        (["signs", "--log", "nothing-here"], 2, "no such file"),
        (["signs", "--log", "a.jsonl", "--alias", "v3"], 2, "cannot be used"),
        (["signs", "--log", "a.jsonl", "--alias", "staging"], 5, "nothing is in production"),
        (["signs", "--log", "a.jsonl", "--window", "5s"], 2, "cannot be used"),
        (["signs", "--log", "a.jsonl", "--from", "2026-01-01"], 2, "monitor baseline"),
        (["a", "b", "c", "--log", "a.jsonl"], 2, "one model"),
        (["baseline", "signs", "--log", "a.jsonl", "--follow"], 2, "takes --log"),
        (["signs", "--log", "a.jsonl", "--json", "/nowhere/x.json"], 2, "cannot write"),
    ],
)
def test_wrong_input_is_one_line(run, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    log(tmp_path / "a.jsonl", {"Stop": 10})
    found, out = run(*arguments)
    assert found == code, out
    assert says in out.err
    assert out.err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "h", "0h", "-1h", "1w", "nanh", "infd", "99999999h"])
def test_durations_that_make_no_sense(text, capsys):
    with pytest.raises(SystemExit):
        main(["monitor", "signs", "--log", "x", f"--window={text}"])
    assert "not a length of time" in capsys.readouterr().err


def test_a_hostile_class_name_does_not_reach_the_terminal(run, tmp_path):
    code, out = run("signs", "--log", log(tmp_path / "a.jsonl", {"Stop": 50, "\x1b[2Jx\ny": 3}))
    assert code == 3
    assert "\x1b" not in out.out
    assert all(line.isprintable() for line in out.out.splitlines())
