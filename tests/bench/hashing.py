"""How hashing keeps up with sha256sum, run in parallel by xargs on the same files in the same minute.

``python tests/bench/hashing.py [FOLDER]`` prints, for many small and for few large files, the ratio of both
speeds: above 1, ours is faster. The floor is 0.95. Each figure is the best of several turns taken by turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from promotion_gate.provenance.hashing import hash_tree

FLOOR = 0.95
TURNS = 5
SHAPES = {"many small": (20_000, 4_000), "very many": (100_000, 4_000), "few large": (8, 200_000_000)}


def fill(folder: Path, files: int, size: int) -> None:
    """Files of random bytes, a thousand a folder."""
    block = os.urandom(min(size, 2**20))
    for number in range(files):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(exist_ok=True)
        with (place / f"{number:06d}.png").open("wb") as file:
            for start in range(0, size, len(block)):
                file.write(number.to_bytes(8, "big") + block[8 : size - start])


def ours(folder: Path) -> None:
    """The product's own way."""
    hash_tree(folder)


def theirs(folder: Path) -> None:
    """``sha256sum`` on all cores; large files one by one, so that no core is left with two."""
    few = sum(1 for _ in folder.rglob("*.png")) < 1000
    each = ["-n", "1"] if few else []
    find = subprocess.Popen(["find", folder, "-type", "f", "-print0"], stdout=subprocess.PIPE)
    command = ["xargs", "-0", f"-P{os.cpu_count()}", *each, "sha256sum"]
    subprocess.run(command, stdin=find.stdout, stdout=subprocess.DEVNULL, check=True)
    find.wait()


def best(turn) -> float:
    """Seconds of one call."""
    clock = time.perf_counter()
    turn()
    return time.perf_counter() - clock


def main() -> int:
    """Print the ratios; 1 if one is below the floor."""
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    low = False
    for name, (files, size) in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            fill(Path(folder), files, size)
            ours(Path(folder))
            seconds = [
                (best(lambda: ours(Path(folder))), best(lambda: theirs(Path(folder)))) for _ in range(TURNS)
            ]
        mine, other = min(s for s, _ in seconds), min(s for _, s in seconds)
        ratio = other / mine
        low |= ratio < FLOOR
        speed = files * size / mine / 2**20
        print(f"{name}: {ratio:.2f} of sha256sum ({mine:.2f} s against {other:.2f} s, {speed:,.0f} MiB/s)")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
