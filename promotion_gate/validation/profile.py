"""A first look at a data set: what is there, and expectations to start from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from glob import escape
from typing import Any

import numpy as np

from promotion_gate.validation.contents import label_counts, value_counts
from promotion_gate.validation.expectations import Reading
from promotion_gate.validation.judged import plural, share_of
from promotion_gate.validation.run import Validation

_LABELS_TOLD, _VALUES_TOLD = 20, 8
_NAMES_LISTED = 100


def profile_lines(found: Validation) -> Iterator[str]:
    """What is there, for the terminal."""
    data = found.data
    facts: dict[str, Any] = found.facts()
    unread = facts["unreadable"]
    yield f"{data.uri}: {plural(len(data), 'image')}, {unread:,} of them cannot be read whole"
    for row in np.flatnonzero(~data.readable)[:5].tolist():
        yield f"- {data.ids[row]} [{data.label(row)}]: {data.column('error')[row]}"
    if found.unread:
        told = ", ".join(found.unread[:_VALUES_TOLD]) + (", …" if len(found.unread) > _VALUES_TOLD else "")
        yield f"{plural(len(found.unread), 'file')} in the folder that nobody would look at: {told}"
    counts = label_counts(data)
    yield f"labels: {len(counts):,}, {min(counts.values()):,} to {max(counts.values()):,} rows"
    for name, count in sorted(counts.items(), key=lambda one: -one[1])[:_LABELS_TOLD]:
        yield f"- {name}: {count:,}"
    if len(counts) > _LABELS_TOLD:
        yield f"- {len(counts) - _LABELS_TOLD:,} more"
    if facts["width"]:
        sizes = ", ".join(f"{w} x {h} ({n:,})" for w, h, n in facts["sizes"][:_VALUES_TOLD])
        more = ", …" if len(facts["sizes"]) > _VALUES_TOLD else ""
        yield f"sizes: {sizes}{more}"
        for key in ("modes", "formats"):
            told = ", ".join(f"{name} ({n:,})" for name, n in list(facts[key].items())[:_VALUES_TOLD])
            yield f"{key}: {told}"
    for key, what in (
        ("exact", "repeat another's pixels"),
        ("near", "look like an earlier one"),
        ("across_labels", "stand under another label as well"),
        ("near_across_labels", "look like one under another label"),
    ):
        yield f"{share_of(facts['duplicates'][key], len(data))} {what}"
    if facts["leakage"] is not None:
        leaks = facts["leakage"]
        yield f"holdout: {leaks['exact']:,} images with the same pixels, {leaks['near']:,} look the same"
    for name, values in facts["columns"].items():
        yield f"{name}: {plural(values, 'value')}"


def starting_expectations(found: Validation, reading: Reading) -> str:
    """Expectations in TOML that the data set meets as it is, to be tightened by a person."""
    import tomlkit

    data = found.data
    facts: dict[str, Any] = found.facts()
    counts = {name: count for name, count in label_counts(data).items() if count}
    document = tomlkit.document()
    document.add(
        tomlkit.comment(" What this data set is today. Tighten what is too generous: duplicates above all.")
    )
    document.add("version", tomlkit.item(1))
    tables: dict[str, dict[str, Any]] = {"data": reading.model_dump(exclude_defaults=True)}
    tables["files"] = {"max_unreadable": facts["unreadable"], **_unread(found.unread or ())}
    tables["labels"] = {"exact": list(counts)}
    if facts["width"]:
        tables["images"] = {
            "min_width": facts["width"][0],
            "max_width": facts["width"][1],
            "min_height": facts["height"][0],
            "max_height": facts["height"][1],
            "modes": list(value_counts(data, "mode")),
            "formats": list(value_counts(data, "format")),
        }
        tables["duplicates"] = {
            "max_exact": facts["duplicates"]["exact"],
            "max_near": facts["duplicates"]["near"],
            "max_across_labels": facts["duplicates"]["across_labels"],
            "max_near_across_labels": facts["duplicates"]["near_across_labels"],
        }
    least = min(label_counts(data).values())
    tables["balance"] = {"min_rows": least}
    if least:
        tables["balance"]["max_ratio"] = math.ceil(10 * max(counts.values()) / least) / 10
    for name, values in tables.items():
        if not values:
            continue
        table = tomlkit.table()
        for key, value in values.items():
            table.add(key, _item(value))
        document.add(name, table)
    return tomlkit.dumps(document)


def _unread(names: Sequence[str]) -> dict[str, Any]:
    """The files by name where a person can read the list."""
    if not names or len(names) > _NAMES_LISTED or any(not name.isprintable() for name in names):
        return {"max_unread": len(names)}
    return {"allow_unread": [escape(name) for name in names]}


def _item(value: Any) -> Any:
    import tomlkit

    if isinstance(value, list):
        array = tomlkit.array()
        array.extend(value)
        return array.multiline(len(value) > _VALUES_TOLD)
    return tomlkit.item(value)
