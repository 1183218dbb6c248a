"""One alarm is one message until it is over, whatever dies in between."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import promotion_gate
from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.alerts import WATCHED, Alerts, default_state, try_receivers
from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.settings import AlertSettings, Receiver
from promotion_gate.monitor.sinks.interface import DeliveryError
from promotion_gate.monitor.sinks.webhook import Webhook


class Told:
    """A sink in memory; ``fails`` are errors for the next sends."""

    secrets = ()

    def __init__(self):
        self.got = []
        self.fails = []

    def send(self, notification):
        if self.fails:
            raise self.fails.pop(0)
        self.got.append(notification)

    @property
    def words(self):
        return [(n.word, n.alarm.subject) for n in self.got]


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def start(tmp_path, clock, complaints):
    """A monitor's alerts on the same file; called again it is the process after a restart."""

    def make(*sinks, **more):
        receivers = [s if isinstance(s, Receiver) else Receiver(f"r{i}", s) for i, s in enumerate(sinks)]
        return Alerts(
            AlertSettings(receivers, more.pop("environment", ""), more.pop("remind_after", None)),
            tmp_path / "state" / "alerts.json",
            complain=complaints.append,
            clock=clock,
            **{"pauses": (), "seconds": 10.0, **more},
        )

    return make


def test_an_alarm_is_told_once_and_once_when_it_is_over(start, alarm):
    told = Told()
    for _ in range(3):
        alerts = start(told)
        alerts.take([alarm()])
        alerts.deliver()
    assert told.words == [("firing", "Speed limit 80")]
    alerts.take([alarm(state="resolved")])
    alerts.deliver()
    start(told).deliver()
    assert told.words[1:] == [("resolved", "Speed limit 80")]
    assert told.got[0].dedup_key == told.got[1].dedup_key
    assert told.got[0].id != told.got[1].id


def test_an_alarm_that_comes_back_is_told_again(start, alarm, clock):
    told = Told()
    alerts = start(told)
    for state in ("firing", "resolved", "firing"):
        clock.wait(hours=1)
        alerts.take([alarm(state=state)])
        alerts.deliver()
    assert [n.word for n in told.got] == ["firing", "resolved", "firing"]
    assert len({n.id for n in told.got}) == 3
    assert len({n.dedup_key for n in told.got}) == 1


def test_what_no_longer_fires_after_a_restart_is_over(start, alarm):
    told = Told()
    alerts = start(told)
    alerts.take([alarm(), alarm("stop", kind="foreign-move"), alarm(model="other")])
    alerts.deliver()
    alerts = start(told)
    alerts.take([], everything=WATCHED, model="signs")
    alerts.deliver()
    assert told.words[3:] == [("resolved", "Speed limit 80")]
    assert told.got[3].alarm.model == "signs"


def test_an_alarm_over_that_nobody_was_told_of_says_nothing(start, alarm):
    told = Told()
    alerts = start(told)
    alerts.take([alarm(state="resolved")])
    alerts.deliver()
    assert told.got == []


def test_the_first_moment_stays(start, alarm, clock):
    alerts = start(Told())
    first = clock.at
    alerts.take([alarm()])
    clock.wait(hours=2)
    alerts.take([alarm()])
    (standing,) = alerts.outbox.firing()
    assert standing.since == first


def test_a_reminder_if_it_is_wanted(start, alarm, clock):
    told = Told()
    alerts = start(told, remind_after=timedelta(hours=24))
    for _ in range(6):
        alerts.take([alarm()])
        alerts.deliver()
        clock.wait(hours=12)
    assert [n.word for n in told.got] == ["firing", "reminder", "reminder"]
    assert len({n.id for n in told.got}) == 3


def test_a_receiver_that_fails_is_tried_again_and_keeps_no_other_waiting(start, alarm, clock, complaints):
    good, bad = Told(), Told()
    bad.fails = [DeliveryError("host answered 503")] * 2
    alerts = start(bad, good)
    alerts.take([alarm()])
    alerts.deliver()
    assert good.words == [("firing", "Speed limit 80")]
    assert bad.words == []
    assert complaints == ["alarms to 'r0' failed: host answered 503"]
    assert alerts.waiting() == {"r0": 1, "r1": 0}
    alerts.deliver()  # too early
    assert len(bad.fails) == 1
    clock.wait(seconds=31)
    start(bad, good).deliver()  # the next look, after a restart
    clock.wait(seconds=61)
    alerts.deliver()
    assert bad.words == good.words
    fare = alerts.fares()["r0"]
    assert (fare.delivered, fare.failed, fare.problem) == (1, 2, "")


