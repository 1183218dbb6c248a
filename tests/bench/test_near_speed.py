"""Near duplicates among 100,000 hashes, beside comparing each with each."""

import time

import numpy as np
import pytest

from promotion_gate.detect.near import near_pairs

ROWS, BITS = 100_000, 5
TIMES_FASTER = 20


@pytest.mark.integration
def test_a_hundred_thousand_hashes_are_looked_up_not_compared():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, ROWS, dtype=np.uint64)
    planted = rng.choice(ROWS, 2000, replace=False).reshape(2, -1)
    flips = rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (1000, 1)), axis=1)[:, :BITS]
    hashes[planted[1]] = hashes[planted[0]] ^ np.bitwise_or.reduce(np.uint64(1) << flips, axis=1)
    start = time.process_time()
    found = {
        (a, b)
        for one, two in near_pairs(hashes, BITS)
        for a, b in zip(one.tolist(), two.tolist(), strict=True)
    }
    looked_up = time.process_time() - start
    rows = 500
    start = time.process_time()
    for row in range(rows):
        np.flatnonzero(np.bitwise_count(hashes ^ hashes[row]) <= BITS)
    each_with_each = (time.process_time() - start) / rows * ROWS / 2
    print(f"{ROWS:,} hashes: {looked_up:.2f} s; each with each {each_with_each:.1f} s")
    expected = {(min(pair), max(pair)) for pair in planted.T.tolist()}
    assert expected <= found
    assert each_with_each / looked_up > TIMES_FASTER
