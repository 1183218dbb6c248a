"""One pass over a data set: every image decoded and measured, on all cores, a few images at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import GateError, InputError, UsageError
from promotion_gate.core.places import expanded
from promotion_gate.core.policy import DataSource
from promotion_gate.data.files import is_url
from promotion_gate.data.interface import ImageDataset, Stored
from promotion_gate.data.open import open_dataset
from promotion_gate.validation.facts import COLUMNS, LOOKS, TEXTS, Facts, describe

Progress = Callable[[str], None]
Rows = NDArray[np.int64]

WORTH_WORKERS = 4_000
"""Rows from which workers earn the second that they take to start."""

_TOLD_EVERY = 5_000
_LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Everything that is known of a data set's images but the pixels themselves; one value a row.

    Attributes
    ----------
    facts: the arrays of :data:`~promotion_gate.validation.facts.COLUMNS`, and ``mode``, ``format`` and
        ``error`` as text.
    looks: whether those of :data:`~promotion_gate.validation.facts.LOOKS` are there as well.
    """

    dataset: ImageDataset = field(repr=False)
    facts: Facts = field(repr=False)
    looks: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def uri(self) -> str:
        return self.dataset.uri

    @property
    def ids(self) -> Sequence[str]:
        return self.dataset.ids

    @property
    def labels(self) -> Rows:
        return self.dataset.labels

    @property
    def class_names(self) -> Sequence[str]:
        return self.dataset.class_names

    def label(self, row: int) -> str:
        """The class name of a row."""
        return self.class_names[int(self.labels[row])]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which rows could be decoded, (rows,)."""
        return np.asarray(self.facts["error"] == "", dtype=np.bool_)

    def column(self, name: str) -> NDArray[Any]:
        return self.facts[name]


def keys_of(surveys: Sequence[Survey]) -> list[Rows]:
    """A number for every row of several surveys, the same for the same pixels; unreadable rows are alone."""
    digests = np.concatenate([one.facts["pixels_sha256"] for one in surveys])
    _, keys = np.unique(digests.view("V32").reshape(-1), return_inverse=True)
    unread = ~np.concatenate([one.readable for one in surveys])
    keys = keys.astype(np.int64)
    keys[unread] = len(keys) + np.arange(int(unread.sum()))
    return list(np.split(keys, np.cumsum([len(one) for one in surveys])[:-1]))


def open_data(source: DataSource, folder: Path = Path(), *, called: str = "") -> ImageDataset:
    """Open a data set for one of these commands: what cannot be opened is wrong usage, nobody waits for it.

    ``called`` is what reports and messages name it, instead of its path.

    Raises
    ------
    UsageError: the set is missing or cannot be made sense of.
    """
    if not is_url(source.path):
        place = folder / expanded(source.path)
        if place.exists() and not (place.is_file() or place.is_dir()):
            # A pipe would be waited for without end.
            raise UsageError(f"{place} is neither a folder nor a plain file", "is the path right?")
    try:
        return open_dataset(source, folder=folder, class_names=None, called=called)
    except InputError as error:
        remedy = error.remedy.replace("check the policy's data section", "is the path right?")
        raise UsageError(error.what, remedy) from None


def survey(
    dataset: ImageDataset, *, looks: bool = False, progress: Progress | None = None, jobs: int = 0
) -> Survey:
    """Decode and measure every image; one that cannot be decoded is a row with an ``error``.

    Parameters
    ----------
    looks: whether to measure also what :mod:`~promotion_gate.validation.suspicion` goes by.
    jobs: workers; 0 for one a core where there are rows enough.

    Raises
    ------
    UsageError: the set as a whole cannot be read on.
    """
    total = len(dataset)
    kinds = COLUMNS | LOOKS if looks else COLUMNS
    facts: Facts = {name: np.zeros((total, *shape), kind) for name, (kind, shape) in kinds.items()}
    facts |= {name: np.full(total, "", dtype=object) for name in TEXTS}
    tell = progress or (lambda _: None)
    jobs = jobs or (_cores() if total >= WORTH_WORKERS else 1)
    at, told = 0, 0
    try:
        for part in _described(dataset, looks, jobs):
            size = len(part["width"])
            for name, values in part.items():
                facts[name][at : at + size] = values
            at += size
            if at >= told + _TOLD_EVERY or at == total:
                tell(f"read {at:,} of {total:,} images of {dataset.uri}")
                told = at
    except GateError as error:
        raise UsageError(error.what, error.remedy) from None
    if at != total:
        raise UsageError(
            f"{dataset.uri} has {at:,} images where {total:,} were listed", "is it being written?"
        )
    facts["error"] = np.array([text[:_LONGEST_ERROR] for text in facts["error"]], dtype=object)
    return Survey(dataset, facts, looks)


def _described(dataset: ImageDataset, looks: bool, jobs: int) -> Iterator[Facts]:
    if jobs == 1:
        yield from (describe(*part, looks) for part in _named(dataset))
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    run = delayed(describe)
    parallel = Parallel(n_jobs=jobs, return_as="generator", pre_dispatch="2*n_jobs", batch_size=1)
    try:
        yield from parallel(run(*part, looks) for part in _named(dataset))
    except TerminatedWorkerError:
        raise InputError(
            f"a process that decoded images of {dataset.uri} was ended",
            "the machine ran out of memory, or an image made the decoder crash",
        ) from None


def _named(dataset: ImageDataset) -> Iterator[tuple[list[Stored], list[str]]]:
    """The rows as stored, with what messages call each."""
    at = 0
    for rows in dataset.stream_stored():
        yield rows, [f"{dataset.uri}: image {name!r:.300}" for name in dataset.ids[at : at + len(rows)]]
        at += len(rows)


def _cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
