"""What vouches for a version: every link is needed, and the broken one is named."""

import base64
import json
from dataclasses import replace

import pytest

from promotion_gate import transition
from promotion_gate.core.errors import (
    ArtifactError,
    RegistryConflict,
    RegistryError,
    SigningError,
    UsageError,
)
from promotion_gate.core.keys import Keyring, own_keyring
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.interface import RECORD_FILE, VERDICT_FILE, EventPointer
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor, Judged
from promotion_gate.vouching import vouched_version

NAME = "signs"
POLICY = "b" * 64


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return own_keyring(tmp_path_factory.mktemp("keys") / "own.pem")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return own_keyring(tmp_path_factory.mktemp("keys") / "foreign.pem")


@pytest.fixture
def store():
    store = MemoryStore()
    for version in (1, 2, 3):
        store.add_version(ModelRef(NAME, version), {"MLmodel": b"flavors", "data/model": b"%d" % version})
    return store


def actor(store, keys):
    return Actor("ada", "ship", keys, lambda: store.clock)


def judged(store, version, outcome=Outcome.PROMOTE):
    ref = ModelRef(NAME, version)
    digest = transition.artifact_digest(MemoryRegistry(store), ref)
    champion = store.aliases[NAME].get("production")
    return Judged(ref, digest, outcome, "good", champion, POLICY, gate_run_id="run1")


def promote(store, keys, version):
    return transition.promote(MemoryRegistry(store), judged(store, version), actor=actor(store, keys))


def revoke(store, keys, version):
    ref = ModelRef(NAME, version)
    return transition.revoke(MemoryRegistry(store), ref, reason="poisoned", actor=actor(store, keys))


def rollback(store, keys, **arguments):
    return transition.rollback(
        MemoryRegistry(store), NAME, **{"reason": "odd", **arguments}, actor=actor(store, keys)
    )


def verify(store, keys, model=NAME, **arguments):
    return vouched_version(MemoryRegistry(store), model, trusted=keys.trusted, **arguments)


def files_of(store, version, action="promote"):
    (event,) = [
        e for e in store.events.values() if e.pointer.version == version and e.pointer.action == action
    ]
    return store.runs[event.event_id].files


def test_a_promoted_version_verifies_link_by_link(store, keys):
    promote(store, keys, 1)
    vouched = verify(store, keys)
    assert vouched.broken is None
    assert [link.name for link in vouched.links] == [
        "alias",
        "promotion",
        "record",
        "verdict",
        "policy",
        "bytes",
        "standing",
        "history",
    ]
    assert vouched.digest == transition.artifact_digest(MemoryRegistry(store), ModelRef(NAME, 1))
    assert verify(store, keys, f"{NAME}/1", policy_digest=POLICY).broken is None


def test_one_that_a_person_approved_verifies(store, keys):
    registry = MemoryRegistry(store)
    transition.record_verdict(registry, judged(store, 1, Outcome.HOLD), actor=actor(store, keys))
    assert "never promoted" in str(verify(store, keys, f"{NAME}/1").broken)
    transition.approve(registry, ModelRef(NAME, 1), reason="seen by Ada", actor=actor(store, keys))
    vouched = verify(store, keys)
    assert vouched.broken is None
    assert vouched.verdict.outcome is Outcome.HOLD


def altered(content):
    """The envelope with another payload, the signature kept."""
    envelope = json.loads(content)
    payload = base64.b64decode(envelope["payload"]).replace(b"ada", b"eve").replace(b"run1", b"run2")
    return json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}).encode()


@pytest.mark.parametrize(
    ("harm", "kind", "said"),
    [
        (lambda s, f: f.pop(RECORD_FILE), SigningError, "the promote record of signs/1 is missing"),
        (lambda s, f: f.update({RECORD_FILE: altered(f[RECORD_FILE])}), SigningError, "was altered"),
        (lambda s, f: f.pop(VERDICT_FILE), SigningError, "the verdict behind .* is missing"),
        (lambda s, f: f.update({VERDICT_FILE: altered(f[VERDICT_FILE])}), SigningError, "was altered"),
        (
            lambda s, f: s.artifacts[ModelRef(NAME, 1)].update({"data/model": b"other"}),
            ArtifactError,
            "have changed since",
        ),
        (lambda s, f: s.aliases[NAME].update(production=3), RegistryConflict, "history left it at version 1"),
    ],
    ids=["no record", "altered record", "no verdict", "altered verdict", "other bytes", "alias moved"],
)
def test_every_link_is_needed(store, keys, harm, kind, said):
    promote(store, keys, 1)
    harm(store, files_of(store, 1))
    broken = verify(store, keys).broken
    assert isinstance(broken, kind)
    with pytest.raises(kind, match=said):
        _ = verify(store, keys).digest


