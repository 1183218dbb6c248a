"""Images that look alike: a hash of every image's look, and all pairs of hashes that differ in a few bits.

The hash is the usual one of the discrete cosine transform (C. Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010): of a 32 x 32 grey image the 64 lowest frequencies but the mean, each
one bit, set where the coefficient is above the median of them all.

Pairs are found by multi-index hashing (M. Norouzi, A. Punjani, D. Fleet, "Fast search in Hamming space with
multi-index hashing", CVPR 2012): of ``bits + 1`` bands of a hash at least one is the same in both images of a
pair, so that only rows which share a band are ever compared.

A hash alone calls too much alike where images are small: a pair also has to agree in tone, see
:func:`same_tone`.

What defeats it: a crop, a mirrored or turned image, a picture within a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]
SIDE = 32
"""Height and width of the grey images that are hashed."""

TONE_SIDE = 8
_BITS = 64
_LARGEST = 24
_PAIRS = 2_000_000


def perceptual_hashes(grey: NDArray[np.uint8]) -> Hashes:
    """Hashes of grey images (n, 32, 32): uint64 (n,)."""
    basis, picked = _basis(), _zigzag()
    spectrum = basis @ grey.astype(np.float32) @ basis.T
    lowest = np.round(spectrum[:, picked[0], picked[1]], 2)
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8").astype(np.uint64).reshape(-1)


@cache
def _basis() -> NDArray[np.float32]:
    """The lowest cosines of the orthonormal type 2 transform, (11, 32)."""
    frequency, place = np.arange(11)[:, None], np.arange(SIDE)[None, :]
    waves = np.cos(np.pi * (2 * place + 1) * frequency / (2 * SIDE)) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves, dtype=np.float32)


@cache
def _zigzag() -> tuple[Rows, Rows]:
    """Row and column of the 64 lowest frequencies but the mean, diagonal by diagonal."""
    places = [(i, d - i) for d in range(1, 11) for i in range(d + 1)][:_BITS]
    rows, columns = np.array(places, dtype=np.int64).T
    return rows, columns


def hamming(first: Hashes, second: Hashes) -> NDArray[np.uint8]:
    """In how many bits hashes differ, per pair."""
    return np.asarray(np.bitwise_count(first ^ second), dtype=np.uint8)


def near_pairs(hashes: Hashes, bits: int) -> Iterator[tuple[Rows, Rows]]:
    """Every pair of rows whose hashes differ in at most ``bits`` bits, once, the lower row first.

    They come in portions, in no order. Memory grows with the rows, not with the pairs.

    Raises
    ------
    ValueError: more bits than 24, beyond which bands are too short to tell rows apart.
    """
    if not 0 <= bits <= _LARGEST:
        raise ValueError(f"near means at most {_LARGEST} bits, not {bits}")
    bands = _bands(bits + 1)
    for number, (shift, mask) in enumerate(bands):
        keys = (hashes >> shift) & mask
        order = np.argsort(keys, kind="stable")
        # In order of their keys, those that are compared lie side by side in memory.
        sorted_hashes = hashes[order]
        for one, other in _sharing(keys[order]):
            difference = sorted_hashes[one] ^ sorted_hashes[other]
            close = np.flatnonzero(np.bitwise_count(difference) <= bits)
            # A pair that agrees in several bands is told by the first of them.
            for earlier, within in bands[:number]:
                close = close[((difference[close] >> earlier) & within) != 0]
            if len(close):
                first, second = order[one[close]], order[other[close]]
                yield np.minimum(first, second), np.maximum(first, second)


def _bands(count: int) -> list[tuple[np.uint64, np.uint64]]:
    """Shift and mask of each band; together they cover all bits."""
    edges = np.linspace(0, _BITS, count + 1).round().astype(int).tolist()
    return [(np.uint64(low), np.uint64((1 << (high - low)) - 1)) for low, high in pairwise(edges)]


def _sharing(keys: Hashes) -> Iterator[tuple[Rows, Rows]]:
    """Every pair of places in a sorted array that hold the same key, in portions."""
    ends = np.searchsorted(keys, keys, side="right")
    places = np.flatnonzero(ends - np.arange(len(keys)) > 1)
    waiting: list[tuple[Rows, Rows]] = []
    held, step = 0, 1
    while len(places):
        waiting.append((places, places + step))
        held += len(places)
        if held >= _PAIRS:
            yield _joined(waiting)
            waiting, held = [], 0
        step += 1
        places = places[places + step < ends[places]]
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    return np.concatenate([one for one, _ in parts]), np.concatenate([other for _, other in parts])


def same_tone(first: NDArray[np.uint8], second: NDArray[np.uint8], grey_levels: float) -> NDArray[np.bool_]:
    """Whether two small grey pictures (n, k) look alike but for brightness and contrast, per pair.

    ``grey_levels`` is the largest root mean square difference, of pictures brought to a mean of 0 and to the
    contrast of the one that has more of it.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    spread = np.stack([one.std(axis=1), other.std(axis=1)])
    largest = np.maximum(spread.max(axis=0), 1e-3)
    one *= (largest / np.maximum(spread[0], 1e-3))[:, None]
    other *= (largest / np.maximum(spread[1], 1e-3))[:, None]
    return np.asarray(np.sqrt(((one - other) ** 2).mean(axis=1)) <= grey_levels)


class Groups:
    """Rows joined pair by pair into groups."""

    def __init__(self, rows: int) -> None:
        self._of = np.arange(rows, dtype=np.int64)

    def join(self, first: Rows, second: Rows) -> None:
        """Put each two rows into one group."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = len(self._of)
        edges = (np.ones(len(first), dtype=np.bool_), (self._of[first], self._of[second]))
        _, joined = connected_components(coo_array(edges, shape=(count, count)), directed=False)
        self._of = joined[self._of].astype(np.int64)

    @property
    def of_row(self) -> Rows:
        """The group of every row, (rows,); a row alone has one of its own."""
        return self._of
