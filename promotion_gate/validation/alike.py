"""Images that come twice: exact and near duplicates, under several labels, and in the holdout as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.near import Groups, near_pairs, same_tone
from promotion_gate.validation.expectations import Duplicates, Leakage, Likeness
from promotion_gate.validation.judged import ROWS_TOLD, Beside, Judged, Offender, share_of
from promotion_gate.validation.survey import Rows, Survey, keys_of


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """Which rows of a data set show the same, or nearly the same, as another row of it or of the holdout.

    Each array has a value for every row of the data set: the row that it goes with, or -1.

    Attributes
    ----------
    keys: the same number for the same pixels.
    copy_of: an earlier row with the same pixels; ``near_of`` one that only looks the same.
    other_label: a row with the same pixels and another label; ``near_other_label`` one that looks the same.
    leaked, near_leaked: the row of the holdout with the same pixels, or that looks the same.
    same_bytes: copies that are equal byte for byte.
    """

    keys: Rows = field(repr=False)
    copy_of: Rows = field(repr=False)
    near_of: Rows = field(repr=False)
    other_label: Rows = field(repr=False)
    near_other_label: Rows = field(repr=False)
    leaked: Rows = field(repr=False)
    near_leaked: Rows = field(repr=False)
    same_bytes: int = 0


def find_alike(data: Survey, holdout: Survey | None, likeness: Likeness, near: bool = True) -> Alike:
    """Compare every image with every other; ``near`` may be left out, exact copies never are.

    Of images with the same pixels one stands for all where near ones are sought.
    """
    surveys = [data] if holdout is None else [data, holdout]
    keys = keys_of(surveys)
    copy_of = _earlier(keys[0])
    other = _other_label(data, keys[0])
    leaked = _row_in(keys[0], keys[1]) if holdout is not None else _none(data)
    near_of, near_other, near_leaked = _none(data), _none(data), _none(data)
    if near:
        _near(surveys, keys, likeness, near_of, near_other, leaked, near_leaked)
    copies = np.flatnonzero(copy_of >= 0)
    digests = data.column("sha256")
    same_bytes = int((digests[copies] == digests[copy_of[copies]]).all(axis=1).sum())
    return Alike(keys[0], copy_of, near_of, other, near_other, leaked, near_leaked, same_bytes)


def _none(survey: Survey) -> Rows:
    return np.full(len(survey), -1, dtype=np.int64)


def _earlier(keys: Rows) -> Rows:
    """The first row with each row's key, or -1 for that one itself."""
    _, first, back = np.unique(keys, return_index=True, return_inverse=True)
    of = first[back]
    return np.where(of == np.arange(len(keys)), -1, of).astype(np.int64)


def _row_in(keys: Rows, others: Rows) -> Rows:
    """The first of the other rows with the same key, or -1."""
    values, first = np.unique(others, return_index=True)
    place = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    return np.where(values[place] == keys, first[place], -1).astype(np.int64)


def _other_label(data: Survey, keys: Rows) -> Rows:
    """A row with the same key and another label, or -1."""
    order = np.lexsort((data.labels, keys))
    sorted_keys, labels = keys[order], data.labels[order]
    first = np.searchsorted(sorted_keys, sorted_keys, side="left")
    last = np.searchsorted(sorted_keys, sorted_keys, side="right") - 1
    # Within a key labels ascend: an end of the run has another label, or none of the run has.
    partner = np.where(labels[first] != labels, first, np.where(labels[last] != labels, last, -1))
    found = _none(data)
    found[order] = np.where(partner >= 0, order[partner], -1)
    return found


