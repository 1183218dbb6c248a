"""Which upload brought the poison: an excess of extreme rows in one batch of the training set.

1. **Standing.** Every row is ranked within its own label by how far it lies from trusted images of that
   label, and again by how little a champion believes the label. Within its label, so that the mix of classes
   that a batch brings does not matter.
2. **Excess.** For each batch and label the rows beyond a threshold of that ranking are counted. Were rows
   dealt to batches at random, label by label, each count would be hypergeometric (an exact permutation test).
   Rows of one scene come in bunches, and bunches are fewer than rows: how strongly the other labels' counts
   scatter over the batches gives the size of a bunch, and the test counts bunches.
3. **Discovery.** The p values of all batches become q values that bound the share of false discoveries under
   any dependence (Benjamini and Yekutieli, Annals of Statistics 29, 2001).
4. **Naming.** A few extreme rows of few labels are *concentrated*: what poison looks like. A batch whose
   other labels moved as well is a *shift*: another camera, another country. So is one odd class that looks
   like no other. An excess over many labels in a batch that did not move is *scattered*: careless labels.

Blaming the sources of poisoned data goes back to Baracaldo et al. 2017 (segmenting training data by its
provenance, AISec) and Nelson et al. 2008 (reject on negative impact); the test above is our own.

What defeats it: poison spread evenly over the batches, contributors under many names, a batch with a handful
of carriers, an attacker whose carriers lie as near to trusted images of the target as honest rows do.

Measured with rows dealt at random, five times a model, to 40 contributors with unequal sizes and mixes of
classes: rendered signs (5 clean and 5 poisoned models, 6,000 rows, 30 carriers of a moving sticker) and real
traffic signs (3 clean and 5 poisoned, 11,490 rows, 35 to 115 carriers), these also with whole video tracks
dealt to contributors. No honest batch in all these runs (over 4,000 on clean models) was called concentrated.
A lone poisoner was named in 75 of 75 runs with a champion and 56 of 75 without; of the 19 missed, 14 were
called a shift. Of two who share the poison, one at least was named in 64 and 46 of 75 runs. Poison
spread over all was found in 1 of 75 runs with a champion, in none without. Thresholds were
chosen on these models but for two rendered pairs, on which the lone poisoner was named in 20 of 20 runs.

A different camera (blurred, darkened, paler) was called a shift in 17 of 20 runs and ordinary in 3. Where one
class of a contributor was made odd beyond anything that the model had learned, 16 of 40 runs called it
concentrated: such a batch waits for a person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promotion_gate.detect.anchor import unit as of_length_one

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
CHUNK = 4096
ONE_LABEL, MANY_LABELS = "extreme rows of one label", "extreme rows of many labels"
Kind = Literal["concentrated", "scattered", "shift", "ordinary"]
THRESHOLDS = (0.02, 0.05, 0.1)
WHOLE = 0.5
"""Share of a label's rows in a batch beyond which the label moved as a whole."""
FOREIGN = 0.5
"""Share of the extreme rows that must look like another class where a whole label moved."""
MOSTLY_FOREIGN = 0.75
"""The same where the whole batch moved: a camera makes rows extreme, not a stop sign of an 80."""
EXACT = 1.05
"""Size of a bunch up to which rows count as independent, and the exact test applies."""


@dataclass(frozen=True, slots=True)
class BatchAnomaly:
    """What one batch has that the other batches lead one not to expect.

    ``label`` is the one with the most surprising excess (-1 for none): ``extreme`` of the batch's ``of`` rows
    with that label lie in the head ``threshold`` of it, ``expected`` were due, ``foreign`` of them look
    like another class. ``standing`` is the mean standing of the other labels' rows, 0.5 where they did not
    move.
    ``named`` counts rows that another check had named, by check; ``evidence`` says what gave ``p``.
    ``p`` is for this batch alone, corrected for all that was asked of it; ``q`` for all batches together.
    """

    unit: int
    rows: int
    kind: Kind
    evidence: str
    label: int
    extreme: int
    of: int
    expected: float
    threshold: float
    foreign: int
    standing: float
    shift_q: float
    named: Mapping[str, int]
    extreme_rows: Rows = field(repr=False, compare=False)
    p: float
    q: float