def test_a_verdict_of_another_version_is_not_enough(store, keys):
    """Both signed by the right key: the record names its verdict's SHA-256."""
    promote(store, keys, 1)
    promote(store, keys, 2)
    files_of(store, 1)[VERDICT_FILE] = files_of(store, 2)[VERDICT_FILE]
    assert "names another SHA-256" in str(verify(store, keys, f"{NAME}/1").broken)


def test_an_old_promotion_cannot_be_told_again(store, keys):
    """Whoever may write to the server can copy a signed record into a new event, and move the alias."""
    for version in (1, 2):
        promote(store, keys, version)
    old = next(e for e in store.events.values() if e.pointer.version == 1)
    papers = store.runs[old.event_id].files
    registry = MemoryRegistry(store)
    again = replace(old.pointer, sequence=99)
    forged = registry.begin_event(again, papers[RECORD_FILE], papers[VERDICT_FILE])
    registry.finish_event(forged, "done")
    store.aliases[NAME]["production"] = 1
    assert "speaks of another event" in str(verify(store, keys).broken)


def test_signed_by_nobody_who_is_trusted(store, keys, foreign):
    promote(store, foreign, 1)
    assert "which is not trusted here" in str(verify(store, keys).broken)
    assert verify(store, foreign).broken is None


def test_another_policy_is_named(store, keys):
    promote(store, keys, 1)
    broken = verify(store, keys, policy_digest="c" * 64).broken
    assert "was judged under policy bbbbbbbbbbbb, and not under cccccccccccc" in str(broken)


def test_a_revoked_version_is_never_again_what_it_was(store, keys):
    for version in (1, 2, 3):
        promote(store, keys, version)
    revoke(store, keys, 2)
    recorded = rollback(store, keys)
    assert recorded.record.ref.version == 1
    assert any("signs/2 passed over: signs/2 was revoked by ada@ship" in note for note in recorded.notes)
    assert "was revoked by ada@ship" in str(verify(store, keys, f"{NAME}/2").broken)
    for arguments in ({}, {"unsafe_unsigned": True}):
        with pytest.raises(ArtifactError, match="was revoked"):
            rollback(store, keys, to=2, **arguments)
    with pytest.raises(ArtifactError, match="was revoked"):
        promote(store, keys, 2)
    assert store.aliases[NAME]["production"] == 1


def test_the_same_bytes_under_another_number_are_revoked_too(store, keys):
    promote(store, keys, 1)
    revoke(store, keys, 1)
    store.add_version(ModelRef(NAME, 4), store.artifacts[ModelRef(NAME, 1)])
    with pytest.raises(ArtifactError, match="was revoked as signs/1, with the same bytes"):
        promote(store, keys, 4)


def test_revoking_what_is_in_production_says_so_and_moves_nothing(store, keys):
    promote(store, keys, 1)
    recorded = revoke(store, keys, 1)
    assert "signs/1 is still in production" in recorded.notes[-1]
    assert store.aliases[NAME]["production"] == 1
    facts = transition.status(MemoryRegistry(store), NAME, trusted=keys.trusted)
    assert list(facts.revoked) == [1]


def test_a_revocation_by_a_stranger_stops_serving_and_no_other_version(store, keys, foreign):
    for version in (1, 2):
        promote(store, keys, version)
    revoke(store, foreign, 1)
    assert "which is not trusted here" in str(verify(store, keys, f"{NAME}/1").broken)
    assert verify(store, keys, f"{NAME}/2").broken is None


def test_unreadable_files_can_be_revoked_and_are_not_confused(store, keys):
    for version in (1, 2):
        store.artifacts[ModelRef(NAME, version)].clear()
    revoke(store, keys, 1)
    assert "was revoked" in str(verify(store, keys, f"{NAME}/1").broken)
    assert "never promoted" in str(verify(store, keys, f"{NAME}/2").broken)


def test_going_back_to_what_nobody_vouches_for_is_named_everywhere(store, keys, foreign):
    promote(store, foreign, 1)
    store.events.clear()
    promote(store, keys, 2)
    with pytest.raises(SigningError, match="never promoted by the gate"):
        rollback(store, keys, to=1)
    recorded = rollback(store, keys, to=1, unsafe_unsigned=True)
    assert "signs/1 is UNVERIFIED" in recorded.notes[0]
    (*_, last) = transition.history(MemoryRegistry(store), NAME, keys.trusted)
    assert tuple(last.record.unsafe) == ("unsafe_unsigned",)
    assert verify(store, keys).broken is not None, "it is in production, and still nothing vouches for it"


def test_changed_bytes_are_refused_whatever_is_insisted_on(store, keys):
    for version in (1, 2):
        promote(store, keys, version)
    store.artifacts[ModelRef(NAME, 1)]["data/model"] = b"other"
    with pytest.raises(ArtifactError, match="have changed"):
        rollback(store, keys, to=1, unsafe_unsigned=True)


def test_the_unverified_version_must_be_named(store, keys):
    promote(store, keys, 1)
    with pytest.raises(UsageError, match="add --to VERSION"):
        rollback(store, keys, unsafe_unsigned=True)


