"""Without a delivery: versions are found by polling, and a move past the gate raises the alarm once."""

from dataclasses import replace

import pytest

from promotion_gate import transition
from promotion_gate.core.policy import load_policy
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.listening.watching import Watcher
from promotion_gate.registry.interface import EventPointer
from promotion_gate.registry.memory import MemoryRegistry


@pytest.fixture
def watched(listener, policy):
    one = listener(room=2)
    one.alarms = []
    one.watcher = Watcher(
        one.registry,
        one.ledger,
        one.gatekeeper,
        policy,
        one.counts,
        one.lines.append,
        one.alarms.append,
        models=(),
        poll=3600,
    )
    yield one
    one.watcher.end()
    if one.watcher.ident is not None:
        one.watcher.join(20)


def test_polling_finds_what_no_delivery_came_for(watched, gate, eventually):
    watched.gatekeeper.start()
    watched.watcher.start()
    eventually(lambda: gate.ran == [1, 2])  # there was room for two; the next poll finds the third
    eventually(lambda: watched.counts.totals().get("gate_runs promote") == 2)
    watched.watcher.poll()
    eventually(lambda: gate.ran == [1, 2, 3])
    watched.watcher.poll()
    assert watched.counts.totals()["polls answered"] == 1


def test_polling_goes_on_when_the_registry_does_not_answer(watched, gate, eventually):
    def fails(number, name):
        raise OSError("no route")

    before, watched.registry._before = watched.registry._before, fails
    watched.watcher.start()
    eventually(lambda: watched.counts.totals().get("polls failed") == 1)
    watched.registry._before = before
    watched.gatekeeper.start()
    watched.watcher.look_at("signs")
    watched.watcher.poll()
    eventually(lambda: 1 in gate.ran)
    assert watched.watcher.is_alive()


def test_a_model_that_is_not_there_keeps_no_other_from_being_polled(watched, eventually, gate):
    watched.watcher._models = ("no-such-model", "signs")
    watched.gatekeeper.start()
    watched.watcher.poll()
    eventually(lambda: gate.ran == [1, 2])


def look(watched, policy):
    watched.watcher.find_foreign_move("signs", load_policy(policy))
    return [(alarm.state, alarm.version) for alarm in watched.alarms]


def test_a_foreign_move_alarms_once_and_is_resolved(watched, store, judge, policy):
    assert look(watched, policy) == []
    store.aliases["signs"]["production"] = 3  # before the gate's first move: nothing to disagree with
    assert look(watched, policy) == []
    del store.aliases["signs"]["production"]
    judge(1)
    assert look(watched, policy) == []
    store.aliases["signs"]["production"] = 3
    assert look(watched, policy) == look(watched, policy) == [("firing", 3)]
    del store.aliases["signs"]["production"]
    assert look(watched, policy)[1:] == [("firing", None)]
    store.aliases["signs"]["production"] = 1
    assert look(watched, policy)[2:] == [("resolved", 1)]
    assert watched.counts.totals()["foreign_moves"] == 2
    entries = transition.history(MemoryRegistry(store), "signs")
    assert [entry.event.pointer.action for entry in entries][:3] == ["promote", "foreign", "foreign"]


def test_a_move_of_the_gates_own_that_is_not_finished_is_looked_at_again(watched, store, judge, policy):
    judge(1)
    event = judge(2).event_id
    store.events[event] = replace(store.events[event], state="begun")
    assert look(watched, policy) == []
    assert "signs" in watched.watcher._due
    watched.watcher._moving_since["signs"] -= 1000  # its process died; its signed record tells
    assert look(watched, policy) == []
    MemoryRegistry(store).finish_event(event, "done")
    assert look(watched, policy) == []


@pytest.mark.parametrize("state", ["begun", "done"])
def test_a_forged_event_hides_no_move_past_the_gate(watched, store, judge, policy, state):
    judge(1)
    pointer = EventPointer("signs", 2, "promote", "production", 2, 1, 2)
    event = MemoryRegistry(store).begin_event(pointer, b"no record")
    store.events[event] = replace(store.events[event], state=state)
    store.aliases["signs"]["production"] = 2
    look(watched, policy)
    if state == "begun":
        watched.watcher._moving_since["signs"] -= 1000
    assert look(watched, policy) == look(watched, policy) == [("firing", 2)]
    judge(3, Outcome.REJECT)  # whatever is written after it
    assert look(watched, policy) == [("firing", 2)]


def test_an_alarm_of_an_earlier_process_is_ended(watched, store, judge, policy):
    judge(1)
    store.aliases["signs"]["production"] = 3
    assert look(watched, policy) == [("firing", 3)]
    alarms, watched.watcher = watched.alarms, restarted(watched, policy)
    store.aliases["signs"]["production"] = 1
    assert look(watched, policy) == [("firing", 3), ("resolved", 1)]
    assert {alarm.key for alarm in alarms} == {("signs", "foreign-move", "")}


def restarted(watched, policy):
    parts = (watched.registry, watched.ledger, watched.gatekeeper, policy, watched.counts)
    note, take = watched.lines.append, watched.alarms.append
    return Watcher(*parts, note, take, models=(), poll=3600, standing=tuple(watched.alarms))


def test_a_model_that_cannot_be_looked_at_hides_no_other(watched, store, judge, policy):
    judge(1)
    store.aliases["a-broken-one"] = {"production": 1}
    store.add_version(ModelRef("a-broken-one", 1), {})
    answers = watched.registry.events

    def events(name):
        if name == "a-broken-one":
            raise ValueError("nonsense")
        return answers(name)

    watched.registry.events = events
    store.aliases["signs"]["production"] = 3
    with pytest.raises(ValueError, match="nonsense"):
        watched.watcher.poll()
    assert [(alarm.model, alarm.state) for alarm in watched.alarms] == [("signs", "firing")]


def test_an_alias_delivery_is_looked_at_at_once(watched, store, judge, eventually):
    judge(1)
    watched.watcher.start()
    eventually(lambda: watched.counts.totals().get("polls answered"))
    store.aliases["signs"]["production"] = 2
    watched.watcher.look_at("signs")
    eventually(lambda: watched.alarms)
    (alarm,) = watched.alarms
    assert (alarm.kind, alarm.model, alarm.version) == ("foreign-move", "signs", 2)
    assert "past the gate" in alarm.message
