"""Changes of production past the gate: told once, never silently overwritten, settled by a person."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promotion_gate import transition
from promotion_gate.core.errors import (
    ArtifactError,
    RegistryConflict,
    RegistryError,
    SigningError,
    UsageError,
)
from promotion_gate.core.production import Production
from promotion_gate.core.types import NO_DIGEST, ForeignMove, Outcome
from promotion_gate.registry.interface import RECORD_FILE, EventPointer, LockHolder
from promotion_gate.registry.memory import Killed, MemoryRegistry
from promotion_gate.vouching import vouched_version

NAME = "signs"


@pytest.fixture
def moved(world):
    """Versions 1 and 2 were promoted, and a hand moved the alias to 4."""
    world.promote(1, 2)
    world.alias = 4
    return world


def test_a_change_is_told_once_however_often_one_looks(moved):
    (told,) = moved.note()
    assert told.record.foreign == ForeignMove("production", 2, 4)
    assert told.record.digest == NO_DIGEST
    assert (told.record.user, told.record.at) == ("ada", moved.store.clock)
    assert "which named version 2, was moved to version 4 past the gate" in told.record.reason
    assert moved.note() == []
    assert moved.story() == [("promote", None, 1), ("promote", 1, 2), ("foreign", 2, 4)]
    assert moved.alias == 4
    assert not moved.store.locks


def test_every_further_change_is_told_too_also_the_way_back(moved):
    moved.note()
    moved.alias = None
    (gone,) = moved.note()
    assert "was taken away past the gate" in gone.record.reason
    moved.alias = 2
    moved.note()
    assert moved.note() == []
    assert moved.story()[2:] == [("foreign", 2, 4), ("foreign", 4, None), ("foreign", None, 2)]
    moved.promote(3)
    assert moved.alias == 3


def test_a_model_that_the_gate_never_moved_has_nothing_to_disagree_with(world):
    world.alias = 3
    assert world.note() == []
    assert world.status().foreign is None
    world.promote(1)
    assert world.story() == [("promote", 3, 1)]


@pytest.mark.parametrize("to", [4, None], ids=["moved", "taken away"])
def test_nothing_is_promoted_over_a_change_past_the_gate(world, to):
    world.promote(1, 2)
    world.hold(3)
    verdict = world.judged(3)
    world.alias = to
    for attempt in (
        lambda: transition.promote(world.registry, verdict, actor=world.actor),
        lambda: world.approve(3),
    ):
        with pytest.raises(RegistryConflict, match=r"past the gate; .*rollback.*--accept-foreign"):
            attempt()
    assert world.alias == to
    assert world.story()[-1] == ("foreign", 2, to)
    assert [line[0] for line in world.story()].count("foreign") == 1


def test_rollback_settles_it_and_tells_what_it_overwrote(moved):
    told = moved.rollback()
    assert moved.alias == 2
    assert moved.story()[2:] == [("foreign", 2, 4), ("rollback", 4, 2)]
    assert any("was moved to version 4 past the gate" in note for note in told.notes)
    moved.promote(3)


def test_rollback_puts_back_an_alias_that_was_taken_away(world):
    world.promote(1, 2)
    world.alias = None
    world.rollback()
    assert world.alias == 2
    assert world.story()[2:] == [("foreign", 2, None), ("rollback", None, 2)]


def test_a_rollback_never_brings_back_unnamed_what_a_hand_went_back_from(world):
    world.promote(1, 2)
    world.alias = 1
    with pytest.raises(RegistryConflict, match=r"no earlier good version.*'--to 2' goes back to where"):
        world.rollback()
    world.rollback(to=2)
    assert world.alias == 2
    assert world.rollback().record.ref.version == 1


def test_a_person_can_let_stand_what_the_gate_promoted_once(world):
    world.promote(1, 2, 3)
    world.alias = 2
    told = world.accept()
    assert (told.record.action, told.record.unsafe, told.record.reason) == ("accept", (), "it was me")
    assert world.story()[3:] == [("foreign", 3, 2), ("accept", 2, 2)]
    assert vouched_version(world.registry, NAME, trusted=world.actor.keys.trusted).broken is None
    assert transition.good_versions(world.registry.events(NAME), "production", 2) == [1]
    world.promote(4)
    assert world.rollback().record.ref.version == 2


def test_what_nothing_vouches_for_stands_only_by_a_named_switch_off(moved):
    with pytest.raises(SigningError, match="never promoted by the gate"):
        moved.accept()
    assert moved.story()[2:] == [("foreign", 2, 4)]
    told = moved.accept(unsafe_unsigned=True)
    assert told.record.unsafe == ("unsafe_unsigned",)
    assert any("UNVERIFIED" in note for note in told.notes)
    vouched = vouched_version(moved.registry, NAME, trusted=moved.actor.keys.trusted)
    assert isinstance(vouched.broken, SigningError)
    moved.promote(3)
    told = moved.rollback()
    assert told.record.ref.version == 2
    assert any("signs/4 passed over" in note for note in told.notes)


def test_a_revoked_version_stands_by_no_switch_off(moved, worlds):
    transition.revoke(moved.registry, worlds.ref(4), reason="sticker", actor=moved.actor)
    with pytest.raises(ArtifactError, match="was revoked"):
        moved.accept(unsafe_unsigned=True)


def test_there_is_nothing_to_accept_where_nothing_was_changed_or_nothing_is_there(world):
    world.promote(1)
    assert world.accept() is None
    with pytest.raises(UsageError, match="reason"):
        world.accept(reason=" ")
    world.alias = None
    with pytest.raises(RegistryConflict, match="there is no version to accept"):
        world.accept()
    assert world.story()[-1] == ("foreign", 1, None)


def test_a_persons_word_on_the_very_version_that_is_there_settles_it(moved):
    moved.hold(4)
    moved.approve(4)
    assert moved.story()[-3:] == [("hold", 4), ("foreign", 2, 4), ("approve", 4, 4)]
    moved.promote(3)


def test_a_change_past_the_gate_vouches_for_nothing(moved):
    moved.note()

    for version in (4, None):
        with pytest.raises(RegistryConflict, match="past the gate"):
            transition.vouched_digest(moved.registry, NAME, version, actor=moved.actor)
    trusted = moved.actor.keys.trusted
    assert isinstance(vouched_version(moved.registry, NAME, trusted=trusted).broken, RegistryConflict)
    by_number = vouched_version(moved.registry, f"{NAME}/4", trusted=trusted).broken
    assert isinstance(by_number, SigningError)
    assert "never promoted" in str(by_number)


def test_an_entry_that_no_trusted_key_signed_hides_no_change(moved, worlds, tmp_path):
    eve = worlds.stranger(tmp_path, moved)
    transition.note_foreign_moves(moved.registry, NAME, actor=replace(eve, keys=eve.keys))
    (mine,) = moved.note()
    assert mine.record.user == "ada"
    assert moved.note() == []


def test_a_true_entry_told_again_in_another_place_hides_no_change(moved):
    """An old entry is copied into a new run after the gate moved on: its place in the history is signed."""
    (told,) = moved.note()
    moved.rollback()
    pointer = EventPointer(NAME, 4, "foreign", "production", 99, 2, 4)
    copied = moved.registry.begin_event(pointer, told.envelope)
    moved.registry.finish_event(copied, "done")
    moved.alias = 4
    assert len(moved.note()) == 1


def test_an_altered_pointer_does_not_make_a_move_of_a_foreign_entry(moved):
    (told,) = moved.note()
    event = moved.store.events[told.event_id]
    moved.store.events[told.event_id] = replace(event, pointer=replace(event.pointer, action="promote"))
    with pytest.raises(SigningError, match="speaks of another event"):
        transition.vouched_digest(moved.registry, NAME, 4, actor=moved.actor)
    with pytest.raises(SigningError, match="speaks of another event"):
        moved.promote(3)
    assert moved.alias == 4


def test_a_last_move_without_a_true_record_stops_promotions(world):
    last = world.promote(1)
    del world.store.runs[last.event_id].files[RECORD_FILE]
    with pytest.raises(SigningError, match="is missing"):
        world.promote(2)
    assert world.alias == 1


def test_while_somebody_moves_production_nothing_foreign_is_told(world):
    world.promote(1)
    seen = []

    def look(number, call):
        if call in ("set_alias", "finish_event"):
            seen.append(world.note())

    world.promote(2, registry=MemoryRegistry(world.store, before=look, after=look))
    assert seen == [[]] * 4
    assert world.note() == []
    world.alias = 4
    world.store.locks[NAME] = LockHolder("t", "bob@train", world.store.clock + transition.LEASE)
    assert world.note() == []


@pytest.mark.parametrize("call", ["model", "events", "begin_event", "finish_event"])
def test_a_registry_that_fails_while_it_is_told_leaves_no_lock_behind(moved, call):
    locked = []

    def fail(number, name):
        locked.append(bool(moved.store.locks))
        if name == call and locked[-1]:
            raise RegistryError("no answer")

    with pytest.raises(RegistryError, match="no answer"):
        moved.note(MemoryRegistry(moved.store, before=fail))
    assert not moved.store.locks
    moved.make_whole()
    assert [line[0] for line in moved.story() if line[0] != "recover"][2:] == ["foreign"]


def test_a_stage_that_was_moved_is_told_and_settled(worlds, keyring):
    world = worlds.World(keyring, stage="Staging")
    world.promote(1, 2)
    assert world.staged == [2]
    world.stage(3, "Production")
    (told,) = world.note()
    assert told.record.foreign == ForeignMove("production", 2, 2, (2, 3))
    assert world.note() == []
    assert "stage Production of 'signs' holds 2, 3" in told.record.reason
    with pytest.raises(RegistryConflict, match="stage Production"):
        transition.vouched_digest(world.registry, NAME, 2, actor=world.actor)
    with pytest.raises(RegistryConflict, match="stage Production"):
        world.promote(4)
    assert world.note() == []
    assert world.accept().record.unsafe == ()
    assert world.staged == [2]
    world.promote(4)
    assert world.staged == [4]
    assert world.store.versions[worlds.ref(2)].stage == "Archived"


def test_a_stage_that_follows_nothing_is_nobodys_business(worlds, keyring):
    world = worlds.World(keyring, stage="Staging")
    verdict = world.judged(1)
    transition.promote(world.registry, verdict, Production(mirror_stage="never"), world.actor)
    world.stage(3, "Production")
    assert world.note() == []
    assert world.status().foreign is None


def test_whether_the_stage_follows_is_signed(worlds, keyring):
    world = worlds.World(keyring, stage="Staging")
    event_id = world.promote(1).event_id
    event = world.store.events[event_id]
    world.store.events[event_id] = replace(event, pointer=replace(event.pointer, mirror_stage=False))
    world.stage(3, "Production")
    with pytest.raises(SigningError, match="speaks of another event"):
        world.promote(2)


def test_status_shows_it_and_writes_nothing(moved):
    calls = MemoryRegistry(moved.store)
    facts = transition.status(calls, NAME, trusted=moved.actor.keys.trusted)
    assert facts.foreign == ForeignMove("production", 2, 4)
    assert facts.moved_elsewhere
    assert not {"begin_event", "acquire_lock", "finish_event", "set_alias"} & set(calls.calls)
    assert len(moved.story()) == 2


COMMANDS = {
    "note": lambda world, registry: world.note(registry),
    "rollback": lambda world, registry: world.rollback(registry),
    "accept": lambda world, registry: world.accept(registry, unsafe_unsigned=True),
    "approve": lambda world, registry: world.approve(4, registry),
}


@pytest.mark.parametrize("staged", [False, True], ids=["aliases", "stages"])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_call_the_change_is_told_once_and_production_is_where_the_story_ends(
    worlds, keyring, command, staged
):
    def prepared():
        world = worlds.World(keyring, stage="Staging" if staged else "")
        world.promote(1, 2)
        world.alias = 4
        world.hold(4)
        return world

    world = prepared()
    registry = world.registry
    COMMANDS[command](world, registry)
    for number in range(1, len(registry.calls) + 1):
        for moment in ("before", "after"):
            world = prepared()
            hook = {moment: worlds.kill_at(number)}
            with pytest.raises(Killed):
                COMMANDS[command](world, MemoryRegistry(world.store, **hook))
            world.store.wait(121)
            world.make_whole()
            where = (number, moment)
            assert not [e for e in world.store.events.values() if e.state == "begun"], where
            moves = [line for line in world.story() if line[0] not in ("hold", "recover")]
            assert moves[:3] == [("promote", None, 1), ("promote", 1, 2), ("foreign", 2, 4)], where
            assert len(moves) <= 4, where
            assert moves[-1][2] == world.alias, where
            assert world.note() == []
            if staged and len(moves) == 4:
                assert world.staged == [world.alias], where
            if len(moves) == 3:
                world.rollback()
            world.promote(3)
            assert world.alias == 3


STEPS = (
    """
