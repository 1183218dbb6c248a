"""Break promotion and rollback in every way there is, and count what is wrong afterwards.

``python tests/faults/campaign.py`` runs all of it against real ``mlflow server`` processes of its own and
prints a table; ``--share N`` runs every Nth part. It exits 1 if anything did not hold.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from proxy import KINDS, LATE_SECONDS, Proxy
from scene import PRODUCTION, Server, World

from promotion_gate import transition
from promotion_gate.core.errors import ExitCode, GateError, NoAnswer, RegistryConflict
from promotion_gate.registry import locks, patience
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.registry.patience import Patience

OPERATIONS = ("promote", "rollback")
MOMENTS = ("before", "after")
SERIES = 8
"""Faults on one model, before a fresh one is taken: its history is read at each."""


@dataclass
class Tally:
    """What came of one scenario."""

    scenario: str
    rounds: int = 0
    ended: Counter = field(default_factory=Counter)
    violations: list = field(default_factory=list)

    def count(self, how, wrong, where=""):
        self.rounds += 1
        self.ended[how] += 1
        self.violations += [f"{where}: {line}" for line in wrong]

    @property
    def line(self):
        ended = ", ".join(f"{number} {how}" for how, number in sorted(self.ended.items()))
        return f"{self.scenario:38} {self.rounds:6} {len(self.violations):10}  {ended}"


def kill_points(world, operation, moment, share=1, first=1):
    """SIGKILL to the process at each HTTP call of its own, the call not sent yet or just answered."""
    tally = Tally(f"kill -9 {moment} each call, {operation}")
    model, number = None, first
    while True:
        if model is None or tally.rounds % SERIES == 0:
            model = world.model()
            model.promote(1)
            model.promote(2)
            model.violations()
        if operation == "rollback":
            model.ready_to_roll_back()
        before = model.production
        killed = _dies_at(model, operation, number, moment)
        if not killed:
            tally.scenario += f" ({number - 1} calls)"
            return tally
        moved = model.production != before
        model.let_the_lease_pass()
        notes = model.recover()
        states = ["undone" if "undone" in note else "finished" for note in notes]
        how = states[-1] if states else "moved and closed" if moved else "nothing begun"
        tally.count(how, model.violations(), f"call {number}")
        number += share


def _dies_at(model, operation, number, moment):
    """Run the operation in a process of its own; whether it died at that call."""
    version = model.next_version()
    model.world.digest(version)
    child = os.fork()
    if child == 0:
        try:
            _die_at_call(number, moment)
            registry = MlflowRegistry(model.world.uri)
            if operation == "promote":
                model.promote(version, registry)
            else:
                model.roll_back(registry)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{operation} failed by itself when it was to die at call {number}")
    return False


def _die_at_call(number, moment):
    import requests

    made = requests.Session.request
    mutex = threading.Lock()
    calls = 0

    def request(self, *arguments, **keywords):
        nonlocal calls
        with mutex:
            calls += 1
            mine = calls
        if mine == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = made(self, *arguments, **keywords)
        if mine == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    requests.Session.request = request


def four_promoters(world, rounds, promoters=4):
    """Four processes that promote a version each, at once."""
    tally = Tally(f"{promoters} promoters at once")
    fork = multiprocessing.get_context("fork")
    pipes, processes = [], []
    model = world.model()
    model.promote(1)
    for _ in range(promoters):
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_promoter, args=(world, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        for number in range(rounds):
            if number % SERIES == 0:
                model = world.model()
                model.promote(1)
                model.violations()
            champion = model.production
            verdicts = [world.judged(model.name, version) for version in (1, 2, 3, 4)]
            for pipe, verdict in zip(pipes, verdicts, strict=True):
                pipe.send(verdict)
            told = [pipe.recv() for pipe in pipes]
            won = [v for v, answer in zip((1, 2, 3, 4), told, strict=True) if answer == "won"]
            wrong = model.violations()
            if won != [model.production] and (won or model.production != champion):
                wrong.append(f"told to have won: {won}; in production: {model.production}")
            wrong += [answer for answer in told if answer not in ("won", "told of the other")]
            tally.count(f"{len(won)} won and {len(told) - len(won)} told", wrong, f"round {number + 1}")
    finally:
        for process in processes:
            process.kill()
            process.join()
    return tally


def _promoter(world, pipe):
    registry = MlflowRegistry(world.uri)
    while True:
        try:
            verdict = pipe.recv()
        except EOFError:
            return
        try:
            transition.promote(registry, verdict, PRODUCTION, world.actor)
            pipe.send("won")
        except RegistryConflict:
            pipe.send("told of the other")
        except BaseException as error:
            pipe.send(f"{type(error).__name__}: {error}")


def restarts(world, server, rounds):
    """The server is killed while a promotion or a rollback is under way, and started again."""
    waiting, patience.PATIENCE_SECONDS = patience.PATIENCE_SECONDS, 60.0
    try:
        return _restarts(world, server, rounds)
    finally:
        patience.PATIENCE_SECONDS = waiting


def _restarts(world, server, rounds):
    tally = Tally("server killed (-9) and restarted")
    model = world.model()
    model.promote(1)
    model.promote(2)
    model.violations()
    generator = random.Random(7)
    for number in range(rounds):
        if number % 2:
            model.ready_to_roll_back()
        version = model.next_version()
        world.digest(version)
        registry = MlflowRegistry(world.uri)
        registry.model(model.name)
        answer = []

        def work(registry=registry, number=number, version=version, answer=answer):
            answer.append(
                _told(lambda: model.roll_back(registry) if number % 2 else model.promote(version, registry))
            )

        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(generator.uniform(0, 0.6))
        server.kill()
        time.sleep(generator.uniform(0, 1))
        server.start()
        worker.join()
        tally.count(*_after(model, answer[0]), f"round {number + 1}")
    return tally


def proxy_faults(world, kind, share=1, *, lasting=False, operations=OPERATIONS, numbers=None):
    """One request of a promotion or rollback is mistreated, each in turn; or all from there on."""
    tally = Tally(f"proxy: {kind}" + (", from then on" if lasting else ""))
    proxy = Proxy(world.uri)
    try:
        for operation in operations:
            model = None
            for rounds, number in enumerate(numbers or itertools.count(1 + KINDS.index(kind) % share, share)):
                if rounds % SERIES == 0:
                    model = world.model()
                    model.promote(1)
                    model.promote(2)
                    model.violations()
                if operation == "rollback":
                    model.ready_to_roll_back()
                told = _through(proxy, _plan(kind, number, lasting), model, operation)
                if told is None:
                    break
                if "late" in kind:
                    time.sleep(LATE_SECONDS + 0.5)
                tally.count(*_after(model, told), f"{operation}, call {number}")
    finally:
        proxy.close()
    return tally


def _through(proxy, plan, model, operation):
    """How the operation ended; None where it made no such call."""
    registry = MlflowRegistry(proxy.uri, patience=Patience(call_seconds=4.0))
    verdict = model.world.judged(model.name, model.next_version())
    proxy.reset(plan)

    def work():
        if operation == "rollback":
            return model.roll_back(registry)
        return transition.promote(registry, verdict, PRODUCTION, model.world.actor)

    told = _told(work)
    was_hit = proxy.hits > 0
    proxy.reset()
    return told if was_hit else None


def _plan(kind, number, lasting):
    return lambda n, method, path: kind if n == number or (lasting and n > number) else None


def _told(work):
    """How the command ended, and the version that it says is in production now."""
    try:
        return "done", work().record.ref.version, ""
    except NoAnswer as error:
        return "told that the outcome is open", None, str(error)
    except GateError as error:
        expected = error.exit_code is ExitCode.REGISTRY or "changed since" in str(error)
        return "refused", None if expected else 0, str(error)
    except BaseException as error:
        return "crashed", 0, "".join(traceback.format_exception(error))


def _after(model, told):
    how, version, line = told
    wrong = []
    if how == "crashed" or version == 0:
        wrong.append(f"{how}: {line}")
    if line and how != "crashed" and (not line.isprintable() or "Traceback" in line):
        wrong.append(f"no clear line: {line[:300]!r}")
    if how == "done" and model.production != version:
        wrong.append(f"told to have moved to {version}, but production is {model.production}")
    model.let_the_lease_pass()
    notes = model.recover()
    if notes:
        how += ", settled by the next command"
    return how, wrong + model.violations()


def full_disk(world, folder):
    """The model does not fit the disk that it is downloaded to."""
    tally = Tally("disk full on download")
    model = world.model()
    model.promote(1)
    model.promote(2)
    model.violations()
    with _tiny_disk(Path(folder)) as (place, how):
        tally.scenario += f" ({how})"
        for operation in OPERATIONS:
            verdict = world.judged(model.name, 3)
            before = model.production
            kept, tempfile.tempdir = tempfile.tempdir, str(place)
            try:
                with _limit(how):
                    told = _told(
                        lambda operation=operation, verdict=verdict: (
                            model.roll_back()
                            if operation == "rollback"
                            else transition.promote(world.registry, verdict, PRODUCTION, world.actor)
                        )
                    )
            finally:
                tempfile.tempdir = kept
            wrong = [] if told[0] == "refused" and "cannot be kept" in told[2] else [f"{told}"]
            if list(place.iterdir()):
                wrong.append("files are left behind")
            if model.production != before:
                wrong.append("production moved")
            ended, more = _after(model, told)
            tally.count(ended, wrong + more, operation)
    return tally


@contextlib.contextmanager
def _tiny_disk(folder):
    place = folder / "tiny"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], capture_output=True, check=False
    )
    try:
        yield place, "tmpfs of 64 KiB" if mounted.returncode == 0 else "RLIMIT_FSIZE of 64 KiB"
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def _limit(how):
    if not how.startswith("RLIMIT"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def brief(put=setattr):
    """Shorter waits than an operator's: the faults of a campaign pass quickly or never."""
    put(patience, "PATIENCE_SECONDS", 8.0)
    put(patience, "STRANGER_SECONDS", 3.0)
    put(patience, "FIRST_PAUSE", 0.05)
    put(patience, "SPENT_SECONDS", 4.0)
    put(locks, "SETTLE_SECONDS", 0.1)


