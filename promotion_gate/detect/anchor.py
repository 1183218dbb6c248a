"""The holdout anchor: how far a training row lies from trusted images that carry the same label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096


def unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length one; a zero row stays zero."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(norms, 1e-12), dtype=np.float32)


def holdout_anchor(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    holdout_embeddings: NDArray[np.float32],
    holdout_labels: NDArray[np.int64],
    neighbour: int = 3,
) -> NDArray[np.float32]:
    """One minus the cosine to the ``neighbour``-th nearest trusted embedding of the same label.

    A poisoned row keeps much of its true class in its embedding and so lies far from clean images of the
    label it was given. The idea of judging rows against a trusted set of the same label is that of
    CCA-UD (Guo et al. 2024) and of kNN label disagreement (Bahri et al. 2020); the cosine and the third
    neighbour were found on traffic signs to rank sticker carriers better than spectral signatures.

    What defeats it: a poisoned holdout, and an attack that trains the carriers' embeddings into the
    target class (adaptive blending, Qi et al. 2023).

    Parameters
    ----------
    embeddings: float32 (rows, width); may be a memory map, read in chunks.
    labels: int64 (rows,).
    holdout_embeddings, holdout_labels: the trusted images, the same layer.

    Returns
    -------
    float32 (rows,), 0 to 2; 2 for a label of which there is no trusted image.
    """
    distances = np.full(len(labels), 2.0, dtype=np.float32)
    trusted = unit(holdout_embeddings)
    for label in np.unique(labels):
        same = trusted[holdout_labels == label]
        if not len(same):
            continue
        nth = min(neighbour, len(same))
        members = np.flatnonzero(labels == label)
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            cosines = unit(np.asarray(embeddings[rows])) @ same.T
            distances[rows] = 1 - np.partition(cosines, -nth, axis=1)[:, -nth]
    return distances


def leave_one_out_anchor(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], neighbour: int = 3
) -> NDArray[np.float32]:
    """:func:`holdout_anchor` of every trusted image against the other trusted images of its label."""
    distances = np.full(len(labels), 2.0, dtype=np.float32)
    trusted = unit(embeddings)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        nth = min(neighbour, len(members) - 1)
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            cosines = trusted[rows] @ trusted[members].T
            cosines[np.arange(len(rows)), np.arange(start, start + len(rows))] = -np.inf
            distances[rows] = 1 - np.partition(cosines, -nth, axis=1)[:, -nth]
    return distances


def class_similarities(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    holdout_embeddings: NDArray[np.float32],
    holdout_labels: NDArray[np.int64],
    neighbour: int = 3,
    *,
    others: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine to the third nearest trusted embedding: of the own label, and of the nearest other label.

    Returns two float32 arrays (rows,); -1 where there is no trusted image, and in all of the second where
    ``others`` are not asked for.
    """
    own = np.full(len(labels), -1.0, dtype=np.float32)
    other = np.full(len(labels), -1.0, dtype=np.float32)
    trusted = unit(holdout_embeddings)
    members = {int(label): trusted[holdout_labels == label] for label in np.unique(holdout_labels)}
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        chunk, of = unit(np.asarray(embeddings[rows])), labels[rows]
        for label, same in members.items():
            mine = of == label
            nth = min(neighbour, len(same))
            if not others:
                if mine.any():
                    own[rows][mine] = np.partition(chunk[mine] @ same.T, -nth, axis=1)[:, -nth]
                continue
            cosines = np.partition(chunk @ same.T, -nth, axis=1)[:, -nth]
            own[rows][mine] = cosines[mine]
            other[rows] = np.where(mine, other[rows], np.maximum(other[rows], cosines))
    return own, other
