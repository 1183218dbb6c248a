"""How fast the code scan reads Python: ``python tests/bench/scan.py [--lines N]``.

The files are those of the installed packages, in a fixed order. Processor time of one process, beside
that of ``ast.parse`` alone; the floor is 30,000 lines a second. Nothing here fails for being slow.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import time
import warnings
from pathlib import Path

from promotion_gate.provenance.scan.files import PYTHON, SourceFile
from promotion_gate.provenance.scan.run import scan_entries
from promotion_gate.provenance.scan.sources import load_sources

FLOOR = 30_000
# Packages that load data, and large ones that do not: the scan is slower on the first kind.
PACKAGES = ("mlflow", "torch", "sklearn", "pandas", "fsspec", "shap", "scipy", "numpy")


def corpus(lines: int) -> list[SourceFile]:
    """Python files of the installed packages, as many lines of each."""
    root = Path(sysconfig.get_paths()["purelib"])
    found = []
    for package in PACKAGES:
        left = lines // len(PACKAGES)
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            found.append(SourceFile(path.relative_to(root).as_posix(), PYTHON, content))
            left -= content.count(b"\n")
            if left <= 0:
                break
    return found


def seconds_to_parse(files: list[SourceFile]) -> float:
    """Processor seconds of ``ast.parse``."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            ast.parse(file.content)
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=400_000)
    files = corpus(parser.parse_args().lines)
    lines = sum(file.content.count(b"\n") for file in files)
    sources = load_sources()
    parsed = seconds_to_parse(files)
    start = time.process_time()
    entries = sum(len(scan_entries(file, sources)[0]) for file in files)
    scanned = time.process_time() - start
    print(f"{len(files):,} files, {lines:,} lines, {entries} entries")
    print(f"scan       {lines / scanned:10,.0f} lines/s (floor {FLOOR:,})")
    print(f"ast.parse  {lines / parsed:10,.0f} lines/s; the scan takes {scanned / parsed:.2f} times as long")


if __name__ == "__main__":
    main()
