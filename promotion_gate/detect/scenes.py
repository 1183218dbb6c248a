"""Rows of one scene: frames of one track, or copies of one picture, which are one piece of evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.windows import Images

SIDE = 8


def thumbnails(images: Images) -> NDArray[np.float32]:
    """Each image as ``SIDE`` x ``SIDE`` means, centred and of length one: float32 (n, SIDE * SIDE * C)."""
    _, height, width, channels = images.shape
    rows = np.linspace(0, height, min(SIDE, height) + 1).astype(int)[:-1]
    columns = np.linspace(0, width, min(SIDE, width) + 1).astype(int)[:-1]
    # Each strip on its own, since the whole set as float would be four times as large.
    small = [
        np.add.reduceat(np.add.reduceat(image.astype(np.float32), rows, axis=0), columns, axis=1).ravel()
        for image in images
    ]
    flat = np.stack(small) if small else np.zeros((0, len(rows) * len(columns) * channels), np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def rows_a_scene(marked: NDArray[np.float32], background: NDArray[np.float32], neighbours: int = 10) -> float:
    """How many of the marked rows make one piece of evidence: 1 where each shows a scene of its own.

    One more than the mean number of marked rows that a marked row finds among its nearest ``neighbours``,
    of marked rows and background together, and that find it among theirs (Kish's design effect, with
    neighbourhood for membership). Rows that were marked for another reason than their scene lie among the
    background. Both groups are centred first: a trigger that all marked rows carry must not make one scene
    of them.

    Parameters
    ----------
    marked, background: :func:`thumbnails`; the background from the same classes, without the marked rows.
    """
    count = len(marked)
    if count < 2:
        return 1.0
    centred = marked - marked.mean(axis=0)
    others = np.concatenate([centred, background - background.mean(axis=0)]) if len(background) else centred
    among = 2 * centred @ others.T - (others**2).sum(axis=1)
    among[np.arange(count), np.arange(count)] = -np.inf
    neighbours = min(neighbours, len(others) - 1)
    nearest = np.argpartition(-among, neighbours - 1, axis=1)[:, :neighbours]
    near = np.zeros((count, len(others)), dtype=bool)
    np.put_along_axis(near, nearest, True, axis=1)
    near = near[:, :count]
    return 1.0 + float((near & near.T).sum(axis=1).mean())
