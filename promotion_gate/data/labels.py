"""From the labels a file holds to class indices, in the order of the model's outputs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError

MAX_CLASSES = 100_000

Indexed = tuple[NDArray[np.int64], tuple[str, ...]]
"""Class index of every row, and the class names in order of index."""

NameRow = Callable[[int], str]
"""What to call a row in a message."""


def index_texts(
    labels: Sequence[str], row: NameRow, class_names: Sequence[str] | None, *, numbers: bool = True
) -> Indexed:
    """Index labels that are text.

    Labels that are all whole numbers, and not class names themselves, are indices where ``numbers``
    allows it. Otherwise without ``class_names`` the labels found are the classes, in byte order.

    Raises
    ------
    InputError: a label is not among ``class_names``; names row and label.
    """
    found = sorted(set(labels), key=os.fsencode)
    known = set(class_names or ())
    if numbers and not known.issuperset(found) and all(re.fullmatch(r"[0-9]{1,9}", text) for text in found):
        return index_numbers(np.array([int(text) for text in labels], dtype=np.int64), row, class_names)
    names = tuple(found if class_names is None else class_names)
    _require_distinct(names)
    return _look_up(labels, names, row), names


def index_numbers(
    labels: NDArray[np.int64],
    row: NameRow,
    class_names: Sequence[str] | None,
    own_names: Sequence[str] | None = None,
) -> Indexed:
    """Index labels that are whole numbers.

    ``own_names`` are the names the file itself gives its numbers: they are then matched to
    ``class_names`` by name. Without them the numbers are indices into ``class_names``; without either,
    the classes are called ``0``, ``1``, ….

    Raises
    ------
    InputError: a negative label, or one without a name.
    """
    names = tuple(own_names or class_names or ())
    _require_distinct(names)
    _require_range(labels, row, len(names))
    if not names:
        names = tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))
    if own_names and class_names is not None:
        _require_distinct(class_names)
        used = np.unique(labels)
        first = {int(i): int((labels == i).argmax()) for i in used if names[i] not in class_names}
        for index, at in first.items():
            raise _unknown(names[index], row(at), class_names)
        position = {name: i for i, name in enumerate(class_names)}
        table = np.array([position.get(name, -1) for name in names], dtype=np.int64)
        return table[labels], tuple(class_names)
    return labels.astype(np.int64), names


def _require_range(labels: NDArray[np.int64], row: NameRow, classes: int) -> None:
    if (labels < 0).any():
        at = int((labels < 0).argmax())
        raise InputError(f"{row(at)} has the negative label {labels[at]}", "every image needs a class")
    limit = classes or MAX_CLASSES
    if (labels >= limit).any():
        at = int((labels >= limit).argmax())
        raise InputError(f"{row(at)} has the label {labels[at]}, but there are {limit:,} classes")


def _look_up(labels: Iterable[str], names: Sequence[str], row: NameRow) -> NDArray[np.int64]:
    position = {name: i for i, name in enumerate(names)}
    indices = [position.get(label, -1) for label in labels]
    if -1 in indices:
        at = indices.index(-1)
        raise _unknown(list(labels)[at], row(at), names)
    return np.array(indices, dtype=np.int64)


def _unknown(label: str, where: str, names: Sequence[str]) -> InputError:
    some = ", ".join(f"{name!r:.40}" for name in names[:4]) + (", …" if len(names) > 4 else "")
    return InputError(f"{where} has the unknown label {label!r:.80}", f"the {len(names)} classes are {some}")


def _require_distinct(names: Sequence[str]) -> None:
    if len(names) > MAX_CLASSES:
        raise InputError(f"{len(names):,} classes are more than the {MAX_CLASSES:,} that can be told apart")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"the class name {name!r:.80} is given twice", "class names must differ")
        seen.add(name)
