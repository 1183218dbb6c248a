"""A rollback without a person: seldom, only for the version that alarms, and never silently."""

import threading
from datetime import timedelta

import pytest

from promotion_gate import transition
from promotion_gate.core.errors import RegistryConflict, RegistryError
from promotion_gate.core.keys import Keyring, load_signing_key, load_trusted_keys
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.monitor.alerts import Alerts
from promotion_gate.monitor.automatic import AUTOMATIC, AutomaticRollback, Rules
from promotion_gate.monitor.settings import AlertSettings, Receiver
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.status import status
from promotion_gate.transition import Actor, Judged

NAME = "signs"


class Told:
    secrets = ()

    def __init__(self):
        self.got = []

    def send(self, notification):
        self.got.append(notification)

    @property
    def words(self):
        return [(n.word, n.alarm.kind) for n in self.got]

    @property
    def last(self):
        """The last notice, whole."""
        return "\n".join([n for n in self.got if n.word == "notice"][-1].lines())


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        return Keyring(load_signing_key(), load_trusted_keys())


@pytest.fixture
def store(clock):
    store = MemoryStore()
    store.clock = clock.at - timedelta(days=9)
    for version in (1, 2, 3, 4):
        store.add_version(ModelRef(NAME, version), {"MLmodel": b"flavors", "model": b"%d" % version})
    return store


@pytest.fixture
def actor(keys, store):
    return Actor("monitor", "ship", keys, lambda: store.clock)


@pytest.fixture
def promote(store, actor):
    def move(version):
        registry = MemoryRegistry(store)
        ref = ModelRef(NAME, version)
        digest = transition.artifact_digest(registry, ref)
        champion = store.aliases[NAME].get("production")
        judged = Judged(ref, digest, Outcome.PROMOTE, "good", champion, "a" * 64)
        return transition.promote(registry, judged, actor=actor)

    return move


@pytest.fixture
def monitor(store, actor, tmp_path):
    """An automatic rollback with alerts of its own, and what people were told."""
    made = []

    def make(where="a", registry=None, told=None, **rules):
        told = told or Told()
        alerts = Alerts(
            AlertSettings([Receiver("night", told)]),
            tmp_path / where / "alerts.json",
            complain=made.append,
            clock=lambda: store.clock,
            pauses=(),
        )
        automatic = AutomaticRollback(
            registry or MemoryRegistry(store), NAME, alerts, Rules(**rules), actor=actor, pauses=(0.01,) * 4
        )

        def look(*firing, **age):
            alerts.take(firing, everything=("class-share",), model=NAME)
            automatic.answer(firing, **age)
            alerts.deliver()
            return told

        return look

    return make


@pytest.fixture
def served(store, promote):
    """Versions 1, 2 and 3 were promoted long ago."""
    for version in (1, 2, 3):
        promote(version)
        store.wait(86400 * 2)


@pytest.fixture
def firing(store, alarm):
    def make(**more):
        return alarm(**{"since": store.clock - timedelta(hours=1), "at": store.clock, **more})

    return make


def rollbacks(store, actor):
    told = transition.history(MemoryRegistry(store), NAME, actor.keys.trusted)
    return [e.record for e in told if e.record and e.record.action == "rollback" and e.event.state == "done"]


@pytest.mark.usefixtures("served")
def test_an_alarm_rolls_back_and_a_person_is_told_how_to_undo_it(store, actor, monitor, firing):
    told = monitor()(firing())
    assert store.aliases[NAME]["production"] == 2
    (record,) = rollbacks(store, actor)
    assert record.reason.startswith(AUTOMATIC + "class-share 'Speed limit 80': prediction distribution")
    assert record.alarm_at == store.clock
    assert status(MemoryRegistry(store), NAME, trusted=actor.keys.trusted).mttr == 0.0
    assert sorted(told.words) == [("firing", "class-share"), ("notice", "rollback")]
    notice = next(n for n in told.got if n.word == "notice")
    text = "\n".join(notice.lines())
    assert "rolled back automatically: production is version 2, was 3" in text
    assert "to undo it: promotion-gate rollback signs --to 3 --reason" in text


@pytest.mark.usefixtures("served")
def test_the_undo_command_undoes_it(store, monitor, firing, actor):
    monitor()(firing())
    transition.rollback(MemoryRegistry(store), NAME, to=3, reason="looked at", actor=actor)
    assert store.aliases[NAME]["production"] == 3


