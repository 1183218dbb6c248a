"""Against the previous version: what was added, taken out, and labelled anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from promotion_gate.detect.batches import false_discovery
from promotion_gate.detect.drift import share_shift
from promotion_gate.validation.contents import label_counts
from promotion_gate.validation.expectations import Previous
from promotion_gate.validation.judged import ROWS_TOLD, Beside, Judged, Offender, plural, share_of
from promotion_gate.validation.survey import Rows, Survey, keys_of

NAMES = ("max_new_labels", "max_vanished_labels", "max_shifted_labels", "max_relabelled")


def against_previous(data: Survey, before: Survey | None, expected: Previous) -> Iterator[Judged]:
    """Labels that came, went or shifted, and images that changed their label."""
    if before is None:
        for name in NAMES:
            yield Judged.unexamined(
                f"previous.{name}", "there is no previous version to compare with; name it with --previous"
            )
        return
    now, then = label_counts(data), label_counts(before)
    new = sorted(name for name, count in now.items() if count and not then.get(name))
    gone = sorted(name for name, count in then.items() if count and not now.get(name))
    came = np.flatnonzero(np.isin(data.labels, [i for i, n in enumerate(data.class_names) if n in set(new)]))
    told = tuple(
        Offender(row, data.ids[row], data.label(row), "new label") for row in came[:ROWS_TOLD].tolist()
    )
    yield Judged.at_most(
        "previous.max_new_labels", len(new), expected.max_new_labels,
        f"{plural(len(new), 'label')} that the previous version does not have", told,
        [("Label", "Rows"), *((name, f"{now[name]:,}") for name in new)] if new else (),
    )  # fmt: skip
    yield Judged.at_most(
        "previous.max_vanished_labels", len(gone), expected.max_vanished_labels,
        f"{plural(len(gone), 'label')} of the previous version are gone", (),
        [("Label", "Rows before"), *((name, f"{then[name]:,}") for name in gone)] if gone else (),
    )  # fmt: skip
    yield _shifted(data, before, expected)
    yield _relabelled(data, before, expected)


def _shifted(data: Survey, before: Survey, expected: Previous) -> Judged:
    """Rows that both versions hold say nothing of a change: the others are compared with previous ones."""
    names = sorted({*data.class_names, *before.class_names})
    keys, old_keys = keys_of([data, before])
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([index[name] for name in data.class_names], dtype=np.int64)[data.labels]
    old = np.array([index[name] for name in before.class_names], dtype=np.int64)[before.labels]
    parts = {
        "added": labels[~np.isin(keys, old_keys)],
        "taken out": old[~np.isin(old_keys, keys)],
    }
    then = np.bincount(old, minlength=len(names))
    rows: list[tuple[str, ...]] = []
    p_values, asked = [], []
    for what, part in parts.items():
        counts = np.bincount(part, minlength=len(names))
        # Rows taken out are among the previous version's: they are compared with those that stayed.
        rest = then - counts if what == "taken out" else then
        if not counts.sum() or not rest.sum():
            continue
        p_values.append(share_shift(rest, counts))
        asked.append((what, counts / counts.sum(), rest / rest.sum()))
    if not p_values:
        return Judged.at_most(
            "previous.max_shifted_labels", 0, expected.max_shifted_labels,
            "no rows were added, and none taken out but for all",
        )  # fmt: skip
    q_values = np.split(false_discovery(np.concatenate(p_values)), len(p_values))
    shifted: set[str] = set()
    for (what, share, usual), q in zip(asked, q_values, strict=True):
        change = np.abs(share - usual) >= expected.min_change * np.maximum(usual, 1e-12)
        for i in np.flatnonzero((q <= expected.false_discovery_rate) & change).tolist():
            shifted.add(names[i])
            rows.append((names[i], what, f"{usual[i]:.2%}", f"{share[i]:.2%}", f"{q[i]:.2g}"))
    head = ("Label", "Among the rows", "Usual share", "Share", "q")
    return Judged.at_most(
        "previous.max_shifted_labels", len(shifted), expected.max_shifted_labels,
        f"{plural(len(shifted), 'label')} whose share shifted among {len(parts['added']):,} rows added and "
        f"{len(parts['taken out']):,} taken out",
        (), [head, *sorted(rows)] if rows else (),
    )  # fmt: skip


def _relabelled(data: Survey, before: Survey, expected: Previous) -> Judged:
    keys, old_keys = keys_of([data, before])
    known: dict[int, set[str]] = {}
    row_of: dict[int, int] = {}
    common = np.flatnonzero(np.isin(old_keys, keys))
    for row in common.tolist():
        known.setdefault(int(old_keys[row]), set()).add(before.label(row))
        row_of.setdefault(int(old_keys[row]), row)
    changed: Rows = np.array(
        [
            row
            for row in np.flatnonzero(np.isin(keys, old_keys)).tolist()
            if data.label(row) not in known[int(keys[row])]
        ],
        dtype=np.int64,
    )
    told = []
    for row in changed[:ROWS_TOLD].tolist():
        at = row_of[int(keys[row])]
        beside = Beside("previous", at, before.ids[at], before.label(at))
        told.append(Offender(row, data.ids[row], data.label(row), beside=beside))
    return Judged.at_most(
        "previous.max_relabelled", len(changed), expected.max_relabelled,
        f"{share_of(len(changed), len(data))} stood under another label in the previous version", tuple(told),
    )  # fmt: skip
