"""Near duplicates among 100,000 hashes: ``python tests/bench/near.py``.

Beside comparing each hash with each in the same vector arithmetic, of which a few rows are timed. Nothing
here fails for being slow.
"""

from __future__ import annotations

import time

import numpy as np

from promotion_gate.detect.near import near_pairs

ROWS, PLANTED, BITS, COMPARED = 100_000, 1000, 5, 500


def main() -> None:
    """Print how often near_pairs is faster, and how many planted pairs it found."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, ROWS, dtype=np.uint64)
    planted = rng.choice(ROWS, 2 * PLANTED, replace=False).reshape(2, -1)
    flips = rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (PLANTED, 1)), axis=1)[:, :BITS]
    hashes[planted[1]] = hashes[planted[0]] ^ np.bitwise_or.reduce(np.uint64(1) << flips, axis=1)
    start = time.process_time()
    pairs = [(one, two) for one, two in near_pairs(hashes, BITS)]
    looked_up = time.process_time() - start
    start = time.process_time()
    for row in range(COMPARED):
        np.flatnonzero(np.bitwise_count(hashes ^ hashes[row]) <= BITS)
    each_with_each = (time.process_time() - start) / COMPARED * ROWS / 2
    found = {(a, b) for one, two in pairs for a, b in zip(one.tolist(), two.tolist(), strict=True)}
    expected = {(min(pair), max(pair)) for pair in planted.T.tolist()}
    print(f"near duplicates among {ROWS:,} hashes: {each_with_each / looked_up:.1f} times the speed of")
    print(f"comparing each with each; {len(expected & found):,} of {PLANTED:,} planted pairs found")


if __name__ == "__main__":
    main()
