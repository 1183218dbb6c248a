"""Peers beside the gate's own checks, in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.drill.bank import FAMILIES, RANKED
from rivals import ranks
from rivals.course import PEERS, Measured
from rivals.finished_bank import BankModel
from rivals.interface import Floats
from rivals.ranks import Area, Caught

MARKS = ("<!-- peers -->\n", "\n<!-- end peers -->")
EVERY = "all poisoned"
POISONED = [family for family in FAMILIES if not family.name.startswith("harmless")]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of one detector on many models, larger for more suspect, by the model's key.

    ``rows`` are the medians over poisoned models of the AUROC, precision and recall of the rows that it
    names; ``seconds`` is what a model costs at the median, ``forwards`` likewise.
    """

    title: str
    figure: str
    ours: bool
    values: Mapping[str, float] = field(repr=False)
    rows: tuple[float | None, float | None, float | None] = (None, None, None)
    seconds: float | None = None
    forwards: float | None = None
    failed: int = 0


def peer_columns(
    models: Sequence[BankModel], measured: Mapping[tuple[str, str], Measured], names: Sequence[str]
) -> list[Column]:
    """One column for every figure of every peer."""
    columns = []
    for name in names:
        told = [found for m in models if (found := measured.get((m.outcome.key, name))) is not None]
        good = [one for one in told if not one.error]
        rows = tuple(
            _median(getattr(one, f"row_{what}") for one in good) for what in ("auroc", "precision", "recall")
        )
        columns += [
            Column(
                PEERS[name].title,
                figure,
                False,
                {one.model: one.figures[figure] for one in good if figure in one.figures},
                rows,
                _median(one.cpu_seconds for one in good),
                _median(float(one.forwards) for one in good),
                len(told) - len(good),
            )
            for figure in dict.fromkeys(figure for one in good for figure in one.figures)
        ]
        if told and not good:
            columns.append(Column(PEERS[name].title, "failed", False, {}, failed=len(told)))
    return columns


def gate_columns(models: Sequence[BankModel]) -> list[Column]:
    """One column for every figure of the gate's checks that points from harmless to poisoned.

    As they were measured when the bank was gated; a check that was not measured with the training data there
    is read from the run without.
    """
    columns = []
    for check, metrics in RANKED.items():
        rows = _listed(check, models)
        seconds = _median(_check_seconds(check, models))
        for metric, sign in metrics:
            values = {}
            for model in models:
                found = model.outcome.findings.get(check) or (
                    model.blind.findings.get(check, {}) if model.blind else {}
                )
                value = found.get(metric)
                if value is not None and math.isfinite(value):
                    values[model.outcome.key] = sign * value
            if values:
                columns.append(Column(check, metric.replace("_", " "), True, values, rows, seconds))
    return columns


def groups(models: Sequence[BankModel]) -> dict[str, list[str]]:
    """The keys of the poisoned models, all together and by family."""
    poisoned = [m for m in models if not m.outcome.harmless]
    found = {EVERY: [m.outcome.key for m in poisoned]}
    for family in POISONED:
        keys = [m.outcome.key for m in poisoned if family.holds(m.outcome)]
        if keys:
            found[family.name] = keys
    return found


def harmless(models: Sequence[BankModel]) -> list[str]:
    return [m.outcome.key for m in models if m.outcome.harmless]


def area_of(column: Column, keys: Sequence[str], clean: Sequence[str]) -> Area | None:
    return _area(*(tuple(_values(column, part).tolist()) for part in (keys, clean)))


@cache
def _area(poisoned: tuple[float, ...], clean: tuple[float, ...]) -> Area | None:
    """Each is asked for by the table and by every comparison, and an interval takes a tenth of a second."""
    return ranks.area(np.array(poisoned), np.array(clean))


def caught_of(column: Column, keys: Sequence[str], clean: Sequence[str]) -> Caught | None:
    """A poisoned model that the detector could not measure was not caught."""
    if len(_values(column, keys)) < ranks.FEWEST:
        return None
    poisoned = np.array([column.values.get(key, -math.inf) for key in keys])
    return ranks.caught(poisoned, _values(column, clean))