@pytest.mark.usefixtures("served")
def test_once_a_day_and_the_refusal_is_told_once(store, monitor, firing, actor, promote):
    look = monitor()
    look(firing())
    store.wait(3600)
    promote(4)
    store.wait(3600)
    for _ in range(3):
        told = look(firing(version=4))
        store.wait(600)
    assert store.aliases[NAME]["production"] == 4
    refusals = [n for n in told.got if "NOT rolled back" in n.message]
    assert len(refusals) == 1
    assert "the limit of 1 automatic rollback in 24 hours" in refusals[0].message
    assert "to do it by hand: promotion-gate rollback signs --reason" in "\n".join(refusals[0].lines())
    store.wait(86400)
    look(firing(version=4))
    assert store.aliases[NAME]["production"] == 2
    assert len(rollbacks(store, actor)) == 2


@pytest.mark.usefixtures("served")
def test_the_limit_stands_in_history_and_not_on_this_machine(store, monitor, firing, promote):
    monitor("one machine")(firing())
    store.wait(3600)
    promote(4)
    store.wait(3600)
    monitor("another machine")(firing(version=4))
    assert store.aliases[NAME]["production"] == 4


@pytest.mark.usefixtures("served")
def test_a_persons_rollback_does_not_count(store, monitor, firing, actor):
    transition.rollback(MemoryRegistry(store), NAME, reason="it stops at green", actor=actor)
    store.wait(3600)
    monitor()(firing(version=2))
    assert store.aliases[NAME]["production"] == 1


