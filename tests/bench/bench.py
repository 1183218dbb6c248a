"""What the gate costs, as ratios measured in one run: ``python tests/bench/bench.py [--quick]``.

Real traffic signs come from ``gtsrb32.npz`` in the folder that ``GATE_TEST_DATA`` names; without it the gate
itself is left out. Trained models are kept in ``GATE_BENCH_CACHE`` (~/.cache/promotion-gate-bench). Nothing
here fails for being slow: the exit code is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "traffic-signs"
CLASSES, POINTS = 43, 5000
PASSES, GATE_SECONDS = 6, 40
HELP_SECONDS, MEMORY_GB, CARD_MB = 0.2, 2.5, 3.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# Watching a process and all below it.


@dataclass(slots=True)
class Tree:
    """Processor time and memory of a process and its descendants, sampled while it runs.

    ``times`` monotonic seconds, ``cpu`` seconds used by all until then, ``memory`` bytes that they hold at
    once, shared pages counted once.
    """

    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    _used: dict[int, float] = field(default_factory=dict)
    _highest: dict[int, tuple[str, int]] = field(default_factory=dict)

    def sample(self, root: int, *, memory: bool = True) -> None:
        now, held = time.monotonic(), 0
        for pid in [root, *descendants(root)]:
            with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
                self._used[pid] = max(self._used.get(pid, 0.0), cpu_seconds(pid))
                # The last word of a process counts: before its exec a child is told as large as its parent.
                self._highest[pid] = kind_of(pid, root), high_water(pid)
                held += proportional_memory(pid) if memory else 0
        self.times.append(now)
        self.cpu.append(sum(self._used.values()))
        self.memory.append(held)

    @property
    def peaks(self) -> dict[str, int]:
        """The largest resident memory of each kind of process, in bytes."""
        found: dict[str, int] = {}
        for kind, peak in self._highest.values():
            found[kind] = max(found.get(kind, 0), peak)
        return found

    def cpu_between(self, start: float, end: float) -> float:
        before, after = np.interp([start, end], self.times, self.cpu)
        return float(after - before)


def descendants(root: int) -> list[int]:
    """Every process below ``root``."""
    found: list[int] = []
    pending = [root]
    while pending:
        for task in _listed(Path(f"/proc/{pending.pop()}/task")):
            with contextlib.suppress(OSError):
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                pending += children
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def high_water(pid: int) -> int:
    """The most resident memory a process ever had, in bytes."""
    return _kibibytes(Path(f"/proc/{pid}/status"), "VmHWM:")


def proportional_memory(pid: int) -> int:
    """Resident memory with each shared page divided by its users; plainly resident where that is hidden."""
    try:
        return _kibibytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")
    except OSError:
        return _kibibytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def _kibibytes(path: Path, key: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def kind_of(pid: int, root: int) -> str:
    if pid == root:
        return "gate process"
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    if "worker.py" in command:
        return "sandboxed worker"
    return "map process" if "projection" in command else "other process"


@contextlib.contextmanager
def watched(process: subprocess.Popen[Any], every: float = 0.2) -> Iterator[Tree]:
    """Sample the process until the block ends; its memory at every fifth time, which costs more."""
    tree, over = Tree(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            tree.sample(process.pid, memory=len(tree.times) % 5 == 0)
            over.wait(every)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield tree
    finally:
        over.set()
        thread.join()


# The table.


@dataclass(slots=True)
class Table:
    """Lines of what, measured and aim, printed as they come."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def section(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def add(self, what: str, measured: str, aim: str = "", met: bool | None = None) -> None:
        verdict = "" if met is None else "  met" if met else "  missed"
        self.lines.append((what, measured, aim + verdict))
        print(f"  {what:<34} {measured:>34}  {aim}{verdict}".rstrip(), flush=True)


def machine() -> str:
    """Cores and load, which every figure depends on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores, load {load}"


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long something took, by the clock and by the processor."""

    wall: float
    cpu: float

    def __truediv__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall / other.wall, self.cpu / other.cpu)