def markdown(
    models: Sequence[BankModel], measured: Mapping[tuple[str, str], Measured], names: Sequence[str]
) -> str:
    """Everything: what was compared, both tables, and where a peer is ahead."""
    peers, ours = peer_columns(models, measured, names), gate_columns(models)
    parts = groups(models)
    clean = harmless(models)
    columns = [*peers, *ours]
    text = [
        f"{len(parts[EVERY])} poisoned and {len(clean)} harmless models with their training data. Area under"
        " the ROC curve of each figure, poisoned against harmless, with its 95 % bootstrap interval over"
        f" models; none where either are fewer than {ranks.FEWEST}."
        " A model that a detector could not measure is left out here, and not caught below. Our checks stand"
        " below the peers.",
        "",
        *_area_table(columns, parts, clean),
        "",
        "Poisoned models caught with the threshold put where at most 5 % of these same harmless models lie"
        " above it, with Wilson intervals; medians over models of what the named rows are worth (poisoned"
        " models) and of the cost: CPU-seconds on one thread and images through the model, a backward pass"
        " counted as two. Seconds of our checks are those on the clock in the gate run, where they share one"
        " model.",
        "",
        *_cost_table(columns, parts, clean),
        "",
        *gate_lines(models, parts),
        "",
        "Where a peer wins over the best of our figures, which is picked for each family afterwards and so"
        " favours us:",
        "",
        *[f"- {line}" for line in winning_lines(peers, ours, models, parts, clean)],
    ]
    return "\n".join(text)


def winning_lines(
    peers: Sequence[Column],
    ours: Sequence[Column],
    models: Sequence[BankModel],
    parts: Mapping[str, Sequence[str]],
    clean: Sequence[str],
) -> Iterator[str]:
    """Each peer that ranks a family better than our best check, or catches more of it than the whole gate.

    Our best is chosen for each family after the fact, from about a dozen figures.
    """
    found, compared = False, 0
    for name, keys in parts.items():
        best, own = _best(ours, keys, clean)
        for peer in peers:
            ranked = area_of(peer, keys, clean)
            if ranked is None or best is None or own is None:
                continue
            compared += 1
            if ranked.area > own.area:
                found = True
                shared = [_both(peer, best, part) for part in (keys, clean)]
                ahead = ""
                if min(len(part[0]) for part in shared) >= ranks.FEWEST:
                    difference, low, high = ranks.lead(*zip(*shared, strict=True))
                    ahead = f", ahead by {difference:+.2f} ({low:+.2f} to {high:+.2f}) where both measured"
                yield (
                    f"{name}: {peer.title} ({peer.figure}) {_number(ranked.area)}, our best, {best.title}"
                    f" ({best.figure}), {_number(own.area)}{ahead}"
                )
        stopped = _stopped(models, keys)
        for peer in peers:
            hits = caught_of(peer, keys, clean)
            if hits is not None and hits.count / hits.of > stopped / len(keys):
                found = True
                yield (
                    f"{name}: at 5 % false alarms {peer.title} ({peer.figure}) catches {hits.count} of"
                    f" {hits.of}, and the gate's verdict stopped {stopped} of {len(keys)}"
                )
    if not compared:
        yield "too few models to tell."
    elif not found:
        yield "nowhere on these models."


def gate_lines(models: Sequence[BankModel], parts: Mapping[str, Sequence[str]]) -> list[str]:
    """What the gate as a whole did with the same models."""
    clean = harmless(models)
    told = [f"{name} {_share(_stopped(models, keys), len(keys))}" for name, keys in parts.items()]
    return [
        f"The gate's verdict, all checks together, stopped: {'; '.join(told)}; and"
        f" {_share(_stopped(models, clean), len(clean))} harmless models."
    ]


def put_into(readme: Path, text: str) -> None:
    """Replace what stands between the marks, whole or not at all.

    Raises
    ------
    UsageError: the file cannot be read, or has no such marks.
    """
    try:
        before, first, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    except OSError as error:
        raise UsageError(f"cannot read {readme}: {error.strerror}") from None
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise UsageError(
            f"{readme} has no place for the table", f"put {MARKS[0].strip()} and {MARKS[1].strip()} in it"
        )
    new = readme.with_name(f".{readme.name}.new")
    new.write_text(before + first + text + last + after, encoding="utf-8")
    new.replace(readme)


