"""Promotion and rollback: what must hold whatever happens, on a registry in memory."""

import base64
import itertools
import json
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promotion_gate import transition
from promotion_gate.core.errors import (
    ArtifactError,
    ExitCode,
    NotInRegistry,
    RegistryConflict,
    RegistryError,
    SigningError,
    UsageError,
)
from promotion_gate.core.keys import Keyring, TrustedKeys, load_signing_key, load_trusted_keys
from promotion_gate.core.production import Production
from promotion_gate.core.record import verify_record
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.interface import RECORD_FILE, EventPointer, LockHolder
from promotion_gate.registry.memory import Killed, MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor, Judged

NAME = "signs"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        return load_signing_key(), load_trusted_keys()


@pytest.fixture
def store():
    return make_store()


@pytest.fixture
def actor(keys, store):
    return actor_on(keys, store)


def make_store(versions=4, stage=""):
    store = MemoryStore()
    for version in range(1, versions + 1):
        store.add_version(ref(version), {"MLmodel": b"flavors", "data/model": b"%d" % version}, stage=stage)
    return store


def actor_on(keys, store):
    return Actor("ada", "ship", Keyring(*keys), lambda: store.clock)


def ref(version):
    return ModelRef(NAME, version)


def judged(store, version, outcome=Outcome.PROMOTE, **changes):
    digest = transition.artifact_digest(MemoryRegistry(store), ref(version))
    champion = store.aliases[NAME].get("production")
    return replace(
        Judged(ref(version), digest, outcome, f"verdict on {version}", champion, "a" * 64), **changes
    )


def promote(store, actor, version, **production):
    return transition.promote(MemoryRegistry(store), judged(store, version), Production(**production), actor)


def rollback(store, actor, **arguments):
    return transition.rollback(
        MemoryRegistry(store), NAME, **{"reason": "it stops at green", **arguments}, actor=actor
    )


def in_production(store):
    return store.aliases[NAME].get("production")


NOTES = ("foreign", "recover", "restored")


def story(store, actor):
    """The finished moves and rulings as (action, from, to)."""
    entries = transition.history(MemoryRegistry(store), NAME, actor.keys.trusted)
    assert not any(entry.problem for entry in entries if entry.event.state == "done")
    return [
        (e.record.action, e.record.transition.from_version, e.record.transition.to_version)
        if e.record.transition
        else (e.record.action, e.record.ref.version)
        for e in entries
        if e.event.state == "done" and e.record.action not in NOTES
    ]


def test_promotions_and_rollbacks_make_one_history(store, actor):
    for version in (1, 2, 3):
        promote(store, actor, version)
    assert rollback(store, actor).record.ref == ref(2)
    assert rollback(store, actor).record.ref == ref(1)
    assert in_production(store) == 1
    assert story(store, actor) == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]
    assert not store.locks


def test_nothing_to_go_back_to(store, actor):
    promote(store, actor, 1)
    with pytest.raises(RegistryConflict, match="nothing was moved") as caught:
        rollback(store, actor)
    assert caught.value.exit_code is ExitCode.REGISTRY
    assert in_production(store) == 1
    assert story(store, actor) == [("promote", None, 1)]


def test_a_model_that_is_not_there_has_no_history(store):
    with pytest.raises(NotInRegistry, match="nothing-of-that-name"):
        transition.history(MemoryRegistry(store), "nothing-of-that-name")
    assert transition.history(MemoryRegistry(store), NAME) == []


def test_rollback_without_any_history_moves_nothing(store, actor):
    store.aliases[NAME]["production"] = 3
    with pytest.raises(RegistryConflict, match="no earlier good version"):
        rollback(store, actor)
    assert in_production(store) == 3


def test_with_nothing_good_left_a_person_is_told_what_may_still_be_named(store, actor):
    for version in (1, 2):
        promote(store, actor, version)
    rollback(store, actor)
    with pytest.raises(RegistryConflict, match="rolled back from or rejected since: 2; '--to' insists"):
        rollback(store, actor)
    assert in_production(store) == 1


