"""``monitor`` as an operator runs it: a drifting log, a receiver, metrics, and a rollback."""

import json
import random
import time
from collections import Counter

import pytest

from promotion_gate.cli import main
from promotion_gate.core.errors import RegistryError
from promotion_gate.core.types import ModelRef
from promotion_gate.status import status


@pytest.fixture
def operated(world, keys, tmp_path, monkeypatch, receiver):
    """Version 2 in production with 1 behind it, and a command line whose registry is in memory."""
    world.promote(ModelRef("signs", 2), world.of_holdout)
    monkeypatch.setattr("promotion_gate.commands.monitor._registry", lambda args: world.registry)
    monkeypatch.setattr("promotion_gate.core.keys.load_signing_key", lambda *_: keys.signing)
    monkeypatch.setattr("promotion_gate.core.keys.load_trusted_keys", lambda *_: keys.trusted)
    monkeypatch.setenv("SIGNING", "shared")
    (tmp_path / "alerts.toml").write_text(
        f'[receivers.own]\nkind = "webhook"\nurl = "{receiver.url}/hook"\nsigning_secret = "${{SIGNING}}"\n'
    )

    def command(*more):
        shown = ["--log", str(tmp_path / "log.jsonl"), "--state", str(tmp_path / "state")]
        told = ["--alerts", str(tmp_path / "alerts.toml"), "--metrics-file", str(tmp_path / "gate.prom")]
        return main(["monitor", "signs", *shown, *told, *more])

    return command


@pytest.fixture
def log(tmp_path):
    def write(share, rows=2000, version=2):
        rng = random.Random(1)
        names = rng.choices(("Stop", "Yield", "Speed limit 80"), (0.7, 0.3 - share, share), k=rows)
        start = time.time() - 60
        with (tmp_path / "log.jsonl").open("a") as file:
            for i, name in enumerate(names):
                said = {"time": start + i / rows, "class": name, "confidence": 0.9, "version": version}
                file.write(json.dumps(said) + "\n")

    return write


def events(receiver):
    found = [json.loads(got.body) for got in receiver.got]
    return [(document["event"], document["alarm"]["kind"]) for document in found]


def test_a_surge_is_told_and_rolled_back(operated, log, receiver, world, tmp_path, keys):
    log(0.1)
    assert operated("--rollback-on-alarm") == 3
    assert sorted(events(receiver))[:1] == [("firing", "class-share")]
    assert ("notice", "rollback") in events(receiver)
    assert world.store.aliases["signs"]["production"] == 1
    metrics = (tmp_path / "gate.prom").read_text()
    assert 'promotion_gate_production_version{model="signs"} 1.0' in metrics
    assert 'promotion_gate_automatic_rollbacks{model="signs"} 1.0' in metrics
    facts = status(world.registry, "signs", trusted=keys.trusted)
    assert facts.drift.startswith("firing: class-share 'Speed limit 80' since")
    assert facts.mttr is not None


def test_without_the_option_nothing_moves_and_nobody_is_told_twice(operated, log, receiver, world):
    log(0.1)
    assert operated() == 3
    log(0.1)
    assert operated() == 3
    told = Counter(json.loads(got.body)["alarm"]["subject"] for got in receiver.got)
    assert told["Speed limit 80"] == 1
    assert set(told.values()) == {1}
    assert set(events(receiver)) == {("firing", "class-share")}
    assert world.store.aliases["signs"]["production"] == 2


def test_a_monitor_of_other_logs_ends_no_alarm(operated, log, receiver, world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    log(0.1)
    calm = tmp_path / "calm.jsonl"
    said = {"time": time.time() - 60, "class": "Stop", "confidence": 0.9, "version": 2}
    calm.write_text(json.dumps(said) + "\n")
    told = ["--alerts", str(tmp_path / "alerts.toml")]
    assert main(["monitor", "signs", "--log", str(tmp_path / "log.jsonl"), *told]) == 3
    assert main(["monitor", "signs", "--log", str(calm), *told]) == 0
    assert set(events(receiver)) == {("firing", "class-share")}


def test_calm_traffic_says_so(operated, log, receiver, world, tmp_path):
    log(0.005)
    assert operated("--rollback-on-alarm") == 0
    assert receiver.got == []
    assert world.store.model_tags["signs"]["promotion_gate.drift"].startswith("ok since")


def test_a_look_that_fails_is_counted(operated, log, tmp_path, world, monkeypatch, capsys):
    log(0.005)

    def down(args):
        registry = world.registry
        registry._before = fail
        return registry

    def fail(number, name):
        raise RegistryError("no answer from tracking.example.org")

    monkeypatch.setattr("promotion_gate.commands.monitor._registry", down)
    assert operated() == 5
    assert "no answer from tracking.example.org" in capsys.readouterr().err
    assert 'looks_failed_total{model="signs"} 1.0' in (tmp_path / "gate.prom").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--metrics-file", "/nowhere/gate.prom"],
        ["--metrics-port", "1x"],
        ["--metrics-host", "256.1.1.1", "--metrics-port", "0"],
        ["--alerts", "/nowhere/alerts.toml"],
        ["--rollback-kinds", "everything"],
        ["--rollback-cool-down", "-1"],
        ["--metrics-classes", "many"],
    ],
)
def test_wrong_input_is_one_line(operated, log, wrong, capsys):
    log(0.005)
    try:
        code = operated(*wrong)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