def test_the_pause_doubles_and_has_an_end(start, alarm, clock):
    bad = Told()
    alerts = start(bad)
    alerts.take([alarm()])
    pauses = []
    for _ in range(8):
        bad.fails = [DeliveryError("no")]
        alerts.deliver()
        pauses.append((alerts.fares()["r0"].next_try - clock.at).total_seconds())
        clock.wait(seconds=pauses[-1])
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    bad.fails = [DeliveryError("slow down", wait=3000)]
    alerts.deliver()
    assert alerts.fares()["r0"].next_try - clock.at == timedelta(seconds=3000)


def test_within_a_round_it_is_tried_at_once_again(start, alarm):
    told = Told()
    told.fails = [DeliveryError("no")] * 2
    alerts = start(told, pauses=(0.01, 0.01))
    alerts.take([alarm()])
    alerts.deliver()
    assert told.words == [("firing", "Speed limit 80")]


def test_a_message_that_is_refused_keeps_no_other_waiting(start, alarm):
    told = Told()
    told.fails = [DeliveryError("malformed", refused=True)]
    alerts = start(told)
    alerts.take([alarm("first", sigma=9.0), alarm("second", sigma=-8.0)])
    alerts.deliver()
    assert told.words == [("firing", "second")]
    assert alerts.fares()["r0"].next_try is None


def test_a_message_that_is_refused_is_sent_again_after_a_pause_alone(start, alarm, clock):
    told = Told()
    told.fails = [DeliveryError("malformed", refused=True)]
    alerts = start(told)
    alerts.take([alarm("first")])
    alerts.deliver()
    alerts.take([alarm("second")])
    alerts.deliver()
    assert told.words == [("firing", "second")]
    told.fails = [DeliveryError("malformed", refused=True)]
    clock.wait(seconds=31)
    alerts.deliver()
    assert told.fails == []
    clock.wait(seconds=31)
    alerts.deliver()
    assert told.words == [("firing", "second")]
    clock.wait(seconds=30)
    alerts.deliver()
    assert told.words == [("firing", "second"), ("firing", "first")]


def test_one_trouble_of_many_messages_is_one_line(start, alarm, complaints):
    told = Told()
    told.fails = [DeliveryError("host answered 403", refused=True)] * 5
    alerts = start(told)
    alerts.take([alarm(str(n)) for n in range(5)])
    alerts.deliver()
    assert complaints == ["alarms to 'r0' failed: host answered 403 (5 messages)"]


def test_over_before_it_could_be_told(start, alarm, clock):
    told = Told()
    told.fails = [DeliveryError("no")]
    alerts = start(told)
    alerts.take([alarm()])
    alerts.deliver()
    alerts.take([alarm(state="resolved")])
    clock.wait(minutes=1)
    alerts.deliver()
    assert told.words == [("resolved", "Speed limit 80")]
    assert json.loads(alerts.outbox.path.read_text())["alarms"] == {}


def test_over_before_anything_was_sent(start, alarm):
    told = Told()
    alerts = start(told)
    alerts.take([alarm()])
    alerts.take([alarm(state="resolved")])
    alerts.deliver()
    assert told.got == []
    assert json.loads(alerts.outbox.path.read_text())["alarms"] == {}


def test_killed_while_the_alarm_was_sent_its_end_is_told(start, alarm, monkeypatch):
    """Whether the first message arrived is not known; an incident must not stay open."""
    told = Told()
    alerts = start(told)
    alerts.take([alarm()])
    monkeypatch.setattr("promotion_gate.monitor.outbox.Outbox.delivered", lambda *_: None)
    alerts.deliver()
    monkeypatch.undo()
    alerts = start(told)
    alerts.take([alarm(state="resolved")])
    alerts.deliver()
    assert [n.word for n in told.got] == ["firing", "resolved"]