def standing_within_label(values: NDArray[np.floating], labels: Rows) -> Floats:
    """Rank of each value among those of its label, over their number; 1 is the largest. float32 (rows,).

    Equal values share their mean rank: a tie broken by row order would look like an odd batch.
    """
    order = np.lexsort((values, labels))
    label, value = labels[order], values[order]
    counts = np.bincount(labels)
    within = np.arange(1, len(labels) + 1) - (np.cumsum(counts) - counts)[label]
    run = np.cumsum(np.r_[False, (np.diff(label) != 0) | (np.diff(value) != 0)])
    ranks = np.bincount(run, weights=within) / np.bincount(run)
    standing = np.empty(len(labels), dtype=np.float32)
    standing[order] = ranks[run] / counts[label]
    return standing


def foreign_rows(
    embeddings: Floats, labels: Rows, trusted: Floats, trusted_labels: Rows, classes: int, rare: float = 0.05
) -> NDArray[np.bool_]:
    """Rows whose nearest other class is one that trusted images of their label hardly ever lie near to.

    Near: by cosine to the mean of the class's trusted images. Read in chunks; bool (rows,).
    """
    means = np.zeros((classes, trusted.shape[1]), dtype=np.float32)
    np.add.at(means, trusted_labels, of_length_one(trusted))
    filled = np.bincount(trusted_labels, minlength=classes) > 0
    means = of_length_one(means)

    def nearest_other(of: Floats, own: Rows) -> Rows:
        cosines = np.where(filled, of_length_one(np.asarray(of)) @ means.T, -2)
        cosines[np.arange(len(own)), own] = -3
        return np.asarray(cosines.argmax(axis=1), dtype=np.int64)

    usual = np.zeros((classes, classes))
    np.add.at(usual, (trusted_labels, nearest_other(trusted, trusted_labels)), 1)
    usual /= np.maximum(usual.sum(axis=1, keepdims=True), 1)
    alien = np.zeros(len(labels), dtype=np.bool_)
    for start in range(0, len(labels), CHUNK):
        own = labels[start : start + CHUNK]
        alien[start : start + CHUNK] = (
            usual[own, nearest_other(embeddings[start : start + CHUNK], own)] < rare
        )
    return alien & filled[labels]