def test_a_rejection_since_is_told_and_breaks_nothing(store, keys):
    promote(store, keys, 1)
    again = replace(judged(store, 1, Outcome.REJECT), reason="stricter bounds")
    transition.record_verdict(MemoryRegistry(store), again, actor=actor(store, keys))
    vouched = verify(store, keys)
    assert vouched.broken is None
    assert "rejected when it was gated again" in vouched.links[-2].said


# What a writer to the tracking server can do to the runs of history, without a key.


def event_of(store, action, version):
    (found,) = [
        e for e in store.events.values() if (e.pointer.action, e.pointer.version) == (action, version)
    ]
    return found


def retag(store, event, **changes):
    store.events[event.event_id] = replace(event, pointer=replace(event.pointer, **changes))


def two_promoted(store, keys):
    promote(store, keys, 1)
    promote(store, keys, 2)


def forged_rollback(store):
    pointer = EventPointer(NAME, 1, "rollback", "production", 3, from_version=2, to_version=1)
    registry = MemoryRegistry(store)
    registry.finish_event(registry.begin_event(pointer, b"{}"), "done")


def ended_promotion(store):
    event = event_of(store, "promote", 2)
    store.events[event.event_id] = replace(event, state="undone")


def relabelled_promotion(store):
    retag(store, event_of(store, "promote", 2), action="hold", from_version=None, to_version=None)


@pytest.mark.parametrize("forge", [forged_rollback, ended_promotion, relabelled_promotion])
def test_production_is_not_taken_back_without_a_key(store, keys, forge):
    two_promoted(store, keys)
    forge(store)
    store.aliases[NAME]["production"] = 1
    assert isinstance(verify(store, keys).broken, SigningError)
    if forge is not forged_rollback:  # which nobody signed, and which says nothing of version 1
        assert isinstance(verify(store, keys, f"{NAME}/1").broken, SigningError)


def retagged_version(store, event):
    retag(store, event, version=99)


def retagged_action(store, event):
    retag(store, event, action="hold")


def ended(store, event):
    store.events[event.event_id] = replace(event, state="undone")


def emptied(store, event):
    store.runs[event.event_id].files[RECORD_FILE] = b"{}"


@pytest.mark.parametrize("forge", [retagged_version, retagged_action, ended, emptied])
def test_a_revocation_is_not_taken_back_without_a_key(store, keys, forge):
    two_promoted(store, keys)
    revoke(store, keys, 1)
    forge(store, event_of(store, "revoke", 1))
    assert isinstance(verify(store, keys, f"{NAME}/1").broken, ArtifactError), "no switch-off gets past it"
    with pytest.raises(ArtifactError, match="revoked"):
        rollback(store, keys, to=1, unsafe_unsigned=True)


def test_a_record_taken_from_between_two_is_missed(store, keys):
    promote(store, keys, 1)
    revoke(store, keys, 2)
    promote(store, keys, 3)
    del store.events[event_of(store, "revoke", 2).event_id]
    broken = verify(store, keys, f"{NAME}/1").broken
    assert "no trusted record of its entry 2; somebody took it away" in str(broken)
    assert verify(store, keys).broken is None, "it was promoted after the gap"


def test_a_revocation_beside_the_keys_outlives_the_registry(store, keys, tmp_path):
    promote(store, keys, 1)
    recorded = revoke(store, keys, 1)
    store.events.clear()
    store.aliases["others"] = {}
    store.add_version(ModelRef("others", 1), store.artifacts[ModelRef(NAME, 1)])
    trusted = replace(keys.trusted, folder=tmp_path)
    elsewhere = Actor("ada", "ship", Keyring(keys.signing, trusted), lambda: store.clock)
    ref = ModelRef("others", 1)
    same = Judged(ref, recorded.record.digest, Outcome.PROMOTE, "good", None, POLICY)
    (tmp_path / "signs-1.revoked.json").write_bytes(recorded.envelope)
    with pytest.raises(ArtifactError, match="was revoked as signs/1, with the same bytes"):
        transition.promote(MemoryRegistry(store), same, actor=elsewhere)
    (tmp_path / "signs-1.revoked.json").write_bytes(b"{}")
    with pytest.raises(SigningError, match=r"signs-1\.revoked\.json"):
        transition.promote(MemoryRegistry(store), same, actor=elsewhere)
    (tmp_path / "signs-1.revoked.json").unlink()
    transition.promote(MemoryRegistry(store), same, actor=elsewhere)


def test_a_move_that_failed_leaves_a_history_that_is_whole(store, keys):
    promote(store, keys, 1)

    def failing(number, name):
        if name == "set_alias":
            raise RegistryError("no answer")

    with pytest.raises(RegistryError):
        transition.promote(MemoryRegistry(store, before=failing), judged(store, 2), actor=actor(store, keys))
    assert event_of(store, "promote", 2).state == "undone"
    assert verify(store, keys).broken is None
    promote(store, keys, 3)
    assert verify(store, keys, f"{NAME}/1").broken is None
