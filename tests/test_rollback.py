"""Rollback beside its move: the plan, the time to recovery and where a model stands."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate import operators, transition
from promotion_gate.core.errors import ArtifactError, RegistryConflict, SigningError, UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.registry.interface import LockHolder
from promotion_gate.registry.memory import Killed, MemoryRegistry
from promotion_gate.rollback import duration

NAME = "signs"


def without_writing(world, **arguments):
    registry = MemoryRegistry(world.store)
    before = repr((world.store.aliases, world.store.events, world.store.runs, world.store.locks))
    try:
        return transition.plan_rollback(registry, NAME, actor=world.actor, **arguments)
    finally:
        assert repr((world.store.aliases, world.store.events, world.store.runs, world.store.locks)) == before


def test_a_plan_says_what_the_rollback_then_does(world):
    world.promote(1, 2, 3)
    world.store.artifacts[replace(world.judged(2).ref)]["data/model"] = b"other"
    plan = without_writing(world)
    told = world.rollback()
    assert (plan.ref, plan.digest, plan.from_version) == (told.record.ref, told.record.digest, 3)
    assert list(plan.notes) == list(told.notes)
    assert "signs/2 passed over" in plan.notes[0]


@pytest.mark.parametrize(
    ("prepare", "arguments", "error"),
    [
        (lambda world: None, {}, RegistryConflict),
        (lambda world: None, {"to": 1}, RegistryConflict),
        (lambda world: None, {"to": 3}, SigningError),
        (lambda world: None, {"unsafe_unsigned": True}, UsageError),
        (
            lambda world: world.store.locks.update(
                signs=LockHolder("t", "bob@train", world.store.clock + transition.LEASE)
            ),
            {"to": 1},
            RegistryConflict,
        ),
    ],
    ids=["nothing to go back to", "there already", "never promoted", "unnamed", "locked"],
)
def test_a_plan_fails_as_the_rollback_does(world, prepare, arguments, error):
    world.promote(1)
    prepare(world)
    with pytest.raises(error) as planned:
        without_writing(world, **arguments)
    with pytest.raises(error) as done:
        world.rollback(**arguments)
    assert planned.value.exit_code == done.value.exit_code


def test_a_plan_reads_the_bytes(world):
    world.promote(1, 2)
    world.store.artifacts[world.judged(1).ref]["data/model"] = b"other"
    with pytest.raises(ArtifactError, match="have changed"):
        without_writing(world, to=1)


@pytest.mark.parametrize("call", ["begin_event.record", "set_alias"])
def test_a_plan_foresees_what_becomes_of_a_dead_process(world, call):
    world.promote(1, 2)

    def die(number, name):
        if name == call:
            raise Killed

    with pytest.raises(Killed):
        world.promote(3, registry=MemoryRegistry(world.store, after=die))
    world.store.wait(121)
    plan = without_writing(world)
    assert "begun by a process that died" in plan.notes[0]
    assert world.rollback().record.ref == plan.ref


def test_a_plan_tells_of_a_change_past_the_gate(world):
    world.promote(1, 2)
    world.alias = 4
    plan = without_writing(world)
    assert "was moved to version 4 past the gate" in plan.notes[0]
    assert (plan.from_version, plan.ref.version) == (4, 2)
    text = operators.planned_message(plan)
    assert "would roll back signs: production would be version 2, is 4" in text
    assert text.endswith("nothing was moved or written")


def test_the_time_to_recovery_runs_from_the_alarm_to_the_end(world):
    world.promote(1, 2)
    alarm = world.store.clock
    world.store.wait(240)
    told = world.rollback(alarm_at=alarm)
    assert told.record.alarm_at == alarm
    world.store.wait(12)
    restored = transition.note_restored(world.registry, told, "it serves", world.actor)
    assert restored.record.reason == "time to recovery 4 min 12 s: it serves"
    assert (restored.record.about, restored.record.digest) == (told.event_id, told.record.digest)
    assert world.story()[-2:] == [("rollback", 2, 1), ("restored", 1)]
    facts = world.status()
    assert facts.recovery_seconds == [252.0]
    assert facts.version == 1
    assert not facts.held


def test_without_an_alarm_there_is_no_time_to_recovery(world):
    world.promote(1, 2)
    assert transition.note_restored(world.registry, world.rollback(), "it serves", world.actor) is None
    assert world.status().mttr is None


def test_an_alarm_in_the_future_moves_nothing(world):
    world.promote(1, 2)
    with pytest.raises(UsageError, match="in the future"):
        world.rollback(alarm_at=world.store.clock + timedelta(seconds=1))
    assert world.alias == 2


def test_the_mean_counts_each_rollback_once_and_only_by_true_records(world):
    world.promote(1, 2, 3)
    alarm = world.store.clock
    for seconds in (60, 120):
        world.store.wait(seconds)
        told = world.rollback(alarm_at=alarm)
        first = transition.note_restored(world.registry, told, "back", world.actor)
        world.store.wait(500)
        transition.note_restored(world.registry, told, "said twice", world.actor)
        alarm = world.store.clock
    facts = world.status()
    assert facts.recovery_seconds == [60.0, 120.0]
    assert facts.mttr == 90.0
    assert "mean time to recovery: 1 min 30 s, over 2 rollbacks" in operators.status_text(facts)
    world.store.runs[first.event_id].files.clear()
    assert world.status().recovery_seconds == [60.0, 620.0]


@given(st.floats(0, 1e8))
def test_a_length_of_time_is_two_numbers_at_most(seconds):
    said = duration(seconds)
    assert len(said.split()) in (2, 4)
    assert "60 s" not in said
    assert "60 min" not in said


def test_status_at_a_glance(world):
    facts = world.status()
    assert (facts.candidate, facts.last_good, facts.drift, facts.mttr) == (4, None, "", None)
    world.promote(1, 2)
    world.hold(3)
    facts = world.status()
    assert (facts.candidate, facts.version, facts.last_good) == (4, 2, 1)
    assert [e.event.pointer.version for e in facts.held] == [3]
    world.store.aliases[NAME]["candidate"] = 3
    world.store.model_tags[NAME] = {"promotion_gate.drift": "class 'Stop' by 6.1 sigma\x1b[2J" + "x" * 900}
    transition.revoke(world.registry, world.judged(4).ref, reason="sticker", actor=world.actor)
    facts = world.status()
    assert facts.candidate == 3
    assert facts.revoked == [4]
    assert len(facts.drift) == 200
    text = operators.status_text(facts)
    for line in ("candidate: version 3", "last good: version 1", "revoked: 4", "drift: class 'Stop' by 6.1"):
        assert f"\n{line}" in text
    assert "\x1b" not in text


def test_the_candidate_is_above_production_and_not_judged(world):
    world.promote(3)
    transition.record_verdict(world.registry, world.judged(4, Outcome.REJECT), actor=world.actor)
    assert world.status().candidate is None


def test_last_good_is_where_a_rollback_would_go(world):
    world.promote(1, 2, 3, 4)
    transition.record_verdict(world.registry, world.judged(3, Outcome.REJECT), actor=world.actor)
    transition.revoke(world.registry, world.judged(2).ref, reason="sticker", actor=world.actor)
    assert world.status().last_good == without_writing(world).ref.version == 1