def false_discovery(p_values: Sequence[float] | Doubles) -> Doubles:
    """Q values under any dependence: Benjamini and Yekutieli, Annals of Statistics 29 (2001)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    places = np.arange(1, len(p) + 1)
    stepped = p[order] * len(p) / places * (1 / places).sum()
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(stepped[::-1])[::-1], 1.0)
    return q


def batch_anomalies(
    units: Rows,
    labels: Rows,
    orders: Sequence[Floats],
    foreign: NDArray[np.bool_],
    named: Mapping[str, Rows] | None = None,
    *,
    rows_a_scene: Callable[[Rows], float] = lambda rows: 1.0,
    rate: float = 0.05,
) -> list[BatchAnomaly]:
    """Judge every batch, the most surprising first.

    Parameters
    ----------
    units: int64 (rows,), the batch of each row, 0 up without gaps.
    orders: how suspicious each row is, float32 (rows,), by one or more witnesses: its distance to trusted
        images of its label (:mod:`promotion_gate.detect.anchor`) first, then what a champion does not believe
        of the label. Only the order within a label counts. Each witness is asked on its own, so that a
        poisoned champion hides nothing.
    foreign: bool (rows,), whether a row looks more like another class than like its label.
    named: rows that other checks hold for poison, by check. Where they come from is asked too.
    rows_a_scene: how many of some extreme rows of one label make one piece of evidence; asked of the batches
        that would be discoveries, and the larger bunch counts.
    rate: share of false discoveries that the naming allows.
    """
    cells = _Cells(units, labels)
    standings = [standing_within_label(order, labels) for order in orders]
    heads = [
        _Head(cells, standing > 1 - threshold, threshold)
        for standing in standings
        for threshold in THRESHOLDS
    ]
    by_threshold = np.stack([head.p for head in heads])
    best = by_threshold.argmin(axis=0)
    asked_of = len(heads) * cells.labels_of_unit
    cell_p = np.minimum(1.0, by_threshold.min(axis=0) * asked_of[cells.unit])
    leading = _leading(cell_p, cells)
    together = np.minimum(1.0, np.stack([head.total_p for head in heads]).min(axis=0) * len(heads))
    elsewhere = {check: _named(rows, cells, units, labels) for check, rows in (named or {}).items()}
    evidences = [ONE_LABEL, MANY_LABELS, *elsewhere]
    tests = np.stack([cell_p[leading], together, *(p for p, _ in elsewhere.values())])
    tests = np.minimum(1.0, tests * len(tests))
    extreme = {}
    for unit in np.flatnonzero(false_discovery(tests.min(axis=0)) <= rate).tolist():
        cell = int(leading[unit])
        head = heads[int(best[cell])]
        extreme[unit] = np.flatnonzero(head.flags & (cells.of_row == cell))
        if len(extreme[unit]) > 1 and tests[:2, unit].min() <= rate:
            bunch = rows_a_scene(extreme[unit])
            tests[0, unit] = max(
                tests[0, unit], min(1.0, head.bunched_p(cell, bunch) * asked_of[unit] * len(tests))
            )
            tests[1, unit] = max(
                tests[1, unit], min(1.0, head.bunched_total_p(unit, bunch) * len(heads) * len(tests))
            )
    p_values = tests.min(axis=0)
    q_values = false_discovery(p_values)
    moved_p, mean_standing = _moved(standings[0], cells, leading)
    shift_q = false_discovery(moved_p)
    found = []
    for unit in range(cells.units):
        cell = int(leading[unit])
        head = heads[int(best[cell])]
        rows = extreme.get(unit, np.empty(0, dtype=np.int64))
        alien, asked = int(foreign[rows].sum()), int(tests[:, unit].argmin())
        kind = _kind(
            evidences[asked],
            float(q_values[unit]),
            float(shift_q[unit]),
            own_level_p=min(1.0, min(h.own_level_p(cell) for h in heads) * int(asked_of[unit])),
            rest_p=min(1.0, min(h.rest_p(cell) for h in heads) * len(heads)),
            one_label=float(tests[0, unit]) <= rate,
            odd_class=len(rows) > WHOLE * int(cells.rows[cell]) and alien < FOREIGN * len(rows),
            mostly_foreign=len(rows) > 2 and alien >= MOSTLY_FOREIGN * len(rows),
            rate=rate,
        )
        found.append(
            BatchAnomaly(
                unit=unit,
                rows=int(cells.rows_of_unit[unit]),
                kind=kind,
                evidence=evidences[asked],
                label=int(cells.label[cell]),
                extreme=int(head.extreme[cell]),
                of=int(cells.rows[cell]),
                expected=float(head.expected[cell]),
                threshold=head.threshold,
                foreign=alien,
                standing=float(mean_standing[unit]),
                shift_q=float(shift_q[unit]),
                named={check: int(counts[unit]) for check, (_, counts) in elsewhere.items()},
                extreme_rows=rows,
                p=float(p_values[unit]),
                q=float(q_values[unit]),
            )
        )
    return sorted(found, key=lambda batch: (batch.q, batch.p, batch.shift_q, batch.unit))


def _kind(
    evidence: str,
    q: float,
    shift_q: float,
    *,
    own_level_p: float,
    rest_p: float,
    one_label: bool,
    odd_class: bool,
    mostly_foreign: bool,
    rate: float,
) -> Kind:
    """What the excess is to be called: see the module's description."""
    if q > rate:
        return "shift" if shift_q <= rate else "ordinary"
    if evidence not in (ONE_LABEL, MANY_LABELS):
        return "concentrated"
    moved = shift_q <= rate
    if not one_label:
        return "shift" if moved else "scattered"
    if odd_class:
        return "shift"
    # What its other labels do not do is the leading label's own, however much the whole batch moved.
    if not mostly_foreign and own_level_p > rate and (moved or rest_p <= rate):
        return "shift" if moved else "scattered"
    return "concentrated"


