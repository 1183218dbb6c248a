"""Waiting for a registry: time limits, repeats, and what is never done twice."""

import os
import threading

import pytest

from promotion_gate.registry import patience as module
from promotion_gate.registry.connection import _NO_REPEATS, Connection
from promotion_gate.registry.patience import (
    CALL_SECONDS,
    PATIENCE_SECONDS,
    SPENT_SECONDS,
    AttemptTimedOut,
    GaveUp,
    Patience,
    Trouble,
    within_seconds,
)


class Refused(Exception):
    pass


class Unheard(Exception):
    pass


class Unknown(Exception):
    pass


KINDS = {Refused: Trouble.REFUSED, Unheard: Trouble.UNHEARD, Unknown: Trouble.UNKNOWN}


def kind(error):
    return KINDS.get(type(error), Trouble.UNKNOWN)


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class Server:
    """Answers by script: a string is an answer, a class is raised; each call takes ``seconds``."""

    def __init__(self, clock, *script, seconds=0.0):
        self.clock, self.script, self.seconds, self.calls = clock, list(script), seconds, 0

    def __call__(self):
        self.calls += 1
        self.clock.now += self.seconds
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, str):
            return step
        raise step()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def patience(clock):
    return Patience(clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("failure", [Unheard, Unknown])
def test_trouble_that_passes_is_waited_out_with_growing_pauses(clock, patience, failure):
    server = Server(clock, *[failure] * 4, "yes")
    assert patience.ask(server, kind) == "yes"
    assert server.calls == 5
    assert all(0 < pause <= module.LONGEST_PAUSE for pause in clock.slept)
    assert clock.slept[-1] > clock.slept[0]


def test_a_no_is_asked_for_once(clock, patience):
    server = Server(clock, Refused, "yes")
    with pytest.raises(Refused):
        patience.ask(server, kind)
    assert (server.calls, clock.slept) == (1, [])


@pytest.mark.parametrize(("script", "unknown"), [((Unheard,), False), ((Unknown, Unheard), True)])
def test_it_is_given_up_in_time_and_told_whether_it_may_have_happened(clock, patience, script, unknown):
    patience.ask(Server(clock, "hello"), kind)
    started = clock.now
    with pytest.raises(GaveUp) as caught:
        patience.ask(Server(clock, *script), kind)
    assert caught.value.unknown is unknown
    assert clock.now - started <= PATIENCE_SECONDS
    assert caught.value.attempts > 5


def test_a_stranger_gets_seconds(clock, patience):
    started = clock.now
    with pytest.raises(GaveUp):
        patience.ask(Server(clock, Unheard), kind)
    assert clock.now - started <= module.STRANGER_SECONDS


def test_what_must_not_happen_twice_is_looked_for_before_a_repeat(clock, patience):
    found = []
    server = Server(clock, Unknown, "made")
    assert patience.ask(server, kind, before_repeat=lambda: found.append(1) or None) == "made"
    assert (server.calls, len(found)) == (2, 1)

    server = Server(clock, Unknown, "made again")
    assert patience.ask(server, kind, before_repeat=lambda: ("there already",)) == "there already"
    assert server.calls == 1


def test_what_was_not_heard_needs_no_looking(clock, patience):
    def never():
        raise AssertionError("asked")

    assert patience.ask(Server(clock, Unheard, "made"), kind, before_repeat=never) == "made"


def test_looking_can_fail_too_and_nothing_is_repeated_blindly(clock, patience):
    server = Server(clock, Unknown, "made")
    looks = Server(clock, Unheard, Unheard, "there")
    assert patience.ask(server, kind, before_repeat=lambda: (looks(),)) == "there"
    assert (server.calls, looks.calls) == (1, 3)


def test_all_trouble_of_a_command_together_has_an_end(clock, patience):
    patience.ask(Server(clock, "hello"), kind)
    started = clock.now
    for _ in range(30):
        with pytest.raises(GaveUp):
            patience.ask(Server(clock, Unknown, seconds=2.0), kind)
    assert clock.now - started <= PATIENCE_SECONDS + 30 * 2.5
    clock.now += module.MEMORY_SECONDS + 1
    server = Server(clock, Unknown, "yes")
    assert patience.ask(server, kind) == "yes"


def test_a_server_that_is_merely_slow_uses_the_patience_up(clock, patience):
    slow = Server(clock, "yes", seconds=CALL_SECONDS - 1)
    for _ in range(3):
        assert patience.ask(slow, kind) == "yes"
    assert patience._left() <= 0
    once = Server(clock, Unknown, "yes")
    with pytest.raises(GaveUp):
        patience.ask(once, kind)
    assert once.calls == 1


def test_large_files_are_not_held_against_a_server(clock, patience):
    assert patience.ask(Server(clock, "yes", seconds=900.0), kind, seconds=3600.0) == "yes"
    assert patience._left() == PATIENCE_SECONDS


def test_the_user_says_how_often(clock, monkeypatch):
    once = Patience(repeats=0, clock=clock, sleep=clock.sleep)
    server = Server(clock, Unknown, "yes")
    with pytest.raises(GaveUp):
        once.ask(server, kind)
    assert server.calls == 1
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    told = Connection("http://127.0.0.1:9", None).patience
    assert (told.repeats, told.call_seconds) == (3, 7.0)


def test_an_attempt_ends_in_time_whatever_the_server_does(clock):
    stuck = threading.Event()
    try:
        with pytest.raises(AttemptTimedOut):
            within_seconds(stuck.wait, 0.05)
        with pytest.raises(GaveUp) as caught:
            Patience(call_seconds=0.05, repeats=1).ask(stuck.wait, kind)
        assert isinstance(caught.value.last, AttemptTimedOut)
        assert caught.value.unknown
    finally:
        stuck.set()


def test_the_limit_of_one_attempt_shrinks_when_the_budget_is_spent(clock, patience, monkeypatch):
    allowed = []
    monkeypatch.setattr(module, "within_seconds", lambda call, seconds: allowed.append(seconds) or call())
    patience.ask(Server(clock, "yes"), kind)
    patience._count(clock.now, PATIENCE_SECONDS)
    patience.ask(Server(clock, "yes"), kind)
    assert allowed == [CALL_SECONDS, SPENT_SECONDS]


def test_mlflow_repeats_nothing_by_itself_while_the_gate_asks(monkeypatch):
    variable = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.setenv(variable, "9")
    with _NO_REPEATS:
        with _NO_REPEATS:
            assert os.environ[variable] == "0"
        assert os.environ[variable] == "0"
    assert os.environ[variable] == "9"
    monkeypatch.delenv(variable)
    with _NO_REPEATS:
        pass
    assert variable not in os.environ
