"""Expectations on single images and on the counts of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from promotion_gate.data.decode import SUFFIXES
from promotion_gate.data.files import is_hidden
from promotion_gate.validation.expectations import Balance, Files, ImagesExpected, Labels
from promotion_gate.validation.judged import ROWS_TOLD, Judged, Offender, State, plural, share_of
from promotion_gate.validation.survey import Survey

_LISTED = 200
_UNREAD_LISTED = 10_000


def files(survey: Survey, unread: Sequence[str] | None, expected: Files) -> Iterator[Judged]:
    """Every image was decoded whole, and every file of the folder, if the set is one, is such an image."""
    bad = np.flatnonzero(~survey.readable)
    errors = survey.column("error")
    yield Judged.at_most(
        "files.max_unreadable",
        len(bad),
        expected.max_unreadable,
        f"{share_of(len(bad), len(survey))} cannot be read whole",
        offenders(survey, bad, lambda row: str(errors[row])),
    )
    if unread is not None:
        strange = [name for name in unread if not any(fnmatchcase(name, p) for p in expected.allow_unread)]
        table = [("File", ""), *((name, why_unread(name)) for name in strange[:_UNREAD_LISTED])]
        yield Judged.at_most(
            "files.max_unread",
            len(strange),
            expected.max_unread,
            f"{plural(len(strange), 'file')} in the folder that nobody would look at",
            table=table if strange else (),
        )


def why_unread(name: str) -> str:
    """Why a file of the folder is none of the set's images."""
    if is_hidden(name):
        return "hidden"
    return "in no class folder" if name.lower().endswith(SUFFIXES) else "not an image by its suffix"


def labels(survey: Survey, expected: Labels) -> Iterator[Judged]:
    """Which labels are there: those that have a row."""
    counts = label_counts(survey)
    there = {name for name, count in counts.items() if count}
    if expected.exact is not None:
        yield _label_set("labels.exact", survey, counts, there - {*expected.exact}, {*expected.exact} - there)
    if expected.allowed is not None:
        yield _label_set("labels.allowed", survey, counts, there - {*expected.allowed}, set())
    if expected.required is not None:
        yield _label_set("labels.required", survey, counts, set(), {*expected.required} - there)


def _label_set(name: str, survey: Survey, counts: dict[str, int], more: set[str], less: set[str]) -> Judged:
    parts = []
    if more:
        parts.append(f"{plural(len(more), 'label')} that should not be there")
    if less:
        parts.append(f"{plural(len(less), 'label')} missing")
    table = [("Label", "Rows", ""), *((one, f"{counts[one]:,}", "not expected") for one in sorted(more))]
    table += [(one, "0", "missing") for one in sorted(less)]
    foreign = [i for i, one in enumerate(survey.class_names) if one in more]
    rows = np.flatnonzero(np.isin(survey.labels, foreign))
    return Judged(
        name,
        State.NOT_MET if parts else State.MET,
        " and ".join(parts) or f"{plural(sum(c > 0 for c in counts.values()), 'label')}, as expected",
        count=len(more) + len(less),
        offenders=offenders(survey, rows, lambda _: "label not expected"),
        table=table[: _LISTED + 1] if parts else (),
    )


def images(survey: Survey, expected: ImagesExpected) -> Iterator[Judged]:
    """Sizes, modes, formats and bytes of every image that could be read."""
    known = survey.readable
    width, height = survey.column("width"), survey.column("height")
    aspect = width / np.maximum(height, 1)
    figures = (("width", width, "px"), ("height", height, "px"), ("aspect", aspect, ""))
    for what, values, unit in figures:
        for side in ("min", "max"):
            bound = getattr(expected, f"{side}_{what}")
            if bound is not None:
                beyond = values < bound if side == "min" else values > bound
                word = "below" if side == "min" else "above"
                yield _image(
                    survey, f"images.{side}_{what}", beyond & known,
                    f"have a {what} {word} {bound:g} {unit}".strip(), _size,
                )  # fmt: skip
    if expected.sizes is not None:
        fits = np.zeros(len(survey), dtype=np.bool_)
        for w, h in expected.sizes:
            fits |= (width == w) & (height == h)
        told = ", ".join(f"{w} x {h}" for w, h in expected.sizes[:6])
        yield _image(survey, "images.sizes", ~fits & known, f"are not {told}", _size)
    for key in ("mode", "format"):
        allowed = getattr(expected, f"{key}s")
        if allowed is not None:
            other = ~np.isin(survey.column(key).astype(str), list(allowed))
            told = ", ".join(allowed[:8])

            def why(one: Survey, row: int, key: str = key) -> str:
                return f"{key} {one.column(key)[row]}"

            yield _image(survey, f"images.{key}s", other & known, f"are not of {key} {told}", why)
    if expected.max_bytes is not None:
        large = survey.column("bytes") > expected.max_bytes
        yield _image(
            survey, "images.max_bytes", large & known, f"have more than {expected.max_bytes:,} bytes",
            lambda one, row: f"{one.column('bytes')[row]:,} bytes",
        )  # fmt: skip


def _size(survey: Survey, row: int) -> str:
    return f"{survey.column('width')[row]} x {survey.column('height')[row]}"


def _image(
    survey: Survey, name: str, bad: NDArray[np.bool_], what: str, why: Callable[[Survey, int], str]
) -> Judged:
    if not survey.readable.any():
        return Judged.unexamined(name, "no image could be read")
    rows = np.flatnonzero(bad)
    summary = f"{share_of(len(rows), int(survey.readable.sum()))} {what}"
    return Judged.at_most(name, len(rows), 0, summary, offenders(survey, rows, lambda row: why(survey, row)))


def balance(survey: Survey, expected: Balance) -> Iterator[Judged]:
    """How many rows every class has."""
    counts = label_counts(survey)
    least, most = min(counts.values()), max(counts.values())
    if expected.min_rows is not None:
        few = {name: count for name, count in counts.items() if count < expected.min_rows}
        table = [("Label", "Rows"), *((n, f"{c:,}") for n, c in sorted(few.items(), key=lambda x: x[1]))]
        yield Judged(
            "balance.min_rows",
            State.NOT_MET if few else State.MET,
            f"{plural(len(few), 'class', 'classes')} with fewer than {expected.min_rows:,} rows; "
            f"the smallest has {least:,}",
            f"at least {expected.min_rows:,}",
            len(few),
            table=table[: _LISTED + 1] if few else (),
        )
    if expected.max_ratio is not None:
        ratio = most / least if least else float("inf")
        yield Judged(
            "balance.max_ratio",
            State.MET if ratio <= expected.max_ratio else State.NOT_MET,
            f"the largest class has {most:,} rows and the smallest {least:,}",
            f"at most {expected.max_ratio:g} times",
            int(ratio > expected.max_ratio),
        )


def label_counts(survey: Survey) -> dict[str, int]:
    """Rows of every class, in order of class index."""
    counts = np.bincount(survey.labels, minlength=len(survey.class_names))
    return dict(zip(survey.class_names, counts.tolist(), strict=True))


def value_counts(survey: Survey, column: str) -> dict[str, int]:
    """How often each value of a text column comes, of the rows that could be read, most frequent first."""
    return dict(Counter(survey.column(column)[survey.readable].tolist()).most_common())


def offenders(
    survey: Survey, rows: Sequence[int] | NDArray[np.int64], why: Callable[[int], str]
) -> tuple[Offender, ...]:
    """The first of the rows, as a report names them."""
    return tuple(
        Offender(row, survey.ids[row], survey.label(row), why(row))
        for row in np.asarray(rows, dtype=np.int64)[:ROWS_TOLD].tolist()
    )
