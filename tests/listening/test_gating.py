"""Each version is gated once, whatever happens to the gate, and nothing that a person settled is touched."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from promotion_gate import transition
from promotion_gate.core.errors import RegistryError
from promotion_gate.core.policy import load_policy
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.listening.deliveries import SECRET_VARIABLE
from promotion_gate.listening.gating import MAX_TRIES, GateProcess, _Mark
from promotion_gate.registry.memory import MemoryRegistry

REF = ModelRef("signs", 1)


def ref(version):
    return ModelRef("signs", version)


def total(listener, name, label=""):
    return listener.counts.totals().get(f"{name} {label}".strip(), 0)


def test_a_version_asked_for_many_times_is_gated_once(listener, gate, store, eventually):
    one = listener()
    gate.hold.clear()
    one.gatekeeper.start()
    assert one.gatekeeper.offer(REF) == "accepted"
    eventually(lambda: gate.ran)
    assert [one.gatekeeper.offer(REF) for _ in range(4)] == ["waiting"] * 4
    gate.hold.set()
    eventually(lambda: total(one, "gate_runs", "promote"))
    assert one.gatekeeper.offer(REF) == "accepted"  # it has forgotten, but history has not
    eventually(lambda: total(one, "skipped", "not_newer"))
    assert gate.ran == [1]
    assert store.aliases["signs"]["production"] == 1


@pytest.mark.parametrize(("code", "outcome"), [(0, "promote"), (3, "reject"), (4, "hold")])
def test_history_tells_the_next_listener(listener, gate, code, outcome):
    gate.codes[1] = code
    for _ in range(3):
        listener().gatekeeper.consider(REF)
    assert gate.ran == [1]
    assert total(listener(), "gate_runs") == 0


def test_another_policy_judges_again_what_no_person_settled(listener, gate, policy, actor, store):
    gate.codes = {1: 4, 2: 4, 3: 3}
    for version in (1, 2, 3):
        listener().gatekeeper.consider(ref(version))
    transition.reject(MemoryRegistry(store), ref(1), reason="no", actor=actor)
    policy.write_text(policy.read_text() + "\n# stricter\n")
    again = listener()
    for version in (1, 2, 3):
        again.gatekeeper.consider(ref(version))
    assert gate.ran == [1, 2, 3, 2, 3]
    assert total(again, "skipped", "rejected_by_a_person") == 1


def test_what_was_in_production_or_revoked_does_not_come_back_by_itself(listener, gate, store, actor, policy):
    one = listener()
    for version in (1, 2, 3):
        one.gatekeeper.consider(ref(version))
    transition.rollback(MemoryRegistry(store), "signs", to=1, reason="worse", actor=actor)
    transition.revoke(MemoryRegistry(store), ref(3), reason="poisoned", actor=actor)
    policy.write_text(policy.read_text() + "\n# another\n")
    assert one.ledger.pending("signs", load_policy(policy)) == []
    for version in (1, 2, 3):
        one.gatekeeper.consider(ref(version))
    assert gate.ran == [1, 2, 3]
    assert store.aliases["signs"]["production"] == 1


def test_an_older_version_never_replaces_a_newer_one(listener, gate, judge):
    judge(3)
    one = listener()
    one.gatekeeper.consider(ref(2))
    assert gate.ran == []
    assert total(one, "skipped", "not_newer") == 1


def test_a_verdict_that_nobody_trusted_signed_proves_nothing(listener, gate, judge, store):
    recorded = judge(1, Outcome.REJECT)
    store.runs[recorded.event_id].files["record.dsse.json"] = b"{}"
    listener().gatekeeper.consider(REF)
    assert gate.ran == [1]


def test_what_is_pending_is_what_is_gated(listener, gate, policy):
    one = listener()
    gate.codes = {1: 3, 2: 0}
    assert one.ledger.pending("signs", load_policy(policy)) == [ref(1), ref(2), ref(3)]
    one.gatekeeper.consider(ref(1))
    assert one.ledger.pending("signs", load_policy(policy)) == [ref(2), ref(3)]
    one.gatekeeper.consider(ref(2))
    assert one.ledger.pending("signs", load_policy(policy)) == [ref(3)]


def test_a_record_is_fetched_once(listener, gate, policy):
    one = listener()
    gate.codes[1] = 3
    one.gatekeeper.consider(ref(1))
    one.ledger.pending("signs", load_policy(policy))
    before = one.registry.calls.count("read_file")
    one.ledger.pending("signs", load_policy(policy))
    assert one.registry.calls.count("read_file") == before


@pytest.mark.parametrize("code", [1, 2, 5, -9, None, 99])
def test_a_gate_that_fails_is_tried_again_and_not_for_ever(listener, gate, code):
    one = listener(pause=0)
    gate.codes[1] = code
    for _ in range(MAX_TRIES + 2):
        one.gatekeeper.consider(REF)
    assert gate.ran == [1] * MAX_TRIES
    assert total(one, "gate_runs", "timeout" if code is None else "failed") == MAX_TRIES
    assert total(one, "skipped", "failed_too_often") == 2


def test_a_failed_gate_waits_before_it_is_tried_again(listener, gate):
    one = listener(pause=1000)
    gate.codes[1] = 1
    one.gatekeeper.consider(REF)
    one.gatekeeper.consider(REF)
    assert gate.ran == [1]
    assert total(one, "skipped", "tried_just_now") == 1


def test_a_changed_policy_gives_a_failed_version_new_tries(listener, gate, policy):
    one = listener()
    gate.codes[1] = 1
    for _ in range(MAX_TRIES):
        one.gatekeeper.consider(REF)
    policy.write_text(policy.read_text() + "\n# mended\n")
    gate.codes[1] = 0
    one.gatekeeper.consider(REF)
    assert total(one, "gate_runs", "promote") == 1


@pytest.mark.parametrize("code", [0, 3, 4])
def test_an_exit_code_without_a_verdict_in_history_is_a_failure(listener, gate, code):
    one = listener()
    gate.judge = lambda *_: None
    gate.codes[1] = code
    one.gatekeeper.consider(REF)
    assert total(one, "gate_runs", "failed") == 1


def test_two_listeners_gate_a_version_once(listener, gate, eventually):
    one, other = listener(), listener()
    gate.hold.clear()
    one.gatekeeper.start()
    one.gatekeeper.offer(REF)
    eventually(lambda: gate.ran)
    other.gatekeeper.consider(REF)
    assert total(other, "skipped", "gated_elsewhere") == 1
    gate.hold.set()
    eventually(lambda: total(one, "gate_runs", "promote"))
    other.gatekeeper.consider(REF)
    assert gate.ran == [1]


def test_the_mark_of_a_listener_that_died_falls(listener, gate, store):
    with _Mark(MemoryRegistry(store), REF) as mark:
        assert mark.taken
        mark.taken = False  # it will never be given back
    listener().gatekeeper.consider(REF)
    assert gate.ran == []
    (name,) = store.locks
    store.clock = store.locks[name].until
    listener().gatekeeper.consider(REF)
    assert gate.ran == [1]
    assert store.locks == {}


def test_the_mark_is_renewed_and_only_by_its_holder(store):
    with _Mark(MemoryRegistry(store), REF) as mark:
        (held,) = store.locks.values()
        mark._renewed -= 1000
        mark.renew()
        (renewed,) = store.locks.values()
        assert renewed.until > held.until
        (name,) = store.locks
        store.locks[name] = renewed.__class__("another", "bob@there", renewed.until)
        mark._renewed -= 1000
        mark.renew()
        assert store.locks[name].token == "another"
    assert store.locks[name].token == "another"


def test_a_full_queue_says_so(listener):
    one = listener(room=2)
    assert [one.gatekeeper.offer(ref(v)) for v in (1, 2, 3)] == ["accepted", "accepted", "full"]


def test_trouble_with_one_version_ends_nothing(listener, gate, policy, eventually):
    one = listener()
    text = policy.read_text()
    policy.write_text("this is no policy")
    one.gatekeeper.start()
    one.gatekeeper.offer(REF)
    eventually(lambda: total(one, "skipped", "cannot_tell"))
    policy.write_text(text)

    def unreachable(number, name):
        raise RegistryError("no answer")

    one.registry._before, before = unreachable, one.registry._before
    one.gatekeeper.offer(ref(2))
    eventually(lambda: total(one, "skipped", "cannot_tell") == 2)
    one.registry._before = before
    one.gatekeeper.offer(ref(3))
    eventually(lambda: gate.ran == [3])
    one.gatekeeper.offer(ModelRef("no-such-model", 1))
    eventually(lambda: total(one, "skipped", "unknown"))


def script(tmp_path, policy, body, seconds=20.0, **environment):
    path = tmp_path / "gate.py"
    path.write_text(f"import os, signal, subprocess, sys, time\nfrom pathlib import Path\n{body}\n")
    return GateProcess(policy, True, seconds, environment, (sys.executable, str(path)))


def test_the_process_gets_the_version_as_one_word_and_no_webhook_secret(tmp_path, policy, monkeypatch):
    monkeypatch.setenv(SECRET_VARIABLE, "correct horse battery staple")
    body = "Path('told').write_text(repr(sys.argv[1:]) + repr(sorted(os.environ)) + os.environ['URI'])"
    monkeypatch.chdir(tmp_path)
    gate = script(tmp_path, policy, body, URI="http://user:password@mlflow")
    hostile = ModelRef("--help'; $(touch pwned)", 1)
    assert gate(hostile, threading.Event(), lambda: None) == 0
    told = Path("told").read_text()
    words = ["run", f"--policy={policy}", "--quiet", "--", hostile.uri]
    assert told.startswith(repr(words))
    assert told.endswith("http://user:password@mlflow")
    assert SECRET_VARIABLE not in told
    assert not Path("pwned").exists()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"


@pytest.mark.parametrize("how", ["timeout", "ended"])
@pytest.mark.parametrize("deaf", [False, True])
def test_a_gate_is_ended_with_all_that_it_started(tmp_path, policy, monkeypatch, eventually, how, deaf):
    monkeypatch.setattr("promotion_gate.listening.gating.GRACE_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)
    body = f"""
tidy = lambda *_: (Path("tidied").touch(), sys.exit(143))
signal.signal(signal.SIGTERM, signal.SIG_IGN if {deaf} else tidy)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
Path("pids.part").write_text(f"{{os.getpid()}} {{child.pid}}")
Path("pids.part").rename("pids")
time.sleep(60)
"""
    ended = threading.Event()
    gate = script(tmp_path, policy, body, seconds=1.5 if how == "timeout" else 60)
    if how == "ended":

        def end_soon():
            while not Path("pids").exists():
                time.sleep(0.01)
            ended.set()

        threading.Thread(target=end_soon).start()
    assert gate(REF, ended, lambda: None) is None
    pids = [int(pid) for pid in Path("pids").read_text().split()]
    eventually(lambda: not any(map(alive, pids)))
    assert Path("tidied").exists() is not deaf


def test_a_gate_that_is_killed_has_an_exit_code(tmp_path, policy):
    gate = script(tmp_path, policy, "os.kill(os.getpid(), signal.SIGKILL)")
    assert gate(REF, threading.Event(), lambda: None) == -signal.SIGKILL
