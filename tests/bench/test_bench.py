import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from promotion_gate.checks.registry import chosen_checks, installed_checks
from promotion_gate.core.policy import parse_policy


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).with_name("bench.py")
    spec = importlib.util.spec_from_file_location("bench", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BUSY_CHILD = """
import subprocess, sys
held = bytearray(60 << 20)
end = "import time\\nwhile time.process_time() < 0.5: pass"
subprocess.run([sys.executable, "-c", end], check=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark reads Linux's /proc")
def test_time_and_memory_of_a_whole_process_tree_are_seen(bench):
    process = subprocess.Popen([sys.executable, "-c", BUSY_CHILD])
    with bench.watched(process, every=0.02) as tree:
        assert process.wait() == 0
    assert tree.cpu[-1] >= 0.4
    assert tree.peaks["gate process"] > 60 << 20
    assert max(tree.memory) > 60 << 20
    assert tree.peaks["other process"] < 60 << 20
    assert tree.cpu_between(tree.times[0], tree.times[-1]) == pytest.approx(tree.cpu[-1] - tree.cpu[0])


def test_policy_of_the_benchmark_is_one_the_gate_takes(bench):
    names = list(installed_checks())
    policy = parse_policy(bench.policy_text(names))
    assert {check.name for check in chosen_checks(policy)} == set(names)
    parse_policy(bench.policy_text(["patch-transplant"]))


def test_stages_follow_one_another_from_start_to_end(bench):
    lines = [
        "resolve models:/m/2", "fetch m/2", "fetch the champion m/1", "load the models in",
        "open the data", "pass every image through the models", "candidate on holdout: 5 of 9 images",
        "per-class started", "patch-transplant started", "per-class done in 1.0 s: fetch ",
        "patch-transplant done in 2.0 s: none", "decide", "render", "record",
    ]  # fmt: skip
    events = [(10.0 + at, line) for at, line in enumerate(lines)]
    tree = bench.Tree(times=[9.0, 30.0], cpu=[0.0, 21.0])
    run = bench.Gated(9.0, 30.0, events, {"findings": []}, tree)
    stages = run.stages()
    assert [name for name, *_ in stages] == [
        "start", "resolve", "fetch the candidate", "fetch the champion", "load the models", "open the data",
        "passes", "checks", "decide", "render", "record",
    ]  # fmt: skip
    assert stages[0][1:] == (9.0, 10.0)
    assert stages[7][1:] == (17.0, 21.0)
    assert stages[-1][1:] == (23.0, 30.0)
    assert [end for *_, end in stages[:-1]] == [start for _, start, _ in stages[1:]]
    assert run.cpu_of_check("patch-transplant") == pytest.approx(2.0)


def test_commands_are_alternated_and_a_failing_one_is_told(bench):
    seen = []

    def command(name):
        def make(number):
            seen.append((number, name))
            return [sys.executable, "-c", "pass"]

        return make

    first, second = bench.alternated([command("a"), command("b")], 2)
    assert seen == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert first.wall > 0 < second.wall
    assert bench.Seconds(3.0, 4.0) / bench.Seconds(2.0, 1.0) == bench.Seconds(1.5, 4.0)
    with pytest.raises(RuntimeError, match="no such thing"):
        bench.timed([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_without_images_it_says_so_and_still_ends_well(bench):
    environment = {k: v for k, v in os.environ.items() if k != "GATE_TEST_DATA"}
    done = subprocess.run(
        [sys.executable, bench.__file__, "--only", "gate"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "left out" in done.stdout