def test_what_nobody_takes_for_a_week_is_given_up_aloud(start, alarm, clock, complaints):
    told = Told()
    told.fails = [DeliveryError("no")] * 99
    alerts = start(told)
    alerts.take([alarm()])
    alerts.deliver()
    alerts.take([alarm(state="resolved")])
    clock.wait(days=8)
    alerts.take([])
    assert any("nobody could be told" in line for line in complaints)
    assert alerts.waiting() == {"r0": 0}


def test_a_receiver_hears_of_its_kinds_alone(start, alarm):
    told = Told()
    alerts = start(Receiver("x", told, frozenset({"unseen-class"})))
    alerts.take([alarm(), alarm(kind="unseen-class")])
    alerts.deliver()
    assert [n.alarm.kind for n in told.got] == ["unseen-class"]


def test_a_storm_comes_in_pieces_the_strongest_first(start, alarm):
    told = Told()
    alerts = start(told)
    alerts.take([alarm(f"class {i}", sigma=float(i)) for i in range(50)])
    alerts.deliver()
    assert [n.alarm.sigma for n in told.got] == [float(i) for i in range(49, 29, -1)]
    assert alerts.waiting() == {"r0": 30}
    for _ in range(2):
        alerts.deliver()
    assert len({n.id for n in told.got}) == len(told.got) == 50


def test_a_receiver_that_hangs_is_left_behind(start, alarm, receiver):
    receiver.hold.clear()
    good = Told()
    alerts = start(Webhook(Secret(receiver.url)), good, seconds=0.3)
    alerts.take([alarm()])
    alerts.deliver()
    assert good.words == [("firing", "Speed limit 80")]
    assert alerts.fares()["r0"].failed == 1
    alerts.deliver()
    assert len(receiver.got) == 1  # while it hangs, it is not asked again


def test_a_sink_that_crashes_is_a_failure(start, alarm, complaints):
    told = Told()
    told.fails = [RuntimeError("the secret is hunter22")]
    alerts = start(told)
    alerts.take([alarm()])
    alerts.deliver()
    assert complaints == ["alarms to 'r0' failed: sending failed: RuntimeError"]


def test_a_notice_is_told_once_in_an_episode(start, alarm):
    told = Told()
    alerts = start(told)
    trigger, note = alarm(), alarm(subject="", kind="rollback")
    alerts.take([trigger])
    assert alerts.notice(note, once="limit", about=trigger)
    assert not start(told).notice(note, once="limit", about=trigger)
    assert alerts.notice(note, once="cool-down", about=trigger)
    alerts.deliver()
    assert Counter(n.word for n in told.got) == {"notice": 2, "firing": 1}
    alerts.take([alarm(state="resolved")])
    alerts.take([trigger])
    assert alerts.notice(note, once="limit", about=trigger)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": "other"}', b"\xff", b'{"alarms": 3}'])
def test_a_broken_file_is_put_aside_and_alarms_are_told_again(start, alarm, complaints, content):
    told = Told()
    alerts = start(told)
    alerts.take([alarm()])
    alerts.deliver()
    alerts.outbox.path.write_bytes(content)
    alerts.take([alarm()])
    alerts.deliver()
    assert len(told.got) == 2
    assert "are told again" in complaints[0]
    assert alerts.outbox.path.with_name("alerts.json.broken").read_bytes() == content


def test_a_full_disk_does_not_silence_alarms(start, alarm, complaints, monkeypatch):
    told = Told()
    alerts = start(told)

    def full(path, content):
        raise UsageError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("promotion_gate.monitor.outbox.write_bytes", full)
    for _ in range(2):
        alerts.take([alarm()])
        alerts.deliver()
    assert told.words == [("firing", "Speed limit 80")]
    assert "No space left" in complaints[0]


