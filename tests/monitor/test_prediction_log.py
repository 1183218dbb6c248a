"""Logging from serving code: what is written can be read, whatever happens to the process or its disk."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from promotion_gate import PredictionLog
from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.log_arrow import Wanted
from promotion_gate.monitor.log_reader import read_log

NAMES = ("Stop", "Yield")


def rows(folder, **wanted):
    """Every row of a log as (class, confidence, version)."""
    found = []
    for piece in read_log([str(folder)], Wanted(NAMES, **wanted)):
        p = piece.predictions
        found += zip([NAMES[i] for i in p.label], p.confidence.tolist(), p.version.tolist(), strict=True)
    return found


def test_what_is_logged_can_be_read(tmp_path):
    with PredictionLog(tmp_path, model="signs", version=7, class_names=NAMES) as log:
        log.add("Stop", 0.5, image="a.png", embedding=[1.0, 2.0])
        log.add(1, 0.25, embedding=np.array([3, 4]))
        log.add_batch(["Stop", "Yield"], [1.0, 0.0])
        log.add_batch(np.array([0, 1]), np.array([0.5, 0.5]), images=["b", "c"], embeddings=np.ones((2, 2)))
        log.add_batch([])
    assert rows(tmp_path) == [
        ("Stop", 0.5, 7),
        ("Yield", 0.25, 7),
        ("Stop", 1.0, 7),
        ("Yield", 0.0, 7),
        ("Stop", 0.5, 7),
        ("Yield", 0.5, 7),
    ]
    assert log.drops.total == 0
    assert log.written == 6
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".parquet"
    (piece,) = read_log([str(tmp_path)], Wanted(NAMES, image=True, width=2))
    assert list(piece.predictions.image) == ["a.png", "", "", "", "b", "c"]
    assert piece.predictions.embedding[:2].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(piece.predictions.embedding[2]).all()


def test_tensors_are_logged_whatever_their_kind(tmp_path):
    torch = pytest.importorskip("torch")
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]], requires_grad=True)
    probability, label = logits.softmax(1).max(1)
    with PredictionLog(tmp_path, model="m", class_names=NAMES) as log:
        log.add_batch(label, probability, embeddings=logits.to(torch.bfloat16))
        log.add(label[0], probability[0], embedding=logits[0])
    assert log.drops.total == 0
    assert [name for name, *_ in rows(tmp_path)] == ["Stop", "Yield", "Stop"]


def test_indices_without_names_are_logged_as_they_are(tmp_path):
    with PredictionLog(tmp_path, model="m") as log:
        log.add_batch([1, 0, 9])
    (piece,) = read_log([str(tmp_path)], Wanted(NAMES))
    assert piece.predictions.label.tolist() == [1, 0, -1]
    assert list(piece.unseen) == ["#9"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda log: log.add(None),
        lambda log: log.add(True),
        lambda log: log.add(""),
        lambda log: log.add("x" * 300),
        lambda log: log.add("a\ud800"),
        lambda log: log.add(-1),
        lambda log: log.add(2),
        lambda log: log.add("Stop", "high"),
        lambda log: log.add("Stop", float("nan")),
        lambda log: log.add("Stop", 1.5),
        lambda log: log.add("Stop", image=object()),
        lambda log: log.add("Stop", image="x" * 10_000),
        lambda log: log.add("Stop", embedding="vector"),
        lambda log: log.add("Stop", embedding=np.ones((2, 2))),
        lambda log: log.add("Stop", at="yesterday"),
        lambda log: log.add("Stop", at=float("nan")),
        lambda log: log.add_batch("Stop"),
        lambda log: log.add_batch(7),
        lambda log: log.add_batch(["Stop"], [0.5, 0.5]),
    ],
)
def test_what_is_no_prediction_is_counted_and_told_once(tmp_path, caplog, wrong):
    with caplog.at_level(logging.WARNING), PredictionLog(tmp_path, model="m", class_names=NAMES) as log:
        wrong(log)
        wrong(log)
        log.add("Yield", 0.5)
    assert log.drops.invalid == 2
    assert rows(tmp_path) == [("Yield", 0.5, 0)]
    assert len(caplog.records) == 1


def test_a_queue_that_is_full_drops_and_never_waits(tmp_path, monkeypatch):
    from promotion_gate.monitor import log_writer

    gate = threading.Event()
    monkeypatch.setattr(log_writer.Journal, "append", lambda self, batch: gate.wait(20))
    log = PredictionLog(tmp_path, model="m", max_pending=100)
    log.add("Stop")
    assert not log.flush(timeout=0.2)  # the writer has taken it, and hangs
    for _ in range(250):
        log.add("Stop")
    log.add_batch(["Stop"] * 50)
    assert log.drops.full == 200
    gate.set()
    log.close()
    log.add("Stop")
    assert log.drops.full == 201


def test_embeddings_that_wait_are_bounded_too(tmp_path, monkeypatch):
    from promotion_gate.monitor import prediction_log

    monkeypatch.setattr(prediction_log, "_EMBEDDING_BYTES", 1000)
    log = PredictionLog(tmp_path, model="m", class_names=NAMES)
    monkeypatch.setattr(log, "_rouse", lambda: None)
    for _ in range(10):
        log.add("Stop", embedding=np.ones(100, dtype=np.float32))
    assert (len(log._queue.waiting), log.drops.full) == (2, 8)


def test_long_texts_never_wait(tmp_path):
    with PredictionLog(tmp_path, model="signs", version=1) as log:
        log.add("Stop", image="x" * 3000)
        log.add("x" * 300)
        log.add_batch(["Stop", "Stop"], images=["a.png", "x" * 3000])
        assert not log._queue.waiting
        assert log.drops.invalid == 4


def test_a_full_disk_is_counted_and_what_was_written_stays(tmp_path, monkeypatch):
    log = PredictionLog(tmp_path, model="m")
    log.add("Stop", 0.5)
    assert log.flush()
    real, calls = os.write, []

    def half(descriptor, content):
        calls.append(1)
        if len(calls) == 1:
            return real(descriptor, bytes(content)[:40])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        log.add("Yield", 0.5)
        assert log.flush()
    assert log.drops.failed == 1
    log.add("Stop", 0.25)
    log.close()
    assert [sure for _, sure, _ in rows(tmp_path)] == [0.5, 0.25]


def test_a_deleted_folder_is_made_again(tmp_path):
    log = PredictionLog(tmp_path / "logs", model="m")
    log.add("Stop")
    assert log.flush()
    shutil.rmtree(tmp_path / "logs")
    log.add("Yield")
    log.close()
    assert [name for name, *_ in rows(tmp_path / "logs")] == ["Yield"]


def test_a_journal_becomes_parquet_when_it_is_full(tmp_path):
    log = PredictionLog(tmp_path, model="m", rotate_rows=10)
    for _ in range(3):
        log.add_batch(["Stop"] * 10)
        assert log.flush()
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    log.close()
    assert len(rows(tmp_path)) == 30


def test_names_make_no_paths(tmp_path):
    with PredictionLog(tmp_path / "logs", model="../../etc/\n pass wd") as log:
        log.add("Stop")
    assert [p.parent for p in tmp_path.rglob("*.parquet")] == [tmp_path / "logs"]


@pytest.mark.parametrize(
    "wrong", [{"version": -1}, {"version": "7"}, {"max_pending": 0}, {"rotate_seconds": 0}]
)
def test_wrong_settings_are_said_when_the_log_is_made(tmp_path, wrong):
    with pytest.raises(UsageError):
        PredictionLog(tmp_path, model="m", **wrong)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        PredictionLog(tmp_path / "file" / "logs", model="m")


def script(tmp_path, body, **options):
    code = f"from promotion_gate import PredictionLog\nimport os, time, sys\nfolder = {str(tmp_path)!r}\n"
    return subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(body)], stdout=subprocess.PIPE, **options
    )


def test_kill_9_loses_nothing_that_was_flushed_and_the_next_process_takes_it_over(tmp_path):
    process = script(
        tmp_path,
        """
        log = PredictionLog(folder, model="m", version=3)
        log.add_batch(["Stop"] * 500)
        log.flush()
        print("flushed", flush=True)
        time.sleep(60)
        """,
    )
    assert process.stdout.readline() == b"flushed\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (journal,) = tmp_path.glob("*.arrows")
    assert len(rows(tmp_path)) == 500
    with journal.open("ab") as file:
        file.write(b"\xff\xff\xff\xff\x10\x00\x00\x00torn")  # what a write that was cut off leaves
    assert len(rows(tmp_path)) == 500
    log = PredictionLog(tmp_path, model="m", version=3)
    log.add("Yield")
    log.close()
    assert not list(tmp_path.glob("*.arrows"))
    assert len(rows(tmp_path)) == 501


def test_a_program_that_forgets_to_close_loses_nothing(tmp_path):
    process = script(tmp_path, "log = PredictionLog(folder, model='m')\nlog.add('Stop')\n")
    process.communicate()
    assert process.returncode == 0
    assert len(rows(tmp_path)) == 1


def test_both_halves_of_a_fork_log(tmp_path):
    process = script(
        tmp_path,
        """
        log = PredictionLog(folder, model="m")
        log.add("Stop")
        log.flush()
        log.add("Stop")
        child = os.fork()
        log.add("Yield" if child == 0 else "Stop")
        log.flush()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        log.close()
        """,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    process.communicate()
    assert process.returncode == 0
    found = sorted(name for name, *_ in rows(tmp_path))
    assert found == ["Stop"] * 3 + ["Yield"]


def test_several_processes_write_side_by_side(tmp_path):
    body = """
    with PredictionLog(folder, model="m", rotate_rows=200) as log:
        for _ in range(5):
            log.add_batch(["Stop"] * 100)
            log.flush()
    """
    processes = [script(tmp_path, body) for _ in range(2)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(rows(tmp_path)) == 1000


def test_the_examples_of_its_documentation_run(tmp_path, monkeypatch):
    import promotion_gate.monitor.prediction_log as module

    monkeypatch.chdir(tmp_path)
    blocks = module.__doc__.split("::\n")
    example = textwrap.dedent(blocks[1].split("In a torch loop")[0])
    space = {"vector": np.ones(3)}
    exec(example, space)
    assert space["log"].written == 1
    assert len(list(Path("logs").glob("*.parquet"))) == 1


def test_the_fastapi_example_runs(tmp_path, monkeypatch):
    fastapi = pytest.importorskip("fastapi")
    import asyncio

    import promotion_gate.monitor.prediction_log as module

    monkeypatch.chdir(tmp_path)
    text = module.__doc__.split("In FastAPI::\n")[1]
    space = {
        "FastAPI": fastapi.FastAPI,
        "Request": fastapi.Request,
        "PredictionLog": PredictionLog,
        "classify": lambda body: ("Stop", 0.5),
    }
    exec(textwrap.dedent(text), space)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"image", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [],
        "client": ("test", 1),
        "server": ("test", 80),
    }
    asyncio.run(space["app"](scope, receive, send))
    assert sent[0]["status"] == 200
    space["log"].close()
    assert rows(tmp_path / "logs") == [("Stop", 0.5, 7)]


def test_old_parquet_is_never_half_there(tmp_path, monkeypatch):
    """A compaction that fails leaves the journal, which is read."""
    from promotion_gate.monitor import log_format

    log = PredictionLog(tmp_path, model="m")
    log.add("Stop")
    monkeypatch.setattr(
        pq.ParquetWriter, "write_table", lambda *a: (_ for _ in ()).throw(OSError(28, "full"))
    )
    log.close()
    assert [p.suffix for p in tmp_path.iterdir()] == [log_format.JOURNAL]
    assert len(rows(tmp_path)) == 1


def test_what_strangers_put_into_the_folder_is_not_taken_over(tmp_path, monkeypatch):
    with PredictionLog(tmp_path / "theirs", model="signs", version=1) as log:
        log.add("Stop")
        assert log.flush()
        (journal,) = (tmp_path / "theirs").glob("*.arrows")
        shutil.copy(journal, tmp_path / "signs-orphan.arrows")
    os.mkfifo(tmp_path / "signs-pipe.arrows")
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with PredictionLog(tmp_path, model="signs", version=1) as log:
        log.add("Stop")
        assert log.flush()
    assert log.written == 1
    assert (tmp_path / "signs-orphan.arrows").exists()
    monkeypatch.undo()
    with PredictionLog(tmp_path, model="signs", version=1) as log:
        log.add("Stop")
        assert log.flush()
    assert not (tmp_path / "signs-orphan.arrows").exists()


def test_a_forgotten_log_ends_its_thread(tmp_path):
    log = PredictionLog(tmp_path, model="m")
    log.add("Stop")
    writer = log._writer
    del log
    deadline = time.monotonic() + 20
    while writer.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not writer.is_alive()
    assert len(rows(tmp_path)) == 1