def run(share, rounds, only):
    """All scenarios; yields a tally each."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["XDG_CONFIG_HOME"] = folder
        os.environ.pop("PROMOTION_GATE_KEY", None)
        os.environ.pop("PROMOTION_GATE_TRUSTED_KEYS", None)
        with Server(folder) as server:
            world = World(server.uri, folder)
            for name, scenario in scenarios(world, server, folder, share, rounds):
                if only in name:
                    yield scenario()
            if only in "disk full":
                yield full_disk(World(server.uri, folder, size=200_000), folder)


def scenarios(world, server, folder, share, rounds):
    for operation in OPERATIONS:
        for moment in MOMENTS:
            yield "kill", lambda o=operation, m=moment: kill_points(world, o, m, share)
    yield "promoters", lambda: four_promoters(world, rounds)
    for kind in KINDS:
        yield f"proxy {kind}", lambda k=kind: proxy_faults(world, k, 4 * share)
    for kind in ("503 before", "500 after", "reset after", "empty object"):
        yield f"proxy {kind} lasting", lambda k=kind: proxy_faults(world, k, 12 * share, lasting=True)
    yield "restart", lambda: restarts(world, server, max(2, 10 // share))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=int, default=1, help="run every Nth kill point and fault")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of four promoters")
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    args = parser.parse_args()
    brief()
    started = time.monotonic()
    print(f"{'scenario':38} {'rounds':>6} {'violations':>10}  how they ended", flush=True)
    total, wrong = 0, 0
    for tally in run(args.share, args.rounds, args.only):
        print(tally.line, flush=True)
        for line in tally.violations[:5]:
            print(f"    {line}", flush=True)
        total += tally.rounds
        wrong += len(tally.violations)
    print(f"{total} rounds, {wrong} violations, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