def test_rollback_to_a_named_version(store, actor):
    for version in (1, 2, 3):
        promote(store, actor, version)
    rollback(store, actor, to=1)
    assert in_production(store) == 1
    with pytest.raises(RegistryConflict, match="in production already"):
        rollback(store, actor, to=1)
    with pytest.raises(SigningError, match="never promoted"):
        rollback(store, actor, to=4)
    with pytest.raises(RegistryConflict, match="nothing was moved"):
        rollback(store, actor)
    rollback(store, actor, to=3)
    assert in_production(store) == 3


def test_a_version_rolled_back_from_is_good_again_once_it_is_promoted_again(store, actor):
    for version in (1, 2):
        promote(store, actor, version)
    rollback(store, actor)
    promote(store, actor, 2)
    promote(store, actor, 3)
    assert rollback(store, actor).record.ref == ref(2)


def test_a_rollback_leaves_nothing_above_the_version_it_returns_to(store, actor):
    for version in (1, 2, 3):
        promote(store, actor, version)
    rollback(store, actor, to=1)
    promote(store, actor, 4)
    events = MemoryRegistry(store).events(NAME)
    assert transition.good_versions(events, "production", 4) == [1]
    assert rollback(store, actor).record.ref == ref(1)
    with pytest.raises(RegistryConflict, match="nothing was moved"):
        rollback(store, actor)


def test_the_version_left_by_a_rollback_is_no_longer_good(store, actor):
    for version in (1, 2):
        promote(store, actor, version)
    rollback(store, actor)
    rollback(store, actor, to=2)
    with pytest.raises(RegistryConflict, match="nothing was moved"):
        rollback(store, actor)


def test_rollback_after_a_hand_moved_the_alias_returns_to_what_the_gate_promoted(store, actor):
    for version in (1, 2):
        promote(store, actor, version)
    store.aliases[NAME]["production"] = 4
    facts = transition.status(MemoryRegistry(store), NAME, trusted=actor.keys.trusted)
    assert facts.version == 4
    assert facts.moved_elsewhere
    assert rollback(store, actor).record.transition.from_version == 4
    assert in_production(store) == 2


def test_a_changed_version_is_passed_over_and_said(store, actor):
    for version in (1, 2, 3):
        promote(store, actor, version)
    store.artifacts[ref(2)]["data/model"] = b"other bytes"
    told = rollback(store, actor)
    assert in_production(store) == 1
    assert any("signs/2 passed over" in note and "changed" in note for note in told.notes)


def test_a_version_rejected_since_is_passed_over_unless_it_is_named(store, actor):
    for version in (1, 2, 3):
        promote(store, actor, version)
    verdict = judged(store, 2, Outcome.REJECT)
    rejected = transition.record_verdict(MemoryRegistry(store), verdict, actor=actor)
    assert rejected.record.action == "reject"
    told = rollback(store, actor)
    assert in_production(store) == 1
    assert any("signs/2 passed over: it was rejected since" in note for note in told.notes)
    assert rollback(store, actor, to=2).record.ref == ref(2)


def test_a_changed_version_is_refused_when_named(store, actor):
    for version in (1, 2):
        promote(store, actor, version)
    store.artifacts[ref(1)]["extra.py"] = b"import os"
    with pytest.raises(ArtifactError, match="have changed"):
        rollback(store, actor, to=1)
    assert in_production(store) == 2


def test_a_record_by_a_stranger_is_not_believed(store, actor, keys):
    for version in (1, 2):
        promote(store, actor, version)
    stranger = replace(actor, keys=Keyring(keys[0], TrustedKeys({}, keys[1].folder)))
    with pytest.raises(SigningError, match=r"not trusted here.*put its public key into"):
        rollback(store, stranger, to=1)
    with pytest.raises(RegistryConflict, match="not trusted here"):
        rollback(store, stranger)
    assert in_production(store) == 2


def test_an_event_whose_tags_were_altered_is_not_believed(store, actor):
    first = promote(store, actor, 1)
    promote(store, actor, 2)
    event = store.events[first.event_id]
    store.events[first.event_id] = replace(event, pointer=replace(event.pointer, version=3, to_version=3))
    with pytest.raises(SigningError, match="speaks of another event"):
        rollback(store, actor, to=3)
    assert in_production(store) == 2


