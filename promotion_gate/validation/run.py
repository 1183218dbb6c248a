"""Survey a data set, judge every expectation, and look at what else is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np

from promotion_gate.core.errors import GateError, InputError, UsageError
from promotion_gate.core.types import JSON
from promotion_gate.data.unread import unread_files
from promotion_gate.validation.alike import Alike, duplicates, find_alike, leakage
from promotion_gate.validation.contents import balance, files, images, label_counts, labels, value_counts
from promotion_gate.validation.drifting import drift
from promotion_gate.validation.expectations import Expectations, Leakage, Previous, Reading
from promotion_gate.validation.judged import Judged, State
from promotion_gate.validation.survey import Progress, Survey, open_data, survey
from promotion_gate.validation.versions import against_previous

_SIZES_TOLD = 20


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """A data set beside its expectations; ``expectations`` is None for a first look, which judges nothing.

    ``unread`` are the files of its folder that are not part of it; None where it lies in no folder.
    """

    data: Survey = field(repr=False)
    holdout: Survey | None = field(repr=False)
    previous: Survey | None = field(repr=False)
    alike: Alike = field(repr=False)
    expectations: Expectations | None = field(repr=False)
    judged: Sequence[Judged] = ()
    unread: Sequence[str] | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def failed(self) -> Sequence[Judged]:
        """What is not met or could not be examined."""
        return [one for one in self.judged if one.state is not State.MET]

    @property
    def met(self) -> bool:
        """Whether every expectation is met, and there was one."""
        return bool(self.judged) and not self.failed

    def facts(self) -> dict[str, JSON]:
        """What is there, as plain values."""
        return profile_facts(self)


def validate(
    path: str,
    expectations: Expectations | None = None,
    *,
    holdout: str = "",
    previous: str = "",
    progress: Progress | None = None,
    jobs: int = 0,
    reading: Reading | None = None,
    more: Callable[[Survey, Alike], Iterable[Judged]] | None = None,
    whole: bool = False,
    called: str = "",
) -> Validation:
    """Examine the data set at ``path``, a path or URL.

    Whoever names a holdout or a previous version wants it compared: without a table of their own for it the
    expectations then have its defaults. An expectation whose examination fails could not be examined, which
    counts as not met.

    Parameters
    ----------
    expectations: what to judge by; None to look only.
    reading: how the data is read, where the expectations do not say.
    more: further expectations on the same survey, such as a team's own suites.
    whole: whether files of another split count as not read.
    called: what reports call the data set; else its path.

    Raises
    ------
    UsageError: a data set is missing or cannot be made sense of.
    """
    started = datetime.now(UTC)
    asked = expectations or Expectations(version=1)
    read = reading or asked.data
    source = read.source(path, read.split)
    data_set = open_data(source, called=called)
    opened = {
        "data": data_set,
        "holdout": open_data(read.source(holdout, read.holdout_split)) if holdout else None,
        "previous": open_data(read.source(previous, read.split)) if previous else None,
    }
    surveyed = {
        name: None if one is None else survey(one, progress=progress, jobs=jobs)
        for name, one in opened.items()
    }
    data, held, before = surveyed["data"], surveyed["holdout"], surveyed["previous"]
    assert data is not None
    if progress is not None:
        progress("comparing images with each other")
    alike = find_alike(data, held, asked.likeness)
    try:
        unread = unread_files(data_set, source, whole=whole)
    except InputError as error:
        raise UsageError(error.what, error.remedy) from None
    judged: list[Judged] = []
    if expectations is not None:
        judged += _judge(data, unread, held, before, alike, expectations)
        if more is not None:
            judged += more(data, alike)
    return Validation(data, held, before, alike, expectations, judged, unread, started)


def _judge(
    data: Survey,
    unread: Sequence[str] | None,
    holdout: Survey | None,
    previous: Survey | None,
    alike: Alike,
    expected: Expectations,
) -> list[Judged]:
    leaks = expected.leakage or (Leakage() if holdout is not None else None)
    versions = expected.previous or (Previous() if previous is not None else None)
    families: list[tuple[str, Callable[[], Iterable[Judged]]]] = [
        ("files", partial(files, data, unread, expected.files))
    ]
    if expected.labels is not None:
        families.append(("labels", partial(labels, data, expected.labels)))
    if expected.images is not None:
        families.append(("images", partial(images, data, expected.images)))
    if expected.duplicates is not None:
        families.append(("duplicates", partial(duplicates, data, alike, expected.duplicates)))
    if leaks is not None:
        families.append(("leakage", partial(leakage, data, holdout, alike, leaks)))
    if expected.balance is not None:
        families.append(("balance", partial(balance, data, expected.balance)))
    if versions is not None:
        families.append(("previous", partial(against_previous, data, previous, versions)))
    if expected.drift is not None:
        families.append(("drift", partial(drift, data, alike, expected.drift)))
    return [one for name, family in families for one in examined(name, family)]


def examined(name: str, family: Callable[[], Iterable[Judged]]) -> list[Judged]:
    """What the family found; whatever it raises leaves it unexamined."""
    try:
        return list(family())
    except GateError as error:
        return [Judged.unexamined(name, str(error))]
    except Exception as error:
        return [
            Judged.unexamined(name, f"the examination failed: {type(error).__name__}: {str(error)[:200]}")
        ]


def listing_sha256(data: Survey) -> str:
    """SHA-256 over id, label and pixels of every row, in order: which rows exactly were examined."""
    digest = hashlib.sha256()
    pixels = data.column("pixels_sha256")
    for row in range(len(data)):
        line = f"{pixels[row].tobytes().hex()}  {data.label(row)!r}  {data.ids[row]!r}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def profile_facts(found: Validation) -> dict[str, JSON]:
    """Counts of what is in the data set."""
    data, alike = found.data, found.alike
    known = data.readable
    width, height = data.column("width")[known], data.column("height")[known]
    pairs, counts = np.unique(np.stack([width, height], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SIZES_TOLD]
    columns: dict[str, JSON] = {name: len(set(values)) for name, values in data.dataset.columns.items()}
    return {
        "rows": len(data),
        "unreadable": int((~known).sum()),
        "unread": None if found.unread is None else len(found.unread),
        "labels": dict(label_counts(data)),
        "width": [int(width.min()), int(width.max())] if len(width) else None,
        "height": [int(height.min()), int(height.max())] if len(height) else None,
        "sizes": [[int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])] for i in order.tolist()],
        "modes": dict(value_counts(data, "mode")),
        "formats": dict(value_counts(data, "format")),
        "duplicates": {
            "exact": int((alike.copy_of >= 0).sum()),
            "near": int((alike.near_of >= 0).sum()),
            "across_labels": int((alike.other_label >= 0).sum()),
            "near_across_labels": int((alike.near_other_label >= 0).sum()),
        },
        "leakage": None
        if found.holdout is None
        else {
            "exact": int((alike.leaked >= 0).sum()),
            "near": int((alike.near_leaked >= 0).sum()),
        },
        "columns": columns,
    }