def timed(command: Sequence[str]) -> Seconds:
    """Seconds of a command that must work."""
    clock, before = time.monotonic(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - clock, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(wall, used)


def alternated(commands: Sequence[Callable[[int], Sequence[str]]], rounds: int) -> list[Seconds]:
    """The median seconds of each command, all of them run once in every round."""
    taken: list[list[Seconds]] = [[] for _ in commands]
    for number in range(rounds):
        for command, measured in zip(commands, taken, strict=True):
            measured.append(timed(command(number)))
    return [
        Seconds(statistics.median(t.wall for t in measured), statistics.median(t.cpu for t in measured))
        for measured in taken
    ]


def own_command() -> list[str]:
    """The installed ``promotion-gate``, else the module."""
    script = Path(sys.executable).with_name("promotion-gate")
    return [str(script)] if script.exists() else [sys.executable, "-m", "promotion_gate"]


# The gate on real images.


def policy_text(checks: Sequence[str]) -> str:
    """A policy over all of ``checks``, with the bounds of the one that ``init`` writes."""
    bounds = {
        "per-class": "accuracy = { min = 0.9 }\naccuracy_drop = { max = 0.02 }",
        "patch-transplant": "triggers = { max = 0 }",
    }
    lines = [
        "version = 1",
        "[data]",
        'holdout = { path = "holdout.npz" }',
        'training = { path = "training.npz" }',
    ]
    for name in checks:
        lines += [f"[checks.{name}]", "required = false"]
        if name in bounds:
            lines += [f"[checks.{name}.bounds]", bounds[name]]
    return "\n".join([*lines, ""])


def prepare_child(folder: Path, data: Path, cache: Path, every: int) -> None:
    """Put data sets and a registry with champion and candidate into ``folder``; print the number of images.

    The models are trained on every third frame of the training tracks, which is enough, once; the gate is
    given every ``every``-th.
    """
    import gtsrb
    import mlflow

    from promotion_gate.core.keys import own_keyring
    from promotion_gate.core.record import whoami
    from promotion_gate.core.types import ModelRef, Outcome
    from promotion_gate.drill.train import _register
    from promotion_gate.registry.mlflow import MlflowRegistry
    from promotion_gate.transition import Actor, Judged, artifact_digest, promote

    images = gtsrb.load(data, every=every)
    images.training.save(folder / "training.npz")
    images.holdout.save(folder / "holdout.npz")
    taught = gtsrb.load(data)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.create_experiment("bench", (folder / "artifacts").as_uri())
    mlflow.set_experiment("bench")
    for name in ("champion", "clean-1"):
        member = gtsrb.member(taught, name, cache)
        with mlflow.start_run(run_name=name):
            _register(member.model, images.holdout.images[:2], gtsrb.CLASS_NAMES, MODEL)
    registry = MlflowRegistry(uri, artifact_location=(folder / "artifacts" / "gate").as_uri())
    champion = ModelRef(MODEL, 1)
    digest = artifact_digest(registry, champion)
    verdict = Judged(champion, digest, Outcome.PROMOTE, "the champion to measure against", None, "")
    promote(registry, verdict, actor=Actor(*whoami(), own_keyring(folder / "signing-key.pem")))
    print(len(images.training) + len(images.holdout))


def gate_child(folder: Path, policy: str) -> None:
    """Gate version 2 in this process; a line of JSON for each line of progress, and one at the end."""
    from promotion_gate.core.keys import own_keyring
    from promotion_gate.core.policy import load_policy
    from promotion_gate.core.record import whoami
    from promotion_gate.gate import run_gate, verdict_line
    from promotion_gate.registry.mlflow import MlflowRegistry
    from promotion_gate.transition import Actor

    telling = threading.Lock()

    def tell(line: str) -> None:
        with telling:
            print(json.dumps({"at": time.monotonic(), "line": line}), flush=True)

    registry = MlflowRegistry(
        f"sqlite:///{folder / 'mlflow.db'}", artifact_location=(folder / "artifacts" / "gate").as_uri()
    )
    actor = Actor(*whoami(), own_keyring(folder / "signing-key.pem"))
    run = run_gate(
        registry,
        f"models:/{MODEL}/2",
        load_policy(folder / policy),
        promoting=False,
        actor=actor,
        progress=tell,
    )
    told = {
        "verdict": str(run.verdict.outcome),
        "reason": verdict_line(run.verdict),
        "card": len(run.card),
        "findings": [
            {"check": f.check, "seconds": f.seconds, "status": str(f.status), "summary": f.summary,
             "effort": f.detail.get("effort"), "points": f.metrics.get("points")}
            for f in run.report.findings
        ],
    }  # fmt: skip
    print(json.dumps({"at": time.monotonic(), **told}), flush=True)


def pass_child(folder: Path, cache: Path, data: Path) -> None:
    """One plain forward pass of the candidate over all images, in this process on one thread."""
    import gtsrb
    import torch

    from promotion_gate.drill.train import normalised

    torch.set_num_threads(1)
    model = gtsrb.member(gtsrb.load(data), "clean-1", cache).model
    sets = []
    for name in ("training", "holdout"):
        with np.load(folder / f"{name}.npz") as archive:
            sets.append(archive["images"])
    with torch.no_grad():
        model(normalised(sets[0][:512]))
        clock, cpu = time.monotonic(), time.process_time()
        for images in sets:
            for start in range(0, len(images), 512):
                model(normalised(images[start : start + 512]))
    print(json.dumps({"wall": time.monotonic() - clock, "cpu": time.process_time() - cpu}))


@dataclass(frozen=True, slots=True)
class Gated:
    """One gate run as seen from outside."""

    started: float
    ended: float
    events: list[tuple[float, str]]
    told: dict[str, Any]
    tree: Tree

    @property
    def wall(self) -> float:
        return self.ended - self.started

    @property
    def cpu(self) -> float:
        return self.tree.cpu[-1]

    def of_check(self, name: str) -> dict[str, Any]:
        return next((f for f in self.told["findings"] if f["check"] == name), {})

    def cpu_of_check(self, name: str) -> float:
        """Processor time of all processes from the check's start to its end."""
        at = {line.partition(" in ")[0]: moment for moment, line in self.events}
        return self.tree.cpu_between(at[f"{name} started"], at[f"{name} done"])

    def stages(self) -> list[tuple[str, float, float]]:
        """Name, start and end of each stage."""
        borders = [("start", self.started)]
        for at, line in self.events:
            if (name := stage_of(line)) and name != borders[-1][0]:
                borders.append((name, at))
        ends = [at for _, at in borders[1:]] + [self.ended]
        return [(name, at, end) for (name, at), end in zip(borders, ends, strict=True)]


def stage_of(line: str) -> str:
    """The stage that a line of progress opens; empty for one that opens none."""
    if line.endswith(" started"):
        return "checks"
    for words, name in (
        ("resolve ", "resolve"),
        ("fetch the champion ", "fetch the champion"),
        ("fetch ", "fetch the candidate"),
        ("load the models", "load the models"),
        ("open the data", "open the data"),
        ("pass every image", "passes"),
        ("decide", "decide"),
        ("render", "render"),
        ("record", "record"),
    ):
        if line.startswith(words):
            return name
    return ""


def gate(folder: Path, policy: str) -> Gated:
    """A gate run in a process of its own, watched."""
    command = [sys.executable, __file__, "--gate", str(folder), policy]
    started = time.monotonic()
    with (folder / "gate.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        with watched(process) as tree:
            told = [json.loads(line) for line in process.stdout]
        code = process.wait()
    if code:
        raise RuntimeError(f"the gate ended with {code}: {(folder / 'gate.log').read_text()[-2000:]}")
    return Gated(started, time.monotonic(), [(e["at"], e["line"]) for e in told[:-1]], told[-1], tree)


def child(*arguments: object, environment: dict[str, str] | None = None) -> Any:
    """What this module prints last, as JSON, when it is run with other arguments."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def reference_pass(folder: Path, cache: Path, data: Path) -> Seconds:
    one_thread = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    return Seconds(**child("--pass", folder, cache, data, environment=one_thread))


def bench_gate(table: Table, data: Path, cache: Path, every: int, checks: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="gate-bench-") as name:
        folder = Path(name)
        table.section("Gate: images and models are prepared; the models are trained at the first run alone")
        images = child("--prepare", folder, data, cache, every)
        (folder / "gate.toml").write_text(policy_text(checks))
        (folder / "patch.toml").write_text(policy_text(["patch-transplant"]))
        before = reference_pass(folder, cache, data)
        whole = gate(folder, "gate.toml")
        after = reference_pass(folder, cache, data)
        alone = gate(folder, "patch.toml")
    passes = Seconds((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2)
    table.section(f"Gate on {images:,} images of {CLASSES} classes, {len(checks)} checks; {machine()}")
    report_gate(table, whole, passes)
    report_transplant(table, alone, passes, images)
    report_memory(table, whole)
    points = int(whole.of_check("embedding-map").get("points") or 0)
    megabytes = whole.told["card"] / 1e6
    table.section("Card")
    table.add(
        f"{CLASSES} classes, {points:,} points",
        f"{megabytes:.2f} MB",
        f"<= {CARD_MB:g} MB",
        megabytes <= CARD_MB if points == POINTS else None,
    )


def report_gate(table: Table, run: Gated, passes: Seconds) -> None:
    wall, cpu = passes.wall, passes.cpu
    limit = PASSES * wall + GATE_SECONDS
    table.add("one plain forward pass", f"{wall:.1f} s wall, {cpu:.1f} s CPU")
    table.add(
        f"gate, {run.told['verdict']}",
        f"{run.wall:.1f} s wall, {run.cpu:.1f} s CPU",
        f"<= {PASSES} passes + {GATE_SECONDS} s = {limit:.1f} s",
        run.wall <= limit,
    )
    table.add("  verdict", "", f"{run.told['reason']:.120}")
    table.add("gate / pass", f"{run.wall / wall:.2f} wall, {run.cpu / cpu:.2f} CPU")
    for name, start, end in run.stages():
        used = run.tree.cpu_between(start, end)
        table.add(f"  {name}", f"{end - start:.1f} s, {used:.1f} CPU-s, {used / cpu:.2f} passes")
    for finding in sorted(run.told["findings"], key=lambda f: -f["seconds"]):
        if finding["seconds"]:
            told = "" if finding["status"] == "MEASURED" else f"inconclusive: {finding['summary']:.80}"
            table.add(f"    {finding['check']}", f"{finding['seconds']:.1f} s beside the others", told)


def report_transplant(table: Table, alone: Gated, passes: Seconds, images: int) -> None:
    effort = alone.of_check("patch-transplant").get("effort")
    if effort is None:
        table.add("patch-transplant", "measured nothing")
        return
    used = alone.cpu_of_check("patch-transplant")
    forwards = effort["forwards"] + effort["champion_forwards"]
    table.add(
        "patch-transplant alone",
        f"{used:.1f} CPU-s, {used / passes.cpu:.2f} passes",
    )
    table.add("  images forwarded", f"{forwards:,}, {forwards / images:.2f} passes")


def report_memory(table: Table, run: Gated) -> None:
    table.section("Memory")
    for kind, peak in sorted(run.tree.peaks.items(), key=lambda item: -item[1]):
        aim = (f"<= {MEMORY_GB:g} GB", peak / 1e9 <= MEMORY_GB) if kind == "gate process" else ("", None)
        table.add(f"{kind}, most resident", f"{peak / 1e9:.2f} GB", *aim)
    together = max(run.tree.memory) / 1e9
    table.add(
        "all processes at one time", f"{together:.2f} GB", f"<= {MEMORY_GB:g} GB", together <= MEMORY_GB
    )


# Start-up.


def bench_start(table: Table, rounds: int) -> None:
    show_help = [*own_command(), "--help"]
    nothing = [sys.executable, "-c", "pass"]
    ours, empty = alternated([lambda _: show_help, lambda _: nothing], rounds)
    table.section(f"Start-up, medians of {rounds}; {machine()}")
    table.add(
        "promotion-gate --help",
        f"{ours.wall:.3f} s wall, {ours.cpu:.3f} s CPU",
        f"<= {HELP_SECONDS:g} s",
        ours.wall <= HELP_SECONDS,
    )
    table.add("--help / python -c pass", f"{(ours / empty).wall:.2f} wall")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a sixth of the images, fewer rounds")
    parser.add_argument("--only", choices=("start", "gate"), help="one part alone")
    parser.add_argument("--without", nargs="*", default=[], metavar="CHECK", help="leave checks out")
    parser.add_argument("--prepare", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--gate", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--pass", nargs=3, type=Path, dest="reference", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.prepare:
        folder, data, cache = map(Path, asked.prepare[:3])
        return prepare_child(folder, data, cache, int(asked.prepare[3]))
    if asked.gate:
        return gate_child(Path(asked.gate[0]), asked.gate[1])
    if asked.reference:
        return pass_child(*asked.reference)
    print(f"promotion-gate benchmark on {machine()}")
    table = Table()
    for name, part in _parts(table, asked):
        if asked.only in (None, name):
            try:
                part()
            except Exception as error:  # one broken part must not hide the others
                table.add(name, "failed")
                print(f"  {type(error).__name__}: {error}")
    return None


def _parts(table: Table, asked: argparse.Namespace) -> list[tuple[str, Callable[[], None]]]:
    from promotion_gate.checks.registry import installed_checks

    cache = Path(os.environ.get("GATE_BENCH_CACHE") or Path.home() / ".cache" / "promotion-gate-bench")
    data = Path(os.environ.get("GATE_TEST_DATA") or "nowhere")

    def gate_part() -> None:
        if not (data / "gtsrb32.npz").is_file():
            table.section("Gate: left out, GATE_TEST_DATA names no folder with gtsrb32.npz")
            return
        checks = [name for name in installed_checks() if name not in asked.without]
        bench_gate(table, data, cache, 6 if asked.quick else 1, checks)

    return [
        ("start", lambda: bench_start(table, 3 if asked.quick else 9)),
        ("gate", gate_part),
    ]


if __name__ == "__main__":
    main()
