"""What a dead process left is closed, told in the history, and told once."""

from dataclasses import replace

import pytest

from promotion_gate import transition
from promotion_gate.core.errors import ExitCode, NotInRegistry, RegistryConflict
from promotion_gate.core.types import ModelRef
from promotion_gate.registry.interface import MAX_SEQUENCE, RECORD_FILE, EventPointer, LockHolder
from promotion_gate.registry.memory import Killed, MemoryRegistry
from promotion_gate.vouching import vouch


def killed_after(world, call, command):
    def hook(number, name):
        if name == call:
            raise Killed

    with pytest.raises(Killed):
        command(MemoryRegistry(world.store, after=hook))


@pytest.mark.parametrize(
    ("call", "state", "at"), [("begin_event.record", "undone", 1), ("set_alias", "done", 2)]
)
def test_what_was_done_stands_in_the_history_signed(world, call, state, at):
    world.promote(1)
    killed_after(world, call, lambda registry: world.promote(2, registry=registry))
    world.store.wait(121)
    mended = world.make_whole()
    assert mended.lines == [f"promote of signs/2, begun by a process that died: {state}"]
    assert mended.left is None
    assert world.alias == at
    dead = next(e for e in world.store.events.values() if e.pointer.version == 2)
    assert dead.state == state
    entry = world.history()[-1]
    assert (entry.record.action, entry.record.about, entry.record.user) == ("recover", dead.event_id, "ada")
    assert entry.record.reason == mended.lines[0]
    assert world.make_whole().lines == []
    assert world.story()[-1] == ("recover", 2)


def broken(world, version):
    registry = world.registry
    ref, events = ModelRef("signs", version), registry.events("signs")
    return vouch(registry, ref, events, "production", world.actor.keys.trusted).broken


def test_no_recovery_covers_a_record_that_was_taken_away(world):
    world.promote(1, 2)
    revoked = transition.revoke(
        world.registry, ModelRef("signs", 1), reason="bad", actor=world.actor
    ).event_id
    world.promote(3)
    del world.store.runs[revoked].files[RECORD_FILE]
    event = world.store.events[revoked]
    world.store.events[revoked] = replace(event, state="begun", pointer=replace(event.pointer, action="hold"))
    world.store.wait(121)
    assert world.make_whole().lines == ["hold of signs/1, begun by a process that died: undone"]
    assert "no trusted record of its entry 3" in str(broken(world, 1))


def test_what_died_before_it_had_a_record_is_no_gap_also_where_others_wrote_meanwhile(world):
    world.promote(1)
    killed_after(world, "begin_event", lambda registry: world.promote(2, registry=registry))
    world.hold(3)
    world.store.wait(121)
    assert world.make_whole().lines == ["promote of signs/2, begun by a process that died: undone"]
    world.promote(4)
    assert broken(world, 1) is None


def test_an_event_that_claims_the_last_place_is_named(world):
    world.promote(1)
    pointer = EventPointer("signs", 1, "hold", "production", MAX_SEQUENCE)
    forged = MemoryRegistry(world.store).begin_event(pointer, b"")
    with pytest.raises(RegistryConflict, match=f"no event can come after run {forged}"):
        world.promote(2)


def test_a_live_process_is_left_alone(world):
    world.promote(1)
    killed_after(world, "set_alias", lambda registry: world.promote(2, registry=registry))
    with pytest.raises(RegistryConflict, match=r"ada@ship is changing.*its lock falls at") as caught:
        world.make_whole()
    assert caught.value.exit_code is ExitCode.REGISTRY
    assert world.store.events["event-2"].state == "begun"


def test_a_lock_that_a_dead_process_left_is_taken_away(world):
    world.store.locks["signs"] = LockHolder("t", "bob@train", world.store.clock)
    assert world.make_whole().lines == ["the lock of 'signs' that bob@train left behind was taken away"]
    assert not world.store.locks
    assert world.make_whole().lines == []


def test_a_change_past_the_gate_is_told_and_left_to_a_person(world):
    world.promote(1)
    world.alias = 3
    mended = world.make_whole()
    assert len(mended.lines) == 1
    assert "--accept-foreign" in str(mended.left)
    again = world.make_whole()
    assert again.lines == []
    assert again.left is not None
    assert world.alias == 3


def test_a_model_that_is_not_there_has_nothing_to_recover(world):
    with pytest.raises(NotInRegistry, match="ghost"):
        transition.make_whole(world.registry, "ghost", actor=world.actor)


def test_a_verdict_whose_process_died_is_kept(world):
    killed_after(
        world,
        "begin_event.record",
        lambda registry: transition.record_verdict(registry, world.judged(1), actor=world.actor),
    )
    assert world.make_whole().lines == []  # its process may be alive: it holds no lock
    world.store.wait(121)
    assert world.make_whole().lines == ["hold of signs/1, begun by a process that died: done"]
    assert world.story() == [("hold", 1), ("recover", 1)]


@pytest.mark.parametrize("died_after", ["begin_event.record", "set_alias", "finish_event"])
def test_a_recovery_that_is_killed_at_any_call_is_told_once(worlds, keyring, died_after):
    def prepared():
        world = worlds.World(keyring, stage="Staging")
        world.promote(1)
        killed_after(world, died_after, lambda registry: world.promote(2, registry=registry))
        world.store.wait(121)
        return world

    world = prepared()
    registry = world.registry
    transition.recover(registry, "signs", actor=world.actor)
    story, alias = world.story(), world.alias
    assert story.count(("recover", 2)) == (0 if died_after == "finish_event" else 1)
    for number in range(1, len(registry.calls) + 1):
        for moment in ("before", "after"):
            world = prepared()
            hook = {moment: worlds.kill_at(number)}
            with pytest.raises(Killed):
                transition.recover(MemoryRegistry(world.store, **hook), "signs", actor=world.actor)
            world.store.wait(121)
            world.recover()
            assert (world.story(), world.alias) == (story, alias), (number, moment)
            assert not [e for e in world.store.events.values() if e.state == "begun"]
            assert world.staged == [alias]


@pytest.mark.parametrize("version", ["-5", "0", str(10**18), "x"])
def test_a_forged_event_that_names_no_version_is_none(version):
    from promotion_gate.registry.naming import pointer_tags, read_pointer

    tags = pointer_tags(EventPointer("signs", 1, "promote", "production", 1, None, 1))
    assert read_pointer(tags) is not None
    for key in ("promotion_gate.version", "promotion_gate.to"):
        assert read_pointer({**tags, key: version}) is None
