"""The history by its records, with copies of them kept on this machine."""

import pytest

from promotion_gate.core.errors import ArtifactError, RegistryConflict, RegistryError
from promotion_gate.core.types import ModelRef
from promotion_gate.ledger import KeptRecords, read_ledger
from promotion_gate.registry.interface import RECORD_FILE
from promotion_gate.registry.memory import MemoryRegistry
from promotion_gate.transition import revoke

NAME = "signs"


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    return KeptRecords(folder)


class Reads:
    """A registry that tells which events' records were asked for."""

    def __init__(self, world):
        self.events = []
        self.registry = MemoryRegistry(world.store)
        read_file = self.registry.read_file
        self.registry.read_file = lambda run, path: (
            (self.events.append(run) if path == RECORD_FILE else None) or read_file(run, path)
        )


def ledger(world, kept):
    reads = Reads(world)
    events = world.registry.events(NAME)
    told = read_ledger(reads.registry, events, world.actor.keys.trusted, kept)
    return told, reads.events


def test_a_record_is_fetched_once(world, kept):
    world.promote(1, 2)
    first, asked = ledger(world, kept)
    assert len(asked) == 2
    world.promote(3)
    again, asked = ledger(world, kept)
    assert asked == [again.entries[-1].event.event_id]
    assert list(again.entries[:2]) == list(first.entries)
    assert ledger(world, None)[0] == again


def test_a_copy_that_was_changed_is_no_copy(world, kept, tmp_path):
    world.promote(1)
    ledger(world, kept)
    (copy,) = (tmp_path / "records").iterdir()
    copy.write_bytes(copy.read_bytes().replace(b"a", b"b"))
    told, asked = ledger(world, kept)
    assert asked, "the registry was asked again"
    assert told == ledger(world, None)[0]
    assert ledger(world, kept)[1] == [], "and its answer kept"


def test_what_no_trusted_key_signed_is_not_kept(world, kept, tmp_path):
    world.promote(1)
    (event,) = world.registry.events(NAME)
    world.store.runs[event.event_id].files[RECORD_FILE] = b"{}"
    told, _ = ledger(world, kept)
    assert told.entries[0].record is None
    assert not list((tmp_path / "records").iterdir())


def test_a_copy_of_another_event_does_not_stand_for_this_one(world, kept, tmp_path):
    world.promote(1)
    ledger(world, kept)
    (copy,) = (tmp_path / "records").iterdir()
    content = copy.read_bytes()
    world.promote(2)
    ledger(world, kept)
    for file in (tmp_path / "records").iterdir():
        file.write_bytes(content)
    with pytest.raises(RegistryConflict, match="speaks of another event"):
        world.rollback(kept=kept)


def test_a_revocation_that_vanished_from_the_registry_still_counts(world, kept):
    world.promote(1, 2)
    revoke(world.registry, ModelRef(NAME, 1), reason="poisoned", actor=world.actor)
    with pytest.raises(RegistryConflict, match="was revoked"):
        world.rollback(kept=kept)
    event = world.registry.events(NAME)[-1]
    del world.store.runs[event.event_id].files[RECORD_FILE]
    with pytest.raises(ArtifactError, match="was revoked by ada@ship"):
        world.plan(to=1, kept=kept)


def test_the_papers_of_the_version_are_always_the_registrys(world, kept):
    world.promote(1, 2)
    ledger(world, kept)
    first = world.registry.events(NAME)[0]
    del world.store.runs[first.event_id].files[RECORD_FILE]
    with pytest.raises(RegistryConflict, match="the promote record of signs/1 is missing"):
        world.rollback(kept=kept)


@pytest.mark.parametrize("name", ["../../out", "/etc/passwd", "", "x" * 5000, "a\nb"])
def test_no_name_of_an_event_leads_out_of_the_folder(kept, tmp_path, name):
    kept.keep(name, b"content")
    assert kept.find(name) == b"content"
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "records"]


def test_without_a_folder_everything_is_fetched(world, tmp_path):
    gone = KeptRecords(tmp_path / "nowhere")
    world.promote(1, 2)
    assert world.rollback(kept=gone).record.ref == ModelRef(NAME, 1)
    assert gone.find("x") is None


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert KeptRecords.here() is not None
    (tmp_path / "promotion-gate" / "records").chmod(0o777)
    assert KeptRecords.here() is None


def test_a_registry_that_does_not_answer_is_no_missing_record(world, kept):
    world.promote(1)

    def before(number, call):
        if call == "read_file":
            raise RegistryError("no answer")

    broken = MemoryRegistry(world.store, before=before)
    with pytest.raises(RegistryError, match="no answer"):
        read_ledger(broken, world.registry.events(NAME), world.actor.keys.trusted, kept)
