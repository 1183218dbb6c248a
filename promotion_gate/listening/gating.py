"""One gate run after another, each a process of its own: a gate that crashes takes nothing with it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from promotion_gate.core.errors import ExitCode, GateError, RegistryConflict, RegistryError
from promotion_gate.core.policy import load_policy
from promotion_gate.core.record import now, whoami
from promotion_gate.core.types import ModelRef
from promotion_gate.listening.counts import Counts
from promotion_gate.listening.deliveries import SECRET_VARIABLE
from promotion_gate.listening.pending import Ledger
from promotion_gate.registry.interface import LockHolder, Registry

LEASE = timedelta(seconds=120)
"""How long the mark "being gated" outlives a listener that died."""
RENEW_SECONDS = 30.0
GRACE_SECONDS = 15.0
"""How long a gate that is told to end has for closing its run."""
MAX_TRIES = 3
"""How often a version is tried under one policy while its gate crashes or the registry fails it."""
MAX_SAID = 10_000

Log = Callable[[str], None]
OUTCOMES = {ExitCode.DONE: "promote", ExitCode.REJECTED: "reject", ExitCode.HELD: "hold"}


class Gate(Protocol):
    """Runs the gate on one version."""

    def __call__(self, ref: ModelRef, ended: threading.Event, meanwhile: Callable[[], None]) -> int | None:
        """The exit code, or None where the gate ran out of time or ``ended`` was set meanwhile.

        ``meanwhile`` is called about once a second.
        """
        ...


@dataclass(frozen=True, slots=True)
class GateProcess:
    """Runs ``promotion-gate run`` as a process. Its output goes to standard error.

    The registry's address goes by the environment, since it may hold a password and command lines can be read
    by everybody; the webhook's secret does not go along.
    """

    policy: Path
    promoting: bool
    seconds: float
    environment: Mapping[str, str]
    program: Sequence[str] = (sys.executable, "-P", "-m", "promotion_gate")

    def __call__(self, ref: ModelRef, ended: threading.Event, meanwhile: Callable[[], None]) -> int | None:
        flags = [] if self.promoting else ["--no-promote"]
        command = [*self.program, "run", f"--policy={self.policy}", "--quiet", *flags, "--", ref.uri]
        environment = {k: v for k, v in os.environ.items() if k != SECRET_VARIABLE} | dict(self.environment)
        deadline = time.monotonic() + self.seconds
        process = subprocess.Popen(  # noqa: S603 - the model's name is one argument, after "--"
            command, stdin=subprocess.DEVNULL, stdout=2, env=environment, start_new_session=True
        )
        try:
            while not ended.is_set() and time.monotonic() < deadline:
                try:
                    return process.wait(1.0)
                except subprocess.TimeoutExpired:
                    meanwhile()
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the gate and whatever it started; SIGTERM first, so that it closes its run."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True, slots=True)
class _Tries:
    policy_digest: str
    count: int
    not_before: float


class Gatekeeper(threading.Thread):
    """Gates the versions that it is given, one at a time, each once.

    Parameters
    ----------
    room: how many versions may wait.
    pause: seconds before a version whose gate failed is tried again; doubled with each failure.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        policy: Path,
        gate: Gate,
        counts: Counts,
        log: Log,
        *,
        room: int,
        pause: float,
    ) -> None:
        super().__init__(name="gatekeeper", daemon=True)
        self._registry = registry
        self._ledger = ledger
        self._policy = policy
        self._gate = gate
        self._counts = counts
        self._log = log
        self._room = room
        self._pause = pause
        self._waiting: deque[ModelRef] = deque()
        self._current: ModelRef | None = None
        self._said: dict[ModelRef, str] = {}
        self._tries: dict[ModelRef, _Tries] = {}
        self._change = threading.Condition()
        self._ended = threading.Event()

    def offer(self, ref: ModelRef) -> str:
        """Ask for a version to be gated: ``accepted``, ``waiting`` (it is asked for already) or ``full``."""
        with self._change:
            if ref in self._waiting or ref == self._current:
                return "waiting"
            if len(self._waiting) >= self._room:
                return "full"
            self._waiting.append(ref)
            self._counts.waiting.set(len(self._waiting))
            self._change.notify()
            return "accepted"

    def end(self) -> None:
        """End, with the gate that is running."""
        self._ended.set()
        with self._change:
            self._change.notify()

    def run(self) -> None:
        while (ref := self._next()) is not None:
            try:
                self.consider(ref)
            except GateError as error:
                self._skipped(ref, "cannot_tell", str(error))
            except Exception as error:  # the listener outlives whatever happens to one version
                self._skipped(ref, "cannot_tell", f"{type(error).__name__}: {error}")
            finally:
                with self._change:
                    self._current = None

    def consider(self, ref: ModelRef) -> None:
        """Gate a version unless it was judged, is being gated elsewhere, or has failed too often."""
        policy = load_policy(self._policy)
        if self._skipped(ref, self._ledger.why_not(ref, policy)):
            return
        tries = self._tries.get(ref)
        if tries is not None and tries.policy_digest == policy.digest:
            if tries.count >= MAX_TRIES:
                self._skipped(ref, "failed_too_often")
                return
            if time.monotonic() < tries.not_before:
                self._skipped(ref, "tried_just_now")
                return
        with _Mark(self._registry, ref) as mark:
            if not mark.taken:
                self._skipped(ref, "gated_elsewhere")
                return
            # Another listener may have judged it between the first look and the mark.
            if self._skipped(ref, self._ledger.why_not(ref, policy)):
                return
            self._said.pop(ref, None)
            self._log(f"gate {ref}")
            self._counts.running.set(1)
            try:
                code = self._gate(ref, self._ended, mark.renew)
            finally:
                self._counts.running.set(0)
            if self._ended.is_set():
                self._log(f"the gate run of {ref} was ended; it starts anew with the next listener")
                return
            judged = self._ledger.why_not(ref, policy)
        if code is None:
            self._failed(ref, policy.digest, "it took too long", "timeout")
        elif code in OUTCOMES and judged:
            self._tries.pop(ref, None)
            outcome = OUTCOMES[ExitCode(code)]
            self._counts.gate_runs.labels(outcome).inc()
            self._log(f"{outcome.upper()} {ref}")
        else:
            self._failed(ref, policy.digest, f"it ended with {code} and left no verdict")

    def _next(self) -> ModelRef | None:
        with self._change:
            while not self._waiting and not self._ended.is_set():
                self._change.wait()
            if self._ended.is_set():
                return None
            self._current = self._waiting.popleft()
            self._counts.waiting.set(len(self._waiting))
            return self._current

    def _skipped(self, ref: ModelRef, reason: str, why: str = "") -> bool:
        """Count why a version is not gated, and say it unless that was the last thing said of it."""
        if not reason:
            return False
        self._counts.skipped.labels(reason).inc()
        line = why or reason.replace("_", " ")
        if self._said.get(ref) != line:
            self._said = {**(self._said if len(self._said) < MAX_SAID else {}), ref: line}
            self._log(f"{ref} is not gated: {line}")
        return True

    def _failed(self, ref: ModelRef, policy_digest: str, why: str, outcome: str = "failed") -> None:
        before = self._tries.get(ref)
        count = before.count if before is not None and before.policy_digest == policy_digest else 0
        self._counts.gate_runs.labels(outcome).inc()
        wait = self._pause * 2**count
        self._tries[ref] = _Tries(policy_digest, count + 1, time.monotonic() + wait)
        what = f"tried again in {wait:.0f} s" if count + 1 < MAX_TRIES else "not tried again until a restart"
        self._log(f"the gate run of {ref} failed: {why}; {what}")


class _Mark:
    """Stands in the registry while a version is gated, so that no other listener gates it too."""

    def __init__(self, registry: Registry, ref: ModelRef) -> None:
        self._registry = registry
        self._name = f"the gate run of {ref}"
        self._holder = LockHolder(secrets.token_hex(16), "@".join(whoami()), now() + LEASE)
        self._renewed = time.monotonic()
        self.taken = False

    def __enter__(self) -> _Mark:
        with contextlib.suppress(RegistryConflict):
            self._registry.acquire_lock(self._name, self._holder)
            self.taken = True
        return self

    def __exit__(self, *error: object) -> None:
        if self.taken:
            with contextlib.suppress(RegistryError):
                self._registry.release_lock(self._name, self._holder)

    def renew(self) -> None:
        """Hold on, now and then. Where that fails, the worst is that a version is judged twice."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        holder = replace(self._holder, until=now() + LEASE)
        with contextlib.suppress(RegistryError):
            self._registry.renew_lock(self._name, holder)
            self._holder = holder