class _Cells:
    """The pairs of batch and label that have rows, in order of batch and label."""

    def __init__(self, units: Rows, labels: Rows) -> None:
        self.classes = int(labels.max()) + 1
        keys, self.of_row, self.rows = np.unique(
            units * self.classes + labels, return_inverse=True, return_counts=True
        )
        self.unit, self.label = np.divmod(keys, self.classes)
        self.count = len(keys)
        self.units = int(units.max()) + 1
        self.rows_of_label = np.bincount(labels, minlength=self.classes)
        self.rows_of_unit = np.bincount(units, minlength=self.units)
        self.labels_of_unit = np.maximum(np.bincount(self.unit, minlength=self.units), 1)

    def by_unit(self, values: NDArray[np.generic]) -> Doubles:
        return np.bincount(self.unit, weights=values, minlength=self.units).astype(np.float64)


class _Head:
    """The rows of every label beyond one threshold, counted by cell, with each count's tail probability."""

    def __init__(self, cells: _Cells, flags: NDArray[np.bool_], threshold: float) -> None:
        from scipy.stats import hypergeom

        self.cells, self.flags, self.threshold = cells, flags, threshold
        self.extreme = np.bincount(cells.of_row[flags], minlength=cells.count)
        flagged = np.bincount(cells.label, weights=self.extreme, minlength=cells.classes)
        all_rows = cells.rows_of_label[cells.label]
        share = flagged[cells.label] / all_rows
        self.expected = cells.rows * share
        self.bunch = _bunches(cells, self.extreme, self.expected, share)[cells.label]
        exact = hypergeom.sf(self.extreme - 1, all_rows, flagged[cells.label], cells.rows)
        self._share = share
        bunched = np.maximum(exact, _tail(self.extreme, cells.rows, share, self.bunch))
        self.p = np.where(self.extreme > 0, np.where(self.bunch > EXACT, bunched, exact), 1.0)
        self._total = cells.by_unit(self.extreme / self.bunch)
        self._due = cells.by_unit(self.expected / self.bunch)
        self.total_p = _poisson_tail(self._total, self._due)

    def bunched_p(self, cell: int, bunch: float) -> float:
        """Tail of the cell's count where its rows come in bunches of this size or of the larger one."""
        if bunch <= EXACT:
            return float(self.p[cell])
        size = max(bunch, float(self.bunch[cell]))
        return float(_tail(self.extreme[cell], self.cells.rows[cell], self._share[cell], size))

    def bunched_total_p(self, unit: int, bunch: float) -> float:
        """The same for the counts of all the batch's labels."""
        return float(_poisson_tail(self._total[unit] / bunch, self._due[unit] / bunch))

    def rest_p(self, cell: int) -> float:
        """Tail of the count of all extreme rows of the cell's batch but the cell's own."""
        unit = int(self.cells.unit[cell])
        count = self._total[unit] - self.extreme[cell] / self.bunch[cell]
        due = self._due[unit] - self.expected[cell] / self.bunch[cell]
        return float(_poisson_tail(max(count, 0.0), max(due, 0.0)))

    def own_level_p(self, cell: int) -> float:
        """Tail of the cell's count given how many extreme rows its batch has in all; 1 for a lone label."""
        from scipy.special import betainc

        unit = int(self.cells.unit[cell])
        hit = float(self.extreme[cell] / self.bunch[cell])
        share = float(self.expected[cell] / self.bunch[cell]) / max(float(self._due[unit]), 1e-9)
        if hit <= 0 or share >= 1:
            return 1.0
        return float(betainc(hit, max(self._total[unit] - hit, 0.0) + 1, share))


def _tail(count: ArrayLike, rows: ArrayLike, share: ArrayLike, bunch: ArrayLike) -> Doubles:
    """Chance of so many extreme rows where rows come in bunches: the binomial tail of the bunches."""
    from scipy.special import betainc

    drawn = np.maximum(np.asarray(rows) / bunch, 1.0)
    hit = drawn * np.asarray(count) / rows
    return np.asarray(betainc(np.maximum(hit, 1e-9), drawn - hit + 1, share), dtype=np.float64)


def _poisson_tail(count: ArrayLike, due: ArrayLike) -> Doubles:
    from scipy.special import gammainc

    tail = gammainc(np.maximum(count, 1e-9), np.maximum(due, 1e-9))
    return np.asarray(np.where(np.asarray(count) > 0, tail, 1.0), dtype=np.float64)