@pytest.mark.usefixtures("served")
def test_two_monitors_roll_back_once(store, monitor, firing, actor):
    looks = [monitor(str(i), MemoryRegistry(store)) for i in range(4)]
    threads = [threading.Thread(target=look, args=(firing(),)) for look in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.aliases[NAME]["production"] == 2
    assert len(rollbacks(store, actor)) == 1


@pytest.mark.usefixtures("served")
def test_between_the_look_and_the_lock_another_monitor_was_there(store, monitor, firing, actor):
    """The other rolls back right before this one takes the lock: this one must not go one further."""
    other = monitor("other")

    def meanwhile(number, name):
        if name == "acquire_lock" and not done:
            done.append(number)
            other(firing())

    done = []
    told = monitor("this", MemoryRegistry(store, before=meanwhile))(firing())
    assert done
    assert store.aliases[NAME]["production"] == 2
    assert len(rollbacks(store, actor)) == 1
    assert ("firing", "rollback") not in told.words


@pytest.mark.usefixtures("served")
def test_production_is_not_the_version_that_alarms(store, monitor, firing):
    told = monitor()(firing(version=2))
    assert store.aliases[NAME]["production"] == 3
    assert "in production is version 3, the alarm is about 2" in told.last


@pytest.mark.usefixtures("served")
def test_an_alarm_without_a_version_counts_for_what_served_all_the_while(store, monitor, firing, promote):
    promote(4)
    store.wait(1800)
    told = monitor()(firing(version=None))
    assert store.aliases[NAME]["production"] == 4
    assert "does not say which version" in told.last
    store.wait(7200)
    monitor()(firing(version=None))
    assert store.aliases[NAME]["production"] == 3


@pytest.mark.usefixtures("served")
def test_the_cool_down_after_any_move(store, monitor, firing, promote):
    promote(4)
    store.wait(600)
    told = monitor()(firing(version=4))
    assert store.aliases[NAME]["production"] == 4
    assert "moved less than 15 minutes ago" in told.last
    store.wait(400)
    monitor()(firing(version=4))
    assert store.aliases[NAME]["production"] == 3


@pytest.mark.usefixtures("served")
def test_a_version_that_was_put_there_past_the_gate_is_left_after_the_cool_down(
    store, monitor, firing, actor
):
    store.aliases[NAME]["production"] = 4
    look = monitor()
    told = look(firing(version=4))
    assert store.aliases[NAME]["production"] == 4
    assert "moved less than 15 minutes ago" in told.last
    store.wait(1000)
    look(firing(version=4))
    assert store.aliases[NAME]["production"] == 3
    told = transition.history(MemoryRegistry(store), NAME, actor.keys.trusted)
    assert [e.record.action for e in told][-3:] == ["foreign", "rollback", "restored"]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("kind", ["confidence", "embedding", "unseen-class", "foreign-move", "rollback"])
def test_only_on_chosen_kinds(store, monitor, firing, kind):
    monitor()(firing(kind=kind))
    assert store.aliases[NAME]["production"] == 3
    monitor(kinds=frozenset({"confidence"}))(firing())
    assert store.aliases[NAME]["production"] == 3


@pytest.mark.usefixtures("served")
def test_old_predictions_move_nothing(store, monitor, firing):
    told = monitor()(firing(), old=timedelta(hours=30))
    assert store.aliases[NAME]["production"] == 3
    assert "the predictions behind the alarm are 30 hours old" in told.last
    monitor()(firing(), old=timedelta(hours=30), fresh=timedelta(hours=48))
    assert store.aliases[NAME]["production"] == 2


@pytest.mark.usefixtures("served")
def test_no_alarm_moves_nothing(store, monitor):
    assert monitor()().got == []
    assert store.aliases[NAME]["production"] == 3


def test_nothing_to_go_back_to_is_an_alarm_of_its_own(store, monitor, firing, promote):
    promote(1)
    store.wait(86400)
    look = monitor()
    for _ in range(2):
        told = look(firing(version=1))
    assert store.aliases[NAME]["production"] == 1
    assert sorted(told.words) == [("firing", "class-share"), ("firing", "rollback")]
    failed = next(n for n in told.got if n.alarm.kind == "rollback")
    assert "no earlier good version" in failed.message
    assert failed.severity == "critical"
    look()
    assert told.words.count(("resolved", "rollback")) == 1


@pytest.mark.usefixtures("served")
def test_a_rollback_that_fails_is_an_alarm_and_is_tried_again(store, monitor, firing):
    troubles = [RegistryError("no answer from tracking.example.org")] * 2

    def failing(number, name):
        if name == "set_alias" and troubles:
            raise troubles.pop()

    look = monitor(registry=MemoryRegistry(store, before=failing))
    told = look(firing())
    assert ("firing", "rollback") in told.words
    assert "automatic rollback FAILED: no answer from" in next(
        n.message for n in told.got if n.alarm.kind == "rollback"
    )
    troubles.clear()
    look(firing())
    assert store.aliases[NAME]["production"] == 2
    assert ("resolved", "rollback") in told.words


@pytest.mark.usefixtures("served")
def test_killed_after_the_move_the_next_monitor_tells_of_it(store, monitor, firing, actor):
    transition.rollback(
        MemoryRegistry(store), NAME, reason=AUTOMATIC + "class-share 'stop': it drifts", actor=actor
    )
    look = monitor()
    for _ in range(2):
        told = look()
    assert told.words == [("notice", "rollback")]
    store.wait(86400 * 3)
    assert monitor("fresh")().got == []


@pytest.mark.usefixtures("served")
def test_a_rollback_of_which_nothing_proves_whose_it_was_counts(store, monitor, firing, actor, promote):
    recorded = transition.rollback(MemoryRegistry(store), NAME, reason="x", actor=actor)
    store.runs[recorded.event_id].files["record.dsse.json"] = b"{}"
    store.wait(3600)
    told = monitor()(firing(version=2))
    assert store.aliases[NAME]["production"] == 2
    assert "limit" in told.last


@pytest.mark.usefixtures("served")
def test_hostile_names_stay_on_their_line(store, monitor, firing, actor):
    told = monitor()(firing(subject="x\nevil\x1b[2J", message="a\nb" + "c" * 9000))
    (record,) = rollbacks(store, actor)
    assert record.reason.isprintable()
    assert len(record.reason) <= 400
    assert all(line.isprintable() for n in told.got for line in n.lines())


@pytest.mark.usefixtures("served")
def test_rollback_asks_whether_it_may_before_and_under_the_lock(store, actor):
    asked = []

    def only_if(facts, events):
        asked.append(facts.aliases["production"])
        if len(asked) == 2:
            raise RegistryConflict("no longer")

    with pytest.raises(RegistryConflict, match="no longer"):
        transition.rollback(MemoryRegistry(store), NAME, reason="x", actor=actor, only_if=only_if)
    assert asked == [3, 3]
    assert store.aliases[NAME]["production"] == 3
    assert not store.locks
