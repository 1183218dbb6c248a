"""What follows a look: every step is taken, whatever becomes of the others; the tag and the commands."""

import json
import re
import urllib.request
from datetime import timedelta
from types import SimpleNamespace

import pytest

from promotion_gate.cli import main
from promotion_gate.core.errors import RegistryError, UsageError
from promotion_gate.core.keys import TrustedKeys
from promotion_gate.core.production import Production
from promotion_gate.core.types import ModelRef
from promotion_gate.monitor.alerts import Alerts
from promotion_gate.monitor.metrics import Board
from promotion_gate.monitor.ready import ready_file
from promotion_gate.monitor.response import Response
from promotion_gate.monitor.settings import AlertSettings, Receiver
from promotion_gate.monitor.standing import standing_text, write_standing
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.status import DRIFT_TAG, status

NAME = "signs"


class Told:
    secrets = ()

    def __init__(self):
        self.words = []

    def send(self, notification):
        self.words.append((notification.word, notification.alarm.subject))


@pytest.fixture
def store():
    store = MemoryStore()
    store.add_version(ModelRef(NAME, 3), {"MLmodel": b"flavors"})
    store.aliases[NAME]["production"] = 3
    return store


@pytest.fixture
def respond(store, tmp_path, clock):
    def make(registry=None, **more):
        told, complaints = Told(), []
        alerts = Alerts(
            AlertSettings([Receiver("night", told)]),
            tmp_path / "alerts.json",
            complain=complaints.append,
            clock=clock,
            pauses=(),
        )
        response = Response(
            registry or MemoryRegistry(store),
            NAME,
            alerts=alerts,
            complain=complaints.append,
            clock=lambda: clock.at + timedelta(hours=1),
            **more,
        )
        return response, told, complaints

    return make


def tag(store):
    return store.model_tags.get(NAME, {}).get(DRIFT_TAG)


def test_the_tag_names_the_gravest_alarms_first(alarm, clock):
    early = clock.at - timedelta(hours=3)
    weak = [alarm(subject, kind="confidence", sigma=5.5, since=early) for subject in ("A", "B", "C")]
    text = standing_text([*weak, alarm("Stop", sigma=5.1), alarm("Yield", sigma=-9.0)], "", clock.at)
    assert text.startswith("firing: class-share 'Yield' since")
    assert "; class-share 'Stop' since" in text
    assert text.endswith("and 3 more")


def test_an_alarm_goes_to_people_tag_and_metrics(respond, store, outcome, alarm, tmp_path):
    board = Board(NAME)
    response, told, complaints = respond(board=board, metrics_file=tmp_path / "gate.prom")
    response(outcome(firing=[alarm()], alarms=[alarm()]))
    assert told.words == [("firing", "Speed limit 80")]
    assert tag(store) == "firing: class-share 'Speed limit 80' since 2026-03-01 12:00:00+00:00"
    text = (tmp_path / "gate.prom").read_text()
    assert 'promotion_gate_alarms_firing{kind="class-share",model="signs"} 1.0' in text
    assert 'promotion_gate_alert_deliveries_total{model="signs",receiver="night"} 1.0' in text
    assert 'promotion_gate_rollbacks{model="signs"} 0.0' in text
    assert complaints == []
    assert status(MemoryRegistry(store), NAME, trusted=TrustedKeys({}, tmp_path)).drift == tag(store)
    response(outcome(alarms=[alarm(state="resolved")]))
    assert told.words[1:] == [("resolved", "Speed limit 80")]
    assert tag(store).startswith("ok since 2026-03-01 13:00")


def test_the_tag_is_written_only_when_it_changes(store, alarm, clock):
    registry = MemoryRegistry(store)
    assert write_standing(registry, NAME, [], clock.at)
    assert not write_standing(registry, NAME, [], clock.at + timedelta(hours=1))
    assert tag(store) == "ok since 2026-03-01 12:00:00+00:00"
    assert write_standing(registry, NAME, [alarm()], clock.at)
    assert not write_standing(registry, NAME, [alarm(sigma=9.0)], clock.at + timedelta(hours=1))
    assert registry.calls.count("set_model_tag") == 2


def test_the_tag_is_one_short_line(alarm, clock):
    many = [alarm(f"cl\nass {i}" + "x" * 300, since=clock.at + timedelta(minutes=i)) for i in range(9)]
    text = standing_text(many, "", clock.at)
    assert text.isprintable()
    assert len(text) <= 200
    assert text.endswith("and 7 more")


def test_a_tag_that_somebody_else_wrote_is_replaced(store, clock):
    store.model_tags[NAME] = {DRIFT_TAG: "\x1b[2J all is well"}
    write_standing(MemoryRegistry(store), NAME, [], clock.at)
    assert tag(store).startswith("ok since")


@pytest.mark.parametrize("broken", ["model", "set_model_tag", "events"])
def test_a_registry_that_fails_keeps_nobody_from_being_told(respond, store, outcome, alarm, broken, tmp_path):
    def failing(number, name):
        if name == broken:
            raise RegistryError("no answer from tracking.example.org")

    board = Board(NAME)
    response, told, complaints = respond(
        MemoryRegistry(store, before=failing), board=board, metrics_file=tmp_path / "gate.prom"
    )
    response(outcome(firing=[alarm()]))
    assert told.words == [("firing", "Speed limit 80")]
    assert any("no answer from tracking.example.org" in line for line in complaints)
    failed = re.search(r'looks_failed_total{model="signs"} (\S+)', (tmp_path / "gate.prom").read_text())
    assert float(failed[1]) >= 1