def _area_table(
    columns: Sequence[Column], parts: Mapping[str, Sequence[str]], clean: Sequence[str]
) -> Iterator[str]:
    yield "| Method | Figure | " + " | ".join(f"{name} ({len(keys)})" for name, keys in parts.items()) + " |"
    yield "|---|---|" + "---|" * len(parts)
    for column in columns:
        cells = [_area_cell(area_of(column, keys, clean)) for keys in parts.values()]
        yield f"| {_title(column)} | {column.figure} | " + " | ".join(cells) + " |"


def _cost_table(
    columns: Sequence[Column], parts: Mapping[str, Sequence[str]], clean: Sequence[str]
) -> Iterator[str]:
    heads = "Method", "Figure", "Caught", "False alarms", "Rows: AUROC", "precision", "recall", "Seconds"
    yield "| " + " | ".join((*heads, "Forwards", "Failed")) + " |"
    yield "|---" * (len(heads) + 2) + "|"
    for column in columns:
        hits = caught_of(column, parts[EVERY], clean)
        caught = "–" if hits is None else f"{hits.count}/{hits.of} ({_number(hits.low)}–{_number(hits.high)})"
        alarms = "–" if hits is None else f"{hits.false_alarms}/{hits.harmless}"
        cost = [
            "–" if value is None else f"{value:,.{digits}f}"
            for value, digits in ((column.seconds, 1), (column.forwards, 0))
        ]
        rows = ["–" if value is None else _number(value) for value in column.rows]
        cells = [_title(column), column.figure, caught, alarms, *rows, *cost, str(column.failed or "")]
        yield "| " + " | ".join(cells) + " |"


def _title(column: Column) -> str:
    return f"`{column.title}`" if column.ours else column.title


def _area_cell(area: Area | None) -> str:
    return "–" if area is None else f"{_number(area.area)} ({_number(area.low)}–{_number(area.high)})"


def _number(value: float) -> str:
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0.") else text


def _share(count: int, of: int) -> str:
    low, high = wilson_interval(count, of)
    return f"{count} of {of} ({_number(float(low))}–{_number(float(high))})"


def _values(column: Column, keys: Sequence[str]) -> Floats:
    return np.array([column.values[key] for key in keys if key in column.values])


def _both(one: Column, other: Column, keys: Sequence[str]) -> tuple[Floats, Floats]:
    shared = [key for key in keys if key in one.values and key in other.values]
    return _values(one, shared), _values(other, shared)


def _best(
    columns: Sequence[Column], keys: Sequence[str], clean: Sequence[str]
) -> tuple[Column | None, Area | None]:
    ranked = [
        (found.area, -at, column, found)
        for at, column in enumerate(columns)
        if (found := area_of(column, keys, clean))
    ]
    return (None, None) if not ranked else max(ranked, key=lambda entry: entry[:2])[2:]


def _stopped(models: Sequence[BankModel], keys: Sequence[str]) -> int:
    wanted = set(keys)
    return sum(m.outcome.key in wanted and m.outcome.outcome is not Outcome.PROMOTE for m in models)


def _listed(check: str, models: Sequence[BankModel]) -> tuple[None, float | None, float | None]:
    """Median precision and recall of the rows that a check listed, over models with poisoned rows."""
    shown = [
        (*m.outcome.listed.get(check, (0, 0)), m.outcome.carriers_true)
        for m in models
        if m.outcome.carriers_true and check in m.outcome.findings
    ]
    if not any(listed for listed, _, _ in shown):
        return None, None, None
    return (
        None,
        _median(hits / listed for listed, hits, _ in shown if listed),
        _median(hits / true for _, hits, true in shown),
    )


def _check_seconds(check: str, models: Sequence[BankModel]) -> Iterator[float]:
    for model in models:
        try:
            report = json.loads((model.folder / "findings.json").read_text(encoding="utf-8"))
            yield from (
                float(f["seconds"]) for f in report["findings"] if f["check"] == check and f["seconds"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _median(values: Iterator[float | None] | Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return statistics.median(told) if told else None