def test_an_altered_record_shows_in_the_history_and_stops_a_rollback(store, actor):
    first = promote(store, actor, 1)
    promote(store, actor, 2)
    envelope = json.loads(first.envelope)
    payload = base64.b64decode(envelope["payload"]).replace(b"verdict on 1", b"verdict on 9")
    envelope["payload"] = base64.b64encode(payload).decode()
    store.runs[first.event_id].files[RECORD_FILE] = json.dumps(envelope).encode()
    entry = transition.history(MemoryRegistry(store), NAME, actor.keys.trusted)[0]
    assert entry.record is None
    assert "altered" in entry.problem
    with pytest.raises(SigningError, match="altered"):
        rollback(store, actor, to=1)


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_reason_is_asked_for(store, actor, reason):
    promote(store, actor, 1)
    with pytest.raises(UsageError, match="reason"):
        rollback(store, actor, reason=reason)


@pytest.mark.parametrize("outcome", [Outcome.HOLD, Outcome.REJECT])
def test_only_a_promote_verdict_promotes(store, actor, outcome):
    with pytest.raises(UsageError, match="cannot be promoted"):
        transition.promote(MemoryRegistry(store), judged(store, 1, outcome), actor=actor)
    assert in_production(store) is None


def test_what_was_examined_is_what_is_promoted(store, actor):
    verdict = judged(store, 1)
    store.artifacts[ref(1)]["data/model"] = b"swapped after review"
    with pytest.raises(ArtifactError, match="changed since they were examined"):
        transition.promote(MemoryRegistry(store), verdict, actor=actor)
    assert in_production(store) is None
    assert story(store, actor) == []


def test_a_champion_that_changed_since_the_verdict_is_a_conflict(store, actor):
    promote(store, actor, 1)
    verdict = judged(store, 2)
    promote(store, actor, 3)
    with pytest.raises(RegistryConflict, match="against version 1, but production has version 3"):
        transition.promote(MemoryRegistry(store), verdict, actor=actor)
    assert in_production(store) == 3
    assert not store.locks


def test_gating_what_is_in_production_makes_it_a_version_to_go_back_to(store, actor):
    store.aliases[NAME]["production"] = 1
    promote(store, actor, 1)
    promote(store, actor, 2)
    assert rollback(store, actor).record.ref == ref(1)


def test_the_record_says_who_what_and_which_bytes(store, actor, keys):
    verdict = judged(store, 1, card_sha256="c" * 64, gate_run_id="run-1", unsafe=("unsafe_allow_pickle",))
    told = transition.promote(MemoryRegistry(store), verdict, actor=actor)
    stored = store.runs[told.event_id].files[RECORD_FILE]
    assert stored == told.envelope
    record = verify_record(stored, keys[1])
    assert record == told.record
    assert (record.user, record.host, record.digest, record.unsafe) == (
        "ada",
        "ship",
        verdict.digest,
        ("unsafe_allow_pickle",),
    )
    assert store.events[told.event_id].pointer.gate_run_id == "run-1"


# held versions


def hold(store, actor, version, outcome=Outcome.HOLD):
    return transition.record_verdict(MemoryRegistry(store), judged(store, version, outcome), actor=actor)


def test_approval_carries_out_what_was_held(store, actor):
    promote(store, actor, 1)
    hold(store, actor, 2)
    assert [
        e.event.pointer.version
        for e in transition.status(MemoryRegistry(store), NAME, trusted=actor.keys.trusted).held
    ] == [2]
    told = transition.approve(MemoryRegistry(store), ref(2), reason="seen by eye", actor=actor)
    assert told.record.outcome is Outcome.HOLD
    assert told.record.reason == "seen by eye"
    assert in_production(store) == 2
    assert story(store, actor) == [("promote", None, 1), ("hold", 2), ("approve", 1, 2)]
    assert not transition.status(MemoryRegistry(store), NAME, trusted=actor.keys.trusted).held
    assert rollback(store, actor).record.ref == ref(1)
    rollback(store, actor, to=2)
    assert in_production(store) == 2


def test_a_promotion_that_was_not_carried_out_can_be_approved(store, actor):
    hold(store, actor, 1, Outcome.PROMOTE)
    transition.approve(MemoryRegistry(store), ref(1), reason="window open", actor=actor)
    assert in_production(store) == 1


