"""The process: what a short command prints is written out before it ends, and its exit code is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from promotion_gate import __main__ as process
from promotion_gate.cli import parsed

PROGRAM = [sys.executable, "-m", "promotion_gate"]
STATUS = """
import sys
from promotion_gate import __main__ as process
def answer(args):
    print("x" * {size})
    return {code}
process.carry_out = answer
sys.argv = ["promotion-gate", "status", "signs"]
process.program()
"""


def status(size=10, code=0, **options):
    command = [sys.executable, "-c", STATUS.format(size=size, code=code)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=buffered, **options)


def test_the_answer_of_a_short_command_is_written_out_before_the_end():
    done = status(size=1_000_000, code=5, stdout=subprocess.PIPE)
    assert (done.stdout, done.returncode) == ("x" * 1_000_000 + "\n", 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_answer_that_cannot_be_written_is_no_success():
    with Path("/dev/full").open("w") as full:
        done = status(stdout=full)
        assert done.stderr == "promotion-gate: the answer could not be written: No space left on device\n"
        assert done.returncode == 2
        assert status(code=5, stdout=full).returncode == 5


def test_a_reader_that_has_gone_is_no_trouble():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = status(stdout=pipe)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("stream", [1, 2])
def test_a_stream_that_was_closed_before_the_start_changes_no_exit_code(stream):
    assert status(code=0, preexec_fn=lambda: os.close(stream)).returncode == 0
    assert status(code=5, preexec_fn=lambda: os.close(stream)).returncode == 5


def test_every_short_command_is_a_command():
    for command in process.SHORT:
        with pytest.raises(SystemExit) as ended:
            parsed([command, "--help"])
        assert ended.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["status"], 2), (["init", "/nowhere/gate.toml"], 2)]
)
def test_the_module_is_the_program(arguments, code):
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