def test_a_place_that_cannot_be_written_is_refused_at_the_start(start, tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(UsageError, match="cannot"):
        start(Told())


def test_strings_that_no_file_can_hold(start, alarm):
    told = Told()
    alerts = start(told)
    for _ in range(2):
        alerts.take(
            [alarm("\ud800 stop", detail={"x": float("nan"), "\ud800": ["\udfff"]}, sigma=float("inf"))]
        )
        alerts.deliver()
    assert len(told.got) == 1


def test_two_models_and_two_installations_have_alarms_of_their_own(start, alarm):
    told = Told()
    start(told, environment="a").take([alarm()])
    start(told, environment="a").deliver()
    start(told, environment="b").take([alarm()])
    start(told, environment="b").deliver()
    assert len({n.dedup_key for n in told.got}) == 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sets(st.sampled_from("abc"))),
        st.tuples(st.just("deliver"), st.lists(st.booleans(), max_size=3)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=20,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_the_last_word_is_told_and_no_word_twice(steps, tmp_path_factory, alarm, clock):
    path = tmp_path_factory.mktemp("state") / "alerts.json"
    told = Told()

    def begin():
        return Alerts(
            AlertSettings([Receiver("r", told)]), path, complain=print, clock=clock, pauses=(), seconds=10
        )

    alerts, firing = begin(), set()
    for step, what in steps:
        clock.wait(hours=1)
        if step == "take":
            firing = what
            alerts.take([alarm(s) for s in sorted(what)], everything=WATCHED, model="signs")
        elif step == "deliver":
            told.fails = [DeliveryError("no") for fails in what if fails]
            alerts.deliver()
        else:
            alerts = begin()
    told.fails = []
    clock.wait(hours=1)
    alerts.deliver()
    last = {n.alarm.subject: n.word for n in told.got}
    assert {s for s, word in last.items() if word == "firing"} == firing
    assert len({n.id for n in told.got}) == len(told.got)
    for subject in last:
        words = [n.word for n in told.got if n.alarm.subject == subject]
        assert not any(a == b == "resolved" for a, b in itertools.pairwise(words))


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(promotion_gate.__file__).parents[1])}
KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from promotion_gate.monitor.alerts import Alerts
from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.interface import Alarm
from promotion_gate.monitor.outbox import Outbox
from promotion_gate.monitor.settings import AlertSettings, Receiver
from promotion_gate.monitor.sinks.webhook import Webhook

at = datetime(2026, 3, 1, tzinfo=UTC)
alarm = Alarm("class-share", "signs", 3, "stop", "firing", "it drifts", at, at, 7.0)
if sys.argv[3] == "die":
    Outbox.delivered = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sink = Receiver("r", Webhook(Secret(sys.argv[1])))
alerts = Alerts(AlertSettings([sink]), Path(sys.argv[2]), complain=print, pauses=())
alerts.take([alarm])
alerts.deliver(patience=5)
"""


def test_killed_between_sending_and_writing_it_down(receiver, tmp_path):
    script = tmp_path / "one.py"
    script.write_text(textwrap.dedent(KILLED))

    def run(how):
        command = [sys.executable, str(script), receiver.url, str(tmp_path / "alerts.json"), how]
        return subprocess.run(command, env=ENVIRONMENT, timeout=60, check=False).returncode

    assert run("die") == -signal.SIGKILL
    assert run("live") == 0
    assert run("live") == 0
    documents = [json.loads(got.body) for got in receiver.got]
    assert len(documents) == 2  # at least once: the second try, and then silence
    assert documents[0]["id"] == documents[1]["id"]
    assert documents[0]["dedup_key"] == documents[1]["dedup_key"]


def test_two_processes_on_one_file_send_once(receiver, tmp_path):
    script = tmp_path / "one.py"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(script), receiver.url, str(tmp_path / "alerts.json"), "live"]
    both = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(receiver.got) == 1


def test_between_looks_it_is_tried_again(start, alarm, receiver, clock):
    alerts = start(Webhook(Secret(receiver.url)))
    alerts.take([alarm()])
    alerts.keep_retrying(every=0.02)
    for _ in range(500):
        if receiver.got:
            break
        alerts._over.wait(0.02)
    alerts.close()
    alerts._retrying.join(10)
    assert len(receiver.got) == 1


def test_a_test_alarm_goes_to_every_receiver_and_is_kept_nowhere(start, clock):
    good, bad = Told(), Told()
    bad.fails = [DeliveryError("host answered 403", refused=True)]
    settings = AlertSettings([Receiver("good", good), Receiver("bad", bad)])
    tried = {each.receiver: each.problem for each in try_receivers(settings, clock)}
    assert tried == {"good": "", "bad": "host answered 403"}
    assert good.got[0].word == "test"
    assert "nothing is wrong" in good.got[0].message


def test_every_model_of_every_registry_has_a_file_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    paths = {default_state(host, name) for host in ("a", "b") for name in ("x", "y", "../../x")}
    assert len(paths) == 6
    assert {path.parent for path in paths} == {tmp_path / "promotion-gate"}