promote, rollback, accept, note, recover, kill promote, kill rollback, kill accept, kill note,
hand 1, hand 2, hand 4, hand none
""".replace("\n", " ")
    .strip()
    .split(", ")
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(STEPS),
        max_size=12,
    ),
    data=st.data(),
)
def test_whatever_hands_and_processes_do_the_story_has_no_gap(worlds, keyring, steps, data):
    """Every entry begins where the one before it ended, and the last one ends where production is."""
    world = worlds.World(keyring)
    for step in steps:
        world.store.wait(200)
        verb, _, rest = step.rpartition(" ")
        try:
            if verb == "hand":
                world.note()  # changes to and fro between two looks cannot be seen
                world.alias = None if rest == "none" else int(rest)
                continue
            kill = worlds.kill_at(data.draw(st.integers(1, 24))) if verb == "kill" else lambda n, c: None
            registry = MemoryRegistry(world.store, before=kill)
            if rest == "promote":
                world.promote(data.draw(st.integers(1, 4)), registry=registry)
            elif rest == "rollback":
                world.rollback(registry)
            elif rest == "accept":
                world.accept(registry, unsafe_unsigned=True)
            elif rest == "note":
                world.note(registry)
            else:
                world.make_whole()
        except (RegistryConflict, Killed):
            pass
    world.store.wait(200)
    world.make_whole()
    moves = [line for line in world.story() if len(line) == 3]
    if moves and moves[0][0] == "foreign":
        pytest.fail("told of a change before the gate had moved anything")
    for before, after in itertools.pairwise(moves):
        assert before[2] == after[1], moves
    if moves:
        assert moves[-1][2] == world.alias, moves
    else:
        assert not world.store.locks


def test_a_verdict_of_the_gate_on_a_model_that_was_moved_by_hand_is_kept(moved):
    told = transition.record_verdict(moved.registry, moved.judged(3, Outcome.REJECT), actor=moved.actor)
    assert told.record.action == "reject"