def test_rejection_by_a_person_is_final_for_that_verdict(store, actor):
    hold(store, actor, 1)
    transition.reject(MemoryRegistry(store), ref(1), reason="sticker seen", actor=actor)
    with pytest.raises(UsageError, match="was rejected"):
        transition.approve(MemoryRegistry(store), ref(1), reason="please", actor=actor)
    assert in_production(store) is None
    assert story(store, actor) == [("hold", 1), ("reject", 1)]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda store, actor: None, "has not been judged"),
        (lambda store, actor: hold(store, actor, 1, Outcome.REJECT), "was rejected"),
        (lambda store, actor: promote(store, actor, 1), "was promoted"),
    ],
    ids=["unjudged", "rejected", "promoted"],
)
def test_only_what_is_held_can_be_ruled_on(store, actor, prepare, message):
    prepare(store, actor)
    before = in_production(store)
    for ruling in (transition.approve, transition.reject):
        with pytest.raises(UsageError, match=message):
            ruling(MemoryRegistry(store), ref(1), reason="why not", actor=actor)
    assert in_production(store) == before


def test_approval_binds_to_the_bytes(store, actor):
    hold(store, actor, 1)
    store.artifacts[ref(1)]["data/model"] = b"swapped"
    with pytest.raises(ArtifactError, match="changed"):
        transition.approve(MemoryRegistry(store), ref(1), reason="fine", actor=actor)
    assert in_production(store) is None


def test_approval_binds_to_the_champion(store, actor):
    promote(store, actor, 1)
    hold(store, actor, 2)
    promote(store, actor, 3)
    with pytest.raises(RegistryConflict, match="against version 1"):
        transition.approve(MemoryRegistry(store), ref(2), reason="fine", actor=actor)
    assert in_production(store) == 3


def test_approval_needs_a_signed_verdict(store, actor):
    digest = judged(store, 1).digest
    store.runs.clear()
    event = hold(store, actor, 1)
    del store.runs[event.event_id].files[RECORD_FILE]
    with pytest.raises(SigningError, match="missing"):
        transition.approve(MemoryRegistry(store), ref(1), reason=digest, actor=actor)


def test_a_ruling_in_between_stops_an_approval(store, actor):
    hold(store, actor, 1)

    def meddle(number, call):
        if call == "acquire_lock":
            transition.record_verdict(MemoryRegistry(store), judged(store, 1, Outcome.REJECT), actor=actor)

    with pytest.raises(RegistryConflict, match="just ruled"):
        transition.approve(MemoryRegistry(store, before=meddle), ref(1), reason="fine", actor=actor)
    assert in_production(store) is None


def test_a_verdict_that_others_overtook_stands_last(store, actor):
    """Two verdicts are written while a third is on its way: the last one written is the last word."""
    overtaken = []

    def meddle(number, call):
        if call == "begin_event" and not overtaken:
            overtaken.extend(hold(store, actor, 1).event_id for _ in range(2))

    last = transition.record_verdict(
        MemoryRegistry(store, before=meddle), judged(store, 1, Outcome.REJECT), actor=actor
    )
    assert story(store, actor) == [("hold", 1), ("hold", 1), ("reject", 1)]
    done = [e for e in MemoryRegistry(store).events(NAME) if e.state == "done"]
    assert [e.event_id for e in done] == [*overtaken, last.event_id]
    assert [e.pointer.sequence for e in done] == sorted({e.pointer.sequence for e in done})
    with pytest.raises(UsageError, match="was rejected"):
        transition.approve(MemoryRegistry(store), ref(1), reason="held, was it not", actor=actor)