def test_a_step_that_crashes_says_no_more_than_its_kind(respond, outcome, alarm, monkeypatch):
    response, _, complaints = respond()

    def crash(*_, **__):
        raise ValueError("hunter22")

    monkeypatch.setattr(Alerts, "take", crash)
    response(outcome(firing=[alarm()]))
    assert complaints == ["noting alarms failed: ValueError"]


def test_a_log_read_belatedly_wakes_nobody_for_what_was_over_long_ago(respond, outcome, alarm, clock):
    board = Board(NAME)
    response, told, _ = respond(board=board)
    start = clock.at
    windows = [outcome(start=start, end=start + timedelta(hours=1), firing=[alarm("a"), alarm("b")])]
    start += timedelta(hours=1)
    windows.append(outcome(start=start, end=start + timedelta(hours=1), firing=[alarm("b")]))
    clock.wait(hours=12)
    for window in windows:
        response(window)
    assert told.words == []
    assert board.predictions == 2000
    response.close()
    assert told.words == [("firing", "b")]


def test_without_a_tag_nothing_is_written(respond, store, outcome):
    response, *_ = respond(tagged=False)
    response(outcome())
    assert tag(store) is None


def options(tmp_path, **more):
    told = {
        "alerts": None,
        "state": tmp_path / "state",
        "metrics_file": None,
        "metrics_port": None,
        "metrics_host": "127.0.0.1",
        "metrics_classes": 200,
        "rollback_on_alarm": False,
        "rollback_kinds": ["class-share"],
        "rollback_cool_down": 15.0,
        "no_status_tag": False,
        "tracking_uri": "http://tracking.example.org",
        "registry_uri": "http://ada:hunter22@registry.example.org",
    }
    return SimpleNamespace(**{**told, **more})


def test_the_options_of_monitor_make_the_response(tmp_path, store, outcome, alarm, receiver, capsys):
    from promotion_gate.commands.alerts import response

    config = tmp_path / "alerts.toml"
    config.write_text(f'[receivers.own]\nkind = "webhook"\nurl = "{receiver.url}/hook"\n')
    args = options(tmp_path, alerts=config, metrics_file=tmp_path / "gate.prom", metrics_port=0)
    made = response(args, MemoryRegistry(store), NAME, Production(), lasting=True)
    made(outcome(firing=[alarm()]))
    made.close()
    assert json.loads(receiver.got[0].body)["event"] == "firing"
    url = re.search(r"http://127\.0\.0\.1:\d+/metrics", capsys.readouterr().err)[0]
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert b"promotion_gate_alarms_firing" in answer.read()
    assert "promotion_gate_production_version" in (tmp_path / "gate.prom").read_text()


def test_nobody_rolls_back_without_telling_anybody(tmp_path, store):
    from promotion_gate.commands.alerts import response

    with pytest.raises(UsageError, match="needs somebody who is told"):
        response(
            options(tmp_path, rollback_on_alarm=True),
            MemoryRegistry(store),
            NAME,
            Production(),
            lasting=False,
        )


def test_the_command_that_is_shown_reaches_the_same_model_and_shows_no_password(tmp_path):
    from promotion_gate.commands.alerts import _options

    shown = _options(options(tmp_path), Production(alias="live", mirror_stage="never"))
    told = ["--tracking-uri", "http://tracking.example.org", "--alias", "live", "--mirror-stage", "never"]
    assert shown == told


def test_alerts_test_says_how_each_receiver_fared(tmp_path, receiver, monkeypatch, capsys):
    config = tmp_path / "alerts.toml"
    monkeypatch.setenv("SLACK", receiver.url + "/services/T0/B0/s3cr3t")
    monkeypatch.setenv("KEY", "R" * 32)
    config.write_text(
        '[receivers.chat]\nkind = "slack"\nurl = "${SLACK}"\n'
        f'[receivers.pager]\nkind = "pagerduty"\nrouting_key = "${{KEY}}"\n'
        f'url = "{receiver.url}/v2/enqueue"\n'
    )
    assert main(["alerts", "test", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "chat: taken\npager: taken\n"
    assert {got.path for got in receiver.got} == {"/services/T0/B0/s3cr3t", "/v2/enqueue"}
    receiver.answers = [(403, {}, b"invalid_token s3cr3t " + b"R" * 32)] * 2
    assert main(["alerts", "test", "--config", str(config)]) == 5
    said = "".join(capsys.readouterr())
    assert "chat: FAILED: 127.0.0.1 answered 403: invalid_token ***" in said
    assert "2 of 2 receivers did not take the test alarm" in said
    chat, pager = re.findall(r"FAILED: .*", said)
    assert "s3cr3t" not in chat
    assert "R" * 32 not in pager


@pytest.mark.parametrize("what", ["config", "rules", "dashboard"])
def test_alerts_print(capsys, what):
    assert main(["alerts", "print", what]) == 0
    assert capsys.readouterr().out == ready_file(what)


def test_a_config_that_is_not_there(tmp_path, capsys):
    assert main(["alerts", "test", "--config", str(tmp_path / "none.toml")]) == 2
    assert "cannot read" in capsys.readouterr().err