def _near(
    surveys: list[Survey],
    keys: list[Rows],
    likeness: Likeness,
    near_of: Rows,
    other: Rows,
    leaked: Rows,
    near_leaked: Rows,
) -> None:
    """Fill in the rows that look alike, pair by pair; ``leaked`` is known and read."""
    data = surveys[0]
    count = len(data)
    _, first = np.unique(np.concatenate(keys), return_index=True)
    readable = np.concatenate([one.readable for one in surveys])
    rows = np.sort(first[readable[first]])
    hashes = np.concatenate([one.column("phash") for one in surveys])[rows]
    tones = np.concatenate([one.column("tone") for one in surveys])[rows]
    groups = Groups(len(rows))
    for one, two in near_pairs(hashes, likeness.near_bits):
        close = _toned(tones, one, two, likeness.near_grey_levels)
        # Rows are sorted, so that of a pair the data's own row comes before the holdout's.
        low, high = rows[one[close]], rows[two[close]]
        within = high < count
        groups.join(one[close][within], two[close][within])
        across = (low < count) & ~within
        near_leaked[low[across]] = high[across] - count
        low, high = low[within], high[within]
        # An image that the holdout holds too stands for the holdout's copy of it.
        for one_row, copy in ((low, leaked[high]), (high, leaked[low])):
            near_leaked[one_row[copy >= 0]] = copy[copy >= 0]
        differ = data.labels[low] != data.labels[high]
        other[low[differ]], other[high[differ]] = high[differ], low[differ]
    ours = np.flatnonzero(rows < count)
    of = groups.of_row[ours]
    _, lead, back = np.unique(of, return_index=True, return_inverse=True)
    leads = rows[ours[lead[back]]]
    near_of[rows[ours]] = np.where(leads == rows[ours], -1, leads)


def _toned(tones: NDArray[np.uint8], one: Rows, two: Rows, levels: float) -> NDArray[np.bool_]:
    parts = [
        same_tone(tones[one[at : at + 100_000]], tones[two[at : at + 100_000]], levels)
        for at in range(0, len(one), 100_000)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)


def duplicates(data: Survey, alike: Alike, expected: Duplicates) -> Iterator[Judged]:
    """Rows that repeat another, and images under several labels."""
    kinds = (
        (
            "max_exact",
            alike.copy_of,
            "repeat another's pixels",
            f", {alike.same_bytes:,} of them byte for byte",
        ),
        ("max_near", alike.near_of, "look like an earlier one", ""),
        ("max_across_labels", alike.other_label, "stand under another label as well", ""),
        ("max_near_across_labels", alike.near_other_label, "look like one under another label", ""),
    )
    for key, partner, what, more in kinds:
        allowed = getattr(expected, key)
        if allowed is not None:
            found = int((partner >= 0).sum())
            yield _unlike(data, data, f"duplicates.{key}", partner, allowed, what, more if found else "")


def leakage(data: Survey, holdout: Survey | None, alike: Alike, expected: Leakage) -> Iterator[Judged]:
    """Rows that the holdout shows too."""
    kinds = (
        ("max_exact", alike.leaked, "have the same pixels as one of the holdout"),
        ("max_near", alike.near_leaked, "look like one of the holdout"),
    )
    for key, partner, what in kinds:
        name = f"leakage.{key}"
        if holdout is None:
            yield Judged.unexamined(name, "there is no holdout to compare with; name it with --holdout")
        else:
            yield _unlike(data, holdout, name, partner, getattr(expected, key), what, "", "holdout")


def _unlike(
    data: Survey,
    other: Survey,
    name: str,
    partner: Rows,
    allowed: int,
    what: str,
    more: str = "",
    where: str = "",
) -> Judged:
    rows = np.flatnonzero(partner >= 0)
    if not data.readable.any():
        return Judged.unexamined(name, "no image could be read")
    told = []
    for row in rows[:ROWS_TOLD].tolist():
        at = int(partner[row])
        beside = Beside(where, at, other.ids[at], other.label(at))
        told.append(Offender(row, data.ids[row], data.label(row), beside=beside))
    return Judged.at_most(
        name, len(rows), allowed, f"{share_of(len(rows), len(data))} {what}{more}", tuple(told)
    )