def test_verdicts_written_at_once_are_all_kept_in_one_order(keys):
    store = make_store()
    actor = actor_on(keys, store)
    start = threading.Barrier(4)

    def run(version):
        start.wait()
        hold(store, actor, version)

    threads = [threading.Thread(target=run, args=(version,)) for version in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = story(store, actor)
    assert sorted(kept) == [("hold", version) for version in (1, 2, 3, 4)]
    hold(store, actor, 1)
    assert story(store, actor) == [*kept, ("hold", 1)]


def test_a_verdict_that_is_overtaken_again_and_again_is_not_lost(store, actor):
    def meddle(number, call):
        if call == "begin_event":
            hold(store, actor, 2)

    told = transition.record_verdict(MemoryRegistry(store, before=meddle), judged(store, 1), actor=actor)
    assert told.record.ref == ref(1)
    assert story(store, actor).count(("hold", 1)) == 1


def test_history_vouches_for_what_it_put_into_production(store, actor):
    def vouched(version, alias="production"):
        return transition.vouched_digest(MemoryRegistry(store), NAME, version, Production(alias=alias), actor)

    assert vouched(None) == ""
    first = promote(store, actor, 1)
    assert vouched(1) == first.record.digest
    hold(store, actor, 2)
    promote(store, actor, 3)
    rollback(store, actor)
    assert vouched(1) == first.record.digest
    for version in (None, 2, 3):
        with pytest.raises(RegistryConflict, match=r"which named version 1, was .* past the gate"):
            vouched(version)
    assert vouched(1, "serving") == ""


# legacy stages


def stages(store):
    return {r.version: facts.stage for r, facts in store.versions.items()}


def test_the_stage_follows_where_the_model_uses_stages(keys):
    store = make_store()
    actor = actor_on(keys, store)
    for version in (1, 2):
        store.versions[ref(version)] = replace(store.versions[ref(version)], stage="Production")
    promote(store, actor, 3)
    assert stages(store) == {1: "Archived", 2: "Archived", 3: "Production", 4: ""}
    promote(store, actor, 4)
    rollback(store, actor)
    assert [v for v, stage in stages(store).items() if stage == "Production"] == [3]


@pytest.mark.parametrize(
    ("mode", "stage", "expected"),
    [("auto", "", ""), ("always", "", "Production"), ("never", "Staging", "Staging")],
)
def test_the_policy_says_whether_the_stage_follows(keys, mode, stage, expected):
    store = make_store(stage=stage)
    promote(store, actor_on(keys, store), 1, mirror_stage=mode)
    assert stages(store)[1] == expected


def test_two_versions_in_the_production_stage_are_noticed(keys):
    store = make_store(stage="Staging")
    actor = actor_on(keys, store)

    class Meddled(MemoryRegistry):
        def production_stage(self, name):
            return [*super().production_stage(name), 4]

    with pytest.raises(RegistryConflict, match="should hold 1 alone, but holds 1, 4"):
        transition.promote(Meddled(store), judged(store, 1), actor=actor)
    assert [event.state for event in store.events.values()] == ["begun"]
    store.wait(121)
    transition.recover(MemoryRegistry(store), NAME, actor=actor)
    assert story(store, actor) == [("promote", None, 1)]


# killed, failing and racing


def kill_at(number):
    def hook(call, name):
        if call == number:
            raise Killed

    return hook


COMMANDS = {
    "promote": lambda registry, store, actor: transition.promote(registry, judged(store, 3), actor=actor),
    "rollback": lambda registry, store, actor: transition.rollback(registry, NAME, reason="bad", actor=actor),
    "approve": lambda registry, store, actor: transition.approve(
        registry, ref(4), reason="good", actor=actor
    ),
}


def prepared(keys, staged):
    store = make_store(stage="Staging" if staged else "")
    actor = actor_on(keys, store)
    promote(store, actor, 1)
    promote(store, actor, 2)
    hold(store, actor, 4)
    return store, actor


def calls_of(keys, command, staged):
    store, actor = prepared(keys, staged)
    registry = MemoryRegistry(store)
    COMMANDS[command](registry, store, actor)
    return len(registry.calls), in_production(store), story(store, actor)


@pytest.mark.parametrize("staged", [False, True], ids=["aliases", "stages"])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_call_the_next_command_tells_one_story(keys, command, staged):
    number_of_calls, moved_to, full_story = calls_of(keys, command, staged)
    assert number_of_calls > 8
    for number in range(1, number_of_calls + 1):
        for moment in ("before", "after"):
            store, actor = prepared(keys, staged)
            earlier = story(store, actor)
            with pytest.raises(Killed):
                COMMANDS[command](MemoryRegistry(store, **{moment: kill_at(number)}), store, actor)

            assert in_production(store) in (2, moved_to), (number, moment)
            store.wait(121)
            transition.recover(MemoryRegistry(store), NAME, actor=actor)

            where = (number, moment, in_production(store))
            assert not [e for e in store.events.values() if e.state == "begun"], where
            assert not store.locks or next(iter(store.locks.values())).until <= store.clock, where
            expected = full_story if in_production(store) == moved_to else earlier
            assert story(store, actor) == expected, where
            if staged:
                assert [v for v, s in stages(store).items() if s == "Production"] == [in_production(store)]
            target = in_production(store)
            promote(store, actor, 3 if target != 3 else 4)
            rollback(store, actor)
            assert in_production(store) == target, where


@pytest.mark.parametrize("command", COMMANDS)
def test_a_registry_that_fails_once_at_any_call_leaves_one_story(keys, command):
    number_of_calls, moved_to, full_story = calls_of(keys, command, True)
    for number in range(1, number_of_calls + 1):
        for moment in ("before", "after"):
            store, actor = prepared(keys, True)
            earlier = story(store, actor)

            def fail(call, name, number=number):
                if call == number:
                    raise RegistryError("no answer")

            try:
                COMMANDS[command](MemoryRegistry(store, **{moment: fail}), store, actor)
            except RegistryError:
                pass
            else:
                assert in_production(store) == moved_to
            store.wait(121)
            transition.recover(MemoryRegistry(store), NAME, actor=actor)
            expected = full_story if in_production(store) == moved_to else earlier
            assert story(store, actor) == expected, (number, moment)
            assert not [e for e in store.events.values() if e.state == "begun"]


def test_the_next_promotion_finishes_what_was_begun_and_says_so(store, actor):
    promote(store, actor, 1)

    def after_alias(number, call):
        if call == "set_alias":
            raise Killed

    with pytest.raises(Killed):
        transition.promote(MemoryRegistry(store, after=after_alias), judged(store, 2), actor=actor)
    with pytest.raises(RegistryConflict, match="ada@ship is changing"):
        promote(store, actor, 3)
    store.wait(121)
    told = promote(store, actor, 3)
    assert told.notes == ("promote of signs/2, begun by a process that died: done",)
    assert story(store, actor) == [("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3)]


def test_a_rollback_finishes_what_was_begun_and_goes_back_from_there(store, actor):
    for version in (1, 2):
        promote(store, actor, version)

    def after_alias(number, call):
        if call == "set_alias":
            raise Killed

    with pytest.raises(Killed):
        transition.promote(MemoryRegistry(store, after=after_alias), judged(store, 3), actor=actor)
    store.wait(121)
    told = rollback(store, actor)
    assert told.notes == ("promote of signs/3, begun by a process that died: done",)
    assert in_production(store) == 2
    assert story(store, actor)[-2:] == [("promote", 2, 3), ("rollback", 3, 2)]


@pytest.mark.parametrize("lost", ["set_alias", "model", "finish_event"])
def test_a_lost_answer_does_not_make_a_failure_of_a_move_that_took_place(store, actor, lost):
    seen = []

    def lose(number, call):
        seen.append(call)
        if call == lost and "set_alias" in seen and seen.count(lost) == (2 if lost == "model" else 1):
            raise RegistryError("no answer")

    transition.promote(MemoryRegistry(store, after=lose), judged(store, 1), actor=actor)
    assert in_production(store) == 1
    assert story(store, actor) == [("promote", None, 1)]


def test_a_move_that_was_begun_meanwhile_stops_another(store, actor):
    def meddle(number, call):
        if call == "acquire_lock":
            MemoryRegistry(store).begin_event(EventPointer(NAME, 2, "promote", "production", 1, None, 2), b"")

    with pytest.raises(RegistryConflict, match="begun meanwhile"):
        transition.promote(MemoryRegistry(store, before=meddle), judged(store, 1), actor=actor)
    assert in_production(store) is None


def test_a_lock_that_wore_out_during_a_long_download_is_taken_anew(store, actor):
    locked = threading.Event()

    class Slow(MemoryRegistry):
        concurrent = True

        def acquire_lock(self, name, holder):
            super().acquire_lock(name, holder)
            locked.set()

        def download(self, ref, folder):
            assert locked.wait(20)
            store.wait(130)
            super().download(ref, folder)

    registry = Slow(store)
    transition.promote(registry, judged(store, 1), actor=actor)
    assert registry.calls.count("acquire_lock") == 2
    assert in_production(store) == 1
    assert not store.locks


def test_a_begun_event_without_a_record_is_undone_even_if_the_alias_is_there(store, actor):
    promote(store, actor, 1)
    pointer = EventPointer(NAME, 1, "promote", "production", 9, None, 1)
    registry = MemoryRegistry(store, before=lambda n, call: kill_at(n)(n, call) if "record" in call else None)
    with pytest.raises(Killed):
        registry.begin_event(pointer, b"")
    transition.recover(MemoryRegistry(store), NAME, actor=actor)
    assert story(store, actor) == [("promote", None, 1)]
    assert [(e.pointer.action, e.state) for e in store.events.values()] == [
        ("promote", "done"), ("promote", "undone"), ("recover", "done")
    ]  # fmt: skip


def test_the_lock_of_a_live_process_holds(store, actor):
    store.locks[NAME] = LockHolder("t", "bob@train", store.clock + transition.LEASE)
    with pytest.raises(RegistryConflict, match="bob@train"):
        promote(store, actor, 1)
    assert in_production(store) is None
    assert store.locks[NAME].who == "bob@train"


def test_a_process_that_overslept_its_lease_moves_nothing(store, actor):
    def oversleep(number, call):
        if call == "begin_event":
            store.wait(130)

    with pytest.raises(RegistryConflict, match="too long"):
        transition.promote(MemoryRegistry(store, before=oversleep), judged(store, 1), actor=actor)
    assert in_production(store) is None
    assert story(store, actor) == []


def test_a_foreign_move_behind_the_gates_back_is_noticed(store, actor):
    promote(store, actor, 1)

    def meddle(number, call):
        if call == "set_alias":
            store.aliases[NAME]["production"] = 4

    with pytest.raises(RegistryConflict, match="was set to 2 but now names 4"):
        transition.promote(MemoryRegistry(store, after=meddle), judged(store, 2), actor=actor)
    assert in_production(store) == 4
    assert story(store, actor) == [("promote", None, 1)]


@pytest.mark.parametrize("attempt", range(5))
def test_of_two_promoters_at_once_one_wins_and_the_other_is_told(keys, attempt):
    store = make_store()
    actor = actor_on(keys, store)
    promote(store, actor, 1)
    verdicts = [judged(store, version) for version in (2, 3)]
    start = threading.Barrier(2)
    told = []

    def run(verdict):
        start.wait()
        try:
            transition.promote(MemoryRegistry(store), verdict, actor=actor)
            told.append(verdict.ref.version)
        except RegistryConflict:
            told.append(None)

    threads = [threading.Thread(target=run, args=(verdict,)) for verdict in verdicts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [version for version in told if version is not None]
    assert winners == [in_production(store)]
    assert story(store, actor) == [("promote", None, 1), ("promote", 1, winners[0])]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(["promote 1", "promote 2", "promote 3", "promote 4", "rollback", "kill"]),
        max_size=10,
    ),
    data=st.data(),
)
def test_whatever_happens_history_explains_production(keys, steps, data):
    store = make_store()
    actor = actor_on(keys, store)
    for step in steps:
        store.wait(200)
        kill = step == "kill"
        registry = MemoryRegistry(
            store, before=kill_at(data.draw(st.integers(1, 20))) if kill else lambda n, c: None
        )
        try:
            if step == "rollback":
                transition.rollback(registry, NAME, reason="r", actor=actor)
            else:
                version = 1 if kill else int(step.split()[1])
                transition.promote(registry, judged(store, version), actor=actor)
        except (RegistryConflict, Killed):
            pass
    store.wait(200)
    transition.recover(MemoryRegistry(store), NAME, actor=actor)
    moves = story(store, actor)
    assert (moves[-1][2] if moves else None) == in_production(store)
    for (_, _, there), (_, back, _) in itertools.pairwise(moves):
        assert there == back


def test_an_unknown_model_is_one_line(store, actor):
    with pytest.raises(NotInRegistry, match="no registered model 'ghost'"):
        transition.rollback(MemoryRegistry(store), "ghost", reason="r", actor=actor)
