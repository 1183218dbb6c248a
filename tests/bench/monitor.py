"""What monitoring costs: microseconds a logged prediction, predictions a second, and memory.

    python tests/bench/monitor.py [--rows 10000000] [--memory-rows 100000000] [--rates MONTHS]

Logging is timed at the caller. The monitor is timed on one core against reading the same Parquet columns alone.
Memory is that of a process of its own which watches ``--memory-rows`` synthetic predictions, written once and
read again and again. ``--rates`` simulates false alarms and delays; see ``monitor_rates.py``.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promotion_gate import PredictionLog
from promotion_gate.core.types import ModelRef
from promotion_gate.monitor.baseline import CONFIDENCE_EDGES
from promotion_gate.monitor.interface import Baseline
from promotion_gate.monitor.log_arrow import Wanted
from promotion_gate.monitor.log_reader import read_log
from promotion_gate.monitor.tracker import Tracker

BEGIN = 1_700_000_000.0 // 3600 * 3600
FILE_ROWS = 1_000_000


def baseline(classes: int, shares: np.ndarray) -> Baseline:
    """A baseline of a million predictions with these shares."""
    counts = np.maximum((shares * 1e6).astype(int), 1)
    bins = len(CONFIDENCE_EDGES) - 1
    names = tuple(f"class {n}" for n in range(classes))
    return Baseline(
        ref=ModelRef("bench", 1),
        digest="0" * 64,
        class_names=names,
        source="holdout",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        counts=(tuple(counts.tolist()),),
        confidence_edges=CONFIDENCE_EDGES,
        confidence=tuple(tuple([int(c) // bins + 1] * bins) for c in counts),
    )


def write(folder: Path, rows: int, shares: np.ndarray, a_second: float) -> list[str]:
    """Synthetic logs as PredictionLog compacts them, a million rows a file."""
    rng = np.random.default_rng(0)
    names = pa.array([f"class {n}" for n in range(len(shares))])
    edges = np.asarray(CONFIDENCE_EDGES)
    files = []
    for number in range(rows // FILE_ROWS):
        label = rng.choice(len(shares), FILE_ROWS, p=shares).astype(np.int32)
        at = BEGIN + (number * FILE_ROWS + np.arange(FILE_ROWS)) / a_second
        place = rng.integers(0, len(edges) - 1, FILE_ROWS)
        sure = edges[place] + rng.random(FILE_ROWS) * (edges[place + 1] - edges[place])
        table = pa.table(
            {
                "time": pa.array((at * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC")),
                "class": pa.DictionaryArray.from_arrays(label, names).cast(pa.string()),
                "confidence": sure.astype(np.float32),
                "version": np.full(FILE_ROWS, 1, dtype=np.int32),
            }
        )
        path = folder / f"bench-{number:04d}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=131_072)
        files.append(str(path))
    return files


def paced(log: PredictionLog, a_second: int = 2000, seconds: float = 4.0) -> tuple[float, float]:
    """Median and 99th percentile of microseconds at the caller, at a server's pace."""
    taken = []
    for _ in range(int(a_second * seconds)):
        clock = time.perf_counter()
        log.add("Stop", 0.97)
        taken.append(time.perf_counter() - clock)
        time.sleep(1 / a_second)
    return float(np.median(taken) * 1e6), float(np.quantile(taken, 0.99) * 1e6)


def logging_cost(calls: int = 100_000) -> tuple[float, ...]:
    """Microseconds at the caller without a pause: a prediction, one with embedding and image, one of a batch of
    64; then at a server's pace, median and 99th percentile.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLog(folder, model="bench", version=1, max_pending=10**7)
        log.add("Stop", 0.5)
        vector = np.ones(512, dtype=np.float32)
        labels, sure = np.zeros(64, dtype=np.int64), np.full(64, 0.5)
        kinds = (
            (calls, 1, lambda: log.add("Stop", 0.97)),
            (calls // 10, 1, lambda: log.add("Stop", 0.97, image="s3://frames/1.jpg", embedding=vector)),
            (calls // 64, 64, lambda: log.add_batch(labels, sure)),
        )
        costs = []
        for count, rows, call in kinds:
            log.flush(60)
            clock = time.perf_counter()
            for _ in range(count):
                call()
            costs.append((time.perf_counter() - clock) / count / rows * 1e6)
        log.flush(60)
        costs += paced(log)
        dropped = log.drops.total
        log.close()
    assert dropped == 0, dropped
    return tuple(costs)


def read_alone(files: list[str]) -> float:
    """Seconds of the processor to read the columns that the monitor needs."""
    clock = time.process_time()
    for file in files:
        parquet = pq.ParquetFile(file, read_dictionary=["class"])
        columns = ["time", "class", "confidence", "version"]
        for batch in parquet.iter_batches(batch_size=65_536, columns=columns, use_threads=False):
            for column in batch.columns:
                (column.indices if pa.types.is_dictionary(column.type) else column).to_numpy(
                    zero_copy_only=False
                )
    return time.process_time() - clock


def monitored(files: list[str], tracker: Tracker) -> float:
    """Seconds of the processor to hold the logs against the baseline."""
    clock = time.process_time()
    for piece in read_log(files, Wanted(tuple(tracker.baseline.class_names), image=True)):
        for _ in tracker.feed(piece):
            pass
    return time.process_time() - clock


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(files: list[str], rows: int, classes: int, shares: np.ndarray) -> None:
    """Watch the files again and again until so many rows were seen; print the peak along the way."""
    tracker = Tracker(baseline(classes, shares), "production", 3600.0)
    seen, told = 0, rows // 10
    while seen < rows:
        monitored(files, tracker)
        seen += len(files) * FILE_ROWS
        if seen >= told:
            print(f"  {seen:>12,} predictions: peak {peak_mib():,.0f} MiB", flush=True)
            told += rows // 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--memory-rows", type=int, default=100_000_000)
    parser.add_argument("--classes", type=int, default=43)
    parser.add_argument("--rates", type=int, default=0, metavar="MONTHS")
    parser.add_argument("--watch-only", nargs="+", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    shares = np.geomspace(1, 1e-3, args.classes)
    shares /= shares.sum()
    if args.watch_only:
        memory(args.watch_only, args.memory_rows, args.classes, shares)
        return
    one, rich, batched, median, late = logging_cost()
    print(
        f"logging: {one:.1f} µs a prediction, {rich:.1f} µs with embedding and image,"
        f" {batched:.2f} µs in a batch of 64, all without a pause; at 2,000 a second {median:.1f} µs,"
        f" 99th percentile {late:.1f} µs (20 µs allowed)"
    )
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), args.rows, shares, a_second=1000.0)
        reading, watching = [], []
        for _ in range(3):
            reading.append(read_alone(files))
            watching.append(monitored(files, Tracker(baseline(args.classes, shares), "production", 3600.0)))
        read, watched = min(reading), min(watching)
        rate = args.rows / watched
        print(
            f"monitor: {args.rows:,} predictions of {args.classes} classes in {watched:.2f} s,"
            f" {rate / 1e6:.1f} million a second (1 asked for); reading alone {read:.2f} s,"
            f" ratio {watched / read:.2f} (3 allowed)"
        )
        if args.memory_rows:
            print("memory:")
            call = [sys.executable, __file__, "--memory-rows", str(args.memory_rows)]
            call += ["--classes", str(args.classes), "--watch-only", *files[:10]]
            subprocess.run(call, check=True)
    if args.rates:
        from monitor_rates import report

        report(args.rates)


if __name__ == "__main__":
    main()
