"""What operators read: true, complete, and unable to steer a terminal."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate import operators, transition
from promotion_gate.core.errors import NotInRegistry
from promotion_gate.core.keys import Keyring, load_signing_key, load_trusted_keys
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.interface import RECORD_FILE
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor, Judged

NAME = "traffic signs"
EVIL = "fine\x1b[2J\x1b]0;owned\x07\r\nrolled back \u202etxet"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        return Keyring(load_signing_key(), load_trusted_keys())


@pytest.fixture
def store():
    store = MemoryStore()
    for version in (1, 2, 3):
        store.add_version(ModelRef(NAME, version), {"model": b"%d" % version})
    return store


@pytest.fixture
def actor(keys, store):
    return Actor("ada", "ship", keys, lambda: store.clock)


def judged(store, version, outcome=Outcome.PROMOTE, reason="all checks passed"):
    ref = ModelRef(NAME, version)
    digest = transition.artifact_digest(MemoryRegistry(store), ref)
    return Judged(ref, digest, outcome, reason, store.aliases[NAME].get("production"), "a" * 64)


def promote(store, actor, version, **changes):
    return transition.promote(MemoryRegistry(store), judged(store, version, **changes), actor=actor)


def status(store, actor):
    return transition.status(MemoryRegistry(store), NAME, trusted=actor.keys.trusted)


def history(store, actor):
    return transition.history(MemoryRegistry(store), NAME, actor.keys.trusted)


def test_a_move_says_from_where_to_where_and_how_long(store, actor):
    promote(store, actor, 1)
    message = operators.moved_message(promote(store, actor, 2), seconds=1.234)
    assert "promoted traffic signs: production is version 2, was 1 in 1.2 s" in message
    recorded = transition.rollback(MemoryRegistry(store), NAME, reason="green", actor=actor)
    message = operators.moved_message(recorded)
    assert "rolled back traffic signs: production is version 1, was 2" in message
    assert f"digest {recorded.record.digest}" in message
    assert "by ada@ship: green" in message


def test_a_rejection_says_that_production_is_unchanged(store, actor):
    recorded = transition.record_verdict(MemoryRegistry(store), judged(store, 1, Outcome.REJECT), actor=actor)
    assert "rejected traffic signs/1; production is unchanged" in operators.moved_message(recorded)


def test_versions_that_were_passed_over_are_told(store, actor):
    for version in (1, 2, 3):
        promote(store, actor, version)
    store.artifacts[ModelRef(NAME, 2)]["model"] = b"x"
    recorded = transition.rollback(MemoryRegistry(store), NAME, reason="green", actor=actor)
    assert operators.moved_message(recorded).startswith("note: traffic signs/2 passed over")


def test_status_shows_what_waits_and_how_to_approve_it(store, actor):
    promote(store, actor, 1)
    transition.record_verdict(MemoryRegistry(store), judged(store, 2, Outcome.HOLD, "looks odd"), actor=actor)
    text = operators.status_text(status(store, actor))
    assert "traffic signs: production is version 1" in text
    assert "promote by ada@ship at 2026-01-01T00:00:00+00:00" in text
    assert "held: traffic signs/2: looks odd" in text
    assert "promotion-gate approve 'traffic signs/2' --reason" in text
    facts = json.loads(operators.status_json(status(store, actor)))
    assert (facts["version"], facts["held"][0]["version"]) == (1, 2)


def test_status_of_a_model_that_the_gate_never_saw(store, actor):
    text = operators.status_text(status(store, actor))
    assert text == "traffic signs: production is no version\ncandidate: version 3"


def test_status_warns_of_a_move_outside_the_gate_and_of_strayed_stages(store, actor):
    promote(store, actor, 1)
    store.aliases[NAME]["production"] = 3
    store.versions[ModelRef(NAME, 2)] = replace(store.versions[ModelRef(NAME, 2)], stage="Production")
    text = operators.status_text(status(store, actor))
    assert "production is version 3" in text
    assert (
        "warning: alias 'production' of 'traffic signs', which named version 1, was moved to version 3"
        in text
    )
    assert "  promotion-gate recover 'traffic signs' --accept-foreign --reason" in text
    assert "warning: the legacy stage Production holds 2" in text


def test_history_names_every_event_and_does_not_vouch_for_a_lost_record(store, actor):
    first = promote(store, actor, 1)
    promote(store, actor, 2)
    del store.runs[first.event_id].files[RECORD_FILE]
    lines = operators.history_text(history(store, actor)).splitlines()
    assert lines[0].split() == ["when", "what", "version", "production", "who", "digest", "why"]
    assert "RECORD NOT VERIFIED" in lines[1]
    assert "ada" not in lines[1]
    assert "1 -> 2" in lines[2]
    assert "ada@ship" in lines[2]
    events = json.loads(operators.history_json(NAME, history(store, actor)))["events"]
    assert [event["verified"] for event in events] == [False, True]
    assert events[1]["record"]["reason"] == "all checks passed"


def test_no_history_is_said():
    assert "no history" in operators.history_text([])


@given(st.text(max_size=80), st.integers(0, 20))
def test_plain_text_cannot_steer_a_terminal(text, width):
    line = operators.plain(text, width)
    assert line.isprintable()
    assert not width or len(line) <= width


def test_hostile_reasons_and_names_stay_in_their_line(store, keys):
    evil = Actor(f"ada{EVIL}", EVIL, keys, lambda: store.clock)
    recorded = promote(store, evil, 1, reason=EVIL)
    transition.record_verdict(MemoryRegistry(store), judged(store, 2, Outcome.HOLD, EVIL), actor=evil)
    texts = [
        operators.moved_message(recorded),
        operators.status_text(status(store, evil)),
        operators.history_text(history(store, evil)),
    ]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
        assert not any(line.startswith("rolled back") for line in text.split("\n"))
    assert len(texts[2].split("\n")) == 3


def test_a_hostile_model_name_cannot_pass_for_the_gates_own_indented_lines(keys):
    name = "  \x1b[2J\x07signs"
    store = MemoryStore()
    store.add_version(ModelRef(name, 1), {"model": b"1"})
    actor = Actor("ada", "ship", keys, lambda: store.clock)
    digest = transition.artifact_digest(MemoryRegistry(store), ModelRef(name, 1))
    verdict = Judged(ModelRef(name, 1), digest, Outcome.HOLD, "odd", None, "a" * 64)
    transition.record_verdict(MemoryRegistry(store), verdict, actor=actor)
    text = operators.status_text(transition.status(MemoryRegistry(store), name, trusted=actor.keys.trusted))
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "[2J signs: production is no version"
    assert [line for line in lines if line.startswith("  ")] == [
        "  promotion-gate approve '[2J signs/1' --reason \"…\""
    ]


def test_the_newest_card_is_fetched(store, tmp_path):
    registry = MemoryRegistry(store)
    ref = ModelRef(NAME, 1)
    for content in (b"old", b"new"):
        run_id = registry.start_gate_run(ref, {})
        registry.log_file(run_id, "card.html", content)
    path = operators.fetch_card(registry, f"models:/{NAME}/1", tmp_path / "cards")
    assert path.read_bytes() == b"new"
    assert path == tmp_path / "cards" / "traffic_signs-1-card.html"


def test_no_card_is_one_line(store, tmp_path):
    registry = MemoryRegistry(store)
    with pytest.raises(NotInRegistry, match="no gate run"):
        operators.fetch_card(registry, f"{NAME}/1", tmp_path)
    registry.start_gate_run(ModelRef(NAME, 1), {})
    with pytest.raises(NotInRegistry, match="made no card"):
        operators.fetch_card(registry, f"{NAME}/1", tmp_path)


def test_a_card_never_leaves_its_folder(tmp_path):
    store = MemoryStore()
    ref = ModelRef("..", 1)
    store.add_version(ref, {"model": b"x"})
    registry = MemoryRegistry(store)
    registry.log_file(registry.start_gate_run(ref, {}), "card.html", b"card")
    assert operators.fetch_card(registry, "../1", tmp_path / "cards").parent == tmp_path / "cards"