def _bunches(cells: _Cells, extreme: Rows, expected: Doubles, share: Doubles) -> Doubles:
    """Rows to a bunch, (classes,), as the other labels' counts tell it.

    A cell of n rows in bunches of m scatters min(n, m) times as much as one of independent rows (Kish's
    design effect), so m is read off the sum of the squared standardised residuals. The label itself is left
    out: a poisoned one must not excuse itself.
    """
    sizes = 2.0 ** np.arange(0, 11, 0.5)
    left = (cells.rows_of_label[cells.label] - cells.rows) / np.maximum(
        cells.rows_of_label[cells.label] - 1, 1
    )
    variance = expected * (1 - share) * left
    usable = (variance > 0) & (cells.rows > 1)
    squares = np.where(usable, (extreme - expected) ** 2 / np.where(usable, variance, 1), 0)
    seen = np.bincount(cells.label, weights=squares, minlength=cells.classes)
    due = np.stack(
        [
            np.bincount(
                cells.label, weights=np.where(usable, np.minimum(cells.rows, m), 0), minlength=cells.classes
            )
            for m in sizes
        ]
    )
    cells_of = np.bincount(cells.label, weights=usable, minlength=cells.classes)
    found = np.ones(cells.classes)
    for label in range(cells.classes):
        others, expected_sum = seen.sum() - seen[label], due.sum(axis=1) - due[:, label]
        number = cells_of.sum() - cells_of[label]
        # Two standard errors of a chi-square sum: chance alone must not make bunches.
        if number and others > number + 2 * np.sqrt(2 * number):
            found[label] = np.interp(others, expected_sum, sizes)
    return found


def _leading(cell_p: Doubles, cells: _Cells) -> Rows:
    """The most surprising cell of each batch; cells lie in order of batch."""
    order = np.lexsort((-cells.rows, cell_p, cells.unit))
    first = np.searchsorted(cells.unit[order], np.arange(cells.units))
    return np.asarray(order[np.minimum(first, cells.count - 1)], dtype=np.int64)


def _named(rows: Rows, cells: _Cells, units: Rows, labels: Rows) -> tuple[Doubles, Rows]:
    """Chance that so many of the named rows come from each batch, and how many do.

    Against two nulls, the larger counting: the rows are dealt over their labels' rows, or over all rows.
    """
    from scipy.stats import hypergeom

    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[rows] = True
    by_unit = np.bincount(units[chosen], minlength=cells.units)
    plain = hypergeom.sf(by_unit - 1, len(labels), int(chosen.sum()), cells.rows_of_unit)
    count = np.bincount(cells.of_row[chosen], minlength=cells.count)
    of_label = np.bincount(labels[chosen], minlength=cells.classes)
    p = hypergeom.sf(count - 1, cells.rows_of_label[cells.label], of_label[cells.label], cells.rows)
    least = np.ones(cells.units)
    np.minimum.at(least, cells.unit, p * max(int((of_label > 0).sum()), 1))
    return np.minimum(1.0, np.where(by_unit > 0, np.maximum(plain, least), 1.0)), by_unit


def _moved(standing: Floats, cells: _Cells, leading: Rows) -> tuple[Doubles, Doubles]:
    """Stratified Wilcoxon test that a batch's rows, its leading label aside, stand high: p and mean standing.

    Van Elteren's test with the scatter of the batches themselves as its scale where that is larger, since
    rows of one scene move together.
    """
    from scipy.stats import norm

    totals = cells.rows_of_label[cells.label].astype(np.float64)
    away = np.bincount(
        cells.of_row, weights=standing - (1 + 1 / totals[cells.of_row]) / 2, minlength=cells.count
    )
    variance = cells.rows * (totals - cells.rows) * (totals + 1) / (12 * totals**2)
    rows = cells.rows.astype(np.float64)
    several = cells.labels_of_unit > 1
    drop = leading[several]
    away[drop] = variance[drop] = rows[drop] = 0
    total, scale = cells.by_unit(away), np.sqrt(np.maximum(cells.by_unit(variance), 1e-12))
    z = total / scale
    spread = 1.4826 * float(np.median(np.abs(z - np.median(z)))) if len(z) > 4 else 1.0
    p = norm.sf(z / max(1.0, spread))
    return np.asarray(p, dtype=np.float64), 0.5 + total / np.maximum(cells.by_unit(rows), 1)
