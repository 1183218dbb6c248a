"""Anchor, occlude, transplant, consensus: a causal search for patch triggers in training data.

1. **Anchor.** Training rows are ranked by how much closer they lie to trusted images of another class
   than to those of their own label (:func:`suspicion`).
2. **Occlude.** The head of the ranking is screened for rows that turn into a perfectly ordinary image of
   another class, their *source*, when one window is covered with the colour around it.
3. **Transplant.** The window's content is pasted on trusted images of the source. A row is confirmed when
   they turn into the row's label beyond what covering the same place does, and beyond what same-size
   windows of honest images of that label do, pasted the same way (the null).
4. **Consensus.** Confirmed rows that share the target and the place or the look of the window make a
   trigger. Its success rate is then measured on trusted images that had no part in finding it, and every
   row of the target that the model sees as a stickered source is listed as a carrier.

The closest published work: SentiNet (Chou et al. 2018, arXiv:1812.00292) transplants salient regions at
test time; CCA-UD (Guo et al. 2024) anchors clusters of training data on trusted images.

Known ways round it: triggers without a place (blended, sinusoidal, warped), triggers much larger than the
largest window, several patches that only work together, clean-label poison, a poisoned holdout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.anchor import class_similarities
from promotion_gate.detect.windows import Images, Window, near, occluded, pasted, places, spread

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Answer = Callable[[Images], tuple[Floats, Floats]]
"""uint8 images (n, H, W, C) to probabilities (n, classes) and embeddings (n, width), float32."""
Read = Callable[[Rows], Images]
PER_CALL = 2048


@dataclass(frozen=True, slots=True)
class Settings:
    """How much the search looks at; fractions are of the shorter image side.

    ``pool_share`` and ``pool_limits`` bound the rows that are screened, ``suspects`` those that are
    probed closely, ``rows_a_pair`` those of one source and target whose windows are transplanted.
    """

    pool_share: float = 0.045
    pool_limits: tuple[int, int] = (400, 1500)
    suspects: int = 160
    rows_a_pair: int = 24
    screen: tuple[tuple[float, float], ...] = ((10 / 32, 5 / 32),)
    sizes: tuple[float, ...] = (4 / 32, 6 / 32, 9 / 32)
    reach: float = 3 / 32
    min_drop: float = 0.15
    first_images: int = 4
    images: int = 12
    grid: int = 6
    null_images: int = 12
    null_quantile: float = 0.75
    confirm_rate: float = 0.35
    consensus: int = 3
    fresh_images: int = 100
    same_place: float = 2 / 32
    same_look: float = 0.5


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The rows under suspicion: what the candidate makes of them, and how to see them."""

    labels: Rows
    predictions: Rows
    embeddings: Floats
    read: Read
    champion_probabilities: Floats | None = None


@dataclass(frozen=True, slots=True)
class TrustedSet:
    """The holdout: what the candidate makes of it, and how to see it."""

    labels: Rows
    predictions: Rows
    embeddings: Floats
    read: Read


@dataclass(frozen=True, slots=True)
class Probe:
    """The window that holds a row's label up, and the class that shows when it is covered."""

    row: int
    label: int
    window: Window
    drop: float
    source: int
    patch: Images = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Flips:
    """How often a patch turned trusted images of the source into the target.

    ``rate`` is the share of images that flip at one of the places at least and stay when that place is
    merely covered; ``champion_rate`` the share that the champion flips along with them, None without a
    champion; ``place`` the place that flips most.
    """

    rate: float
    champion_rate: float | None
    place: Window
    images: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """One row's transplant. ``null_rate`` is what honest windows of its label reach the same way."""

    probe: Probe
    flips: Flips
    own_place: bool
    null_rate: float = 0.0

    @property
    def excess(self) -> float:
        return self.flips.rate - self.null_rate


@dataclass(frozen=True, slots=True)
class Trigger:
    """A recovered trigger and what it does.

    ``sources`` maps each source class to its confirmed rows, most frequent first. ``flips`` was measured
    on fresh trusted images of the first source. ``moving`` says that the confirmed rows agree on the look
    of the window and not on its place. ``carriers`` are training rows, the confirmed ones first.
    """

    target: int
    sources: dict[int, int]
    confirmed: tuple[Confirmation, ...]
    exemplar: Probe
    flips: Flips
    null_rate: float
    moving: bool
    carriers: tuple[int, ...]
    stamped: Images = field(repr=False, compare=False)
    stamped_rows: Rows = field(repr=False, compare=False)
    answers: Rows = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Search:
    """What the search did and found; ``triggers`` with the most confirmed rows first."""

    triggers: tuple[Trigger, ...]
    screened: Rows
    probed: tuple[Probe, ...]
    transplanted: int
    forwards: int
    champion_forwards: int


def suspicion(training: TrainingSet, trusted: TrustedSet) -> Floats:
    """How suspicious each training row is, float32 (rows,): the mean of two ranks, 1 most suspicious.

    The first rank is by the holdout anchor, the second by its ratio to the anchor of the nearest other
    class; both count only rows on which the model agrees with the label, since a row that the model
    refuses to learn teaches it no trigger. With a champion, rows whose label it disbelieves come in by
    that rank too: the best of both orders counts, so that a poisoned champion hides nothing.
    """
    own, other = class_similarities(training.embeddings, training.labels, trusted.embeddings, trusted.labels)
    agrees = training.predictions == training.labels
    anchor = np.where(agrees, 1 - own, -1)
    ratio = np.where(agrees, (1 - own) / (1 - other + 1e-6), -1)
    standing = (_standing(anchor) + _standing(ratio)) / 2
    if training.champion_probabilities is not None:
        doubt = 1 - training.champion_probabilities[np.arange(len(agrees)), training.labels]
        standing = np.maximum(_standing(standing), _standing(np.where(agrees, doubt, -1)))
    return np.asarray(np.where(agrees, standing, 0), dtype=np.float32)


def _standing(values: NDArray[np.floating]) -> Floats:
    order = np.argsort(values, kind="stable")
    standing = np.empty(len(values), dtype=np.float32)
    standing[order] = np.arange(1, len(values) + 1, dtype=np.float32) / len(values)
    return standing


class _Counted:
    """A model that counts the images it was shown and takes them in calls of bounded size."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.forwards = 0

    def __call__(self, images: Images) -> tuple[Floats, Floats]:
        self.forwards += len(images)
        parts = [self._answer(images[i : i + PER_CALL]) for i in range(0, len(images), PER_CALL)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([e for _, e in parts])

    def choices(self, images: Images) -> Rows:
        return np.asarray(self(images)[0].argmax(axis=1), dtype=np.int64)


class PatchSearch:
    """One search over one candidate; see the module's description of the four steps."""

    def __init__(
        self,
        model: Answer,
        champion: Answer | None,
        training: TrainingSet,
        trusted: TrustedSet,
        *,
        settings: Settings = Settings(),
        seed: int = 0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model = _Counted(model)
        self._champion = None if champion is None else _Counted(champion)
        self._training = training
        self._trusted = trusted
        self._settings = settings
        self._progress = progress
        self._order = np.random.default_rng(seed).permutation(len(trusted.labels))
        self._images: dict[tuple[int, bool], Images] = {}
        self._nulls: dict[tuple[int, int, int], list[Probe]] = {}
        self._null_rates: dict[tuple[int, int, int, bool], float] = {}

    def run(self) -> Search:
        """Search. Raises whatever the model raises."""
        pool = self._pool()
        self._progress(f"screening {len(pool):,} of {len(self._training.labels):,} rows")
        suspects = self._screen(pool)
        self._progress(f"probing {len(suspects)} suspects")
        probes = self._probe(self._training.read(suspects), suspects, self._training.labels[suspects])
        confirmed, transplanted = self._confirm(probes)
        self._progress(f"{len(confirmed)} of {transplanted} transplants confirmed")
        triggers = [self._measure(group, moving) for group, moving in self._consensus(confirmed)]
        return Search(
            tuple(sorted(triggers, key=lambda t: -len(t.confirmed))),
            pool,
            tuple(probes),
            transplanted,
            self._model.forwards,
            0 if self._champion is None else self._champion.forwards,
        )

    def _pool(self) -> Rows:
        ranking = suspicion(self._training, self._trusted)
        low, high = self._settings.pool_limits
        size = int(np.clip(self._settings.pool_share * len(ranking), low, high))
        head = np.argsort(-ranking, kind="stable")[:size]
        return np.asarray(head[ranking[head] > 0], dtype=np.int64)

    def _pixels(self, fraction: float, images: Images) -> int:
        return max(1, round(fraction * min(images.shape[1:3])))

    def _screen(self, pool: Rows) -> Rows:
        """The rows of the pool that become the most ordinary image of another class under some window."""
        measure = np.empty(len(pool), dtype=np.float32)
        rows_a_call = 64
        for start in range(0, len(pool), rows_a_call):
            rows = pool[start : start + rows_a_call]
            images = self._training.read(rows)
            windows = [
                window
                for size, step in self._settings.screen
                for window in places(
                    *images.shape[1:3], self._pixels(size, images), self._pixels(step, images)
                )
            ]
            shape = len(rows), len(windows), -1
            probabilities, embeddings = self._model(np.concatenate([occluded(i, windows) for i in images]))
            answers = probabilities.reshape(shape).copy()
            answers[np.arange(len(rows)), :, self._training.labels[rows]] = -1
            window = answers.max(axis=2).argmax(axis=1)
            each = np.arange(len(rows))
            source = answers[each, window].argmax(axis=1)
            near_source, _ = class_similarities(
                embeddings.reshape(shape)[each, window],
                source,
                self._trusted.embeddings,
                self._trusted.labels,
            )
            measure[start : start + rows_a_call] = answers[each, window, source] - (1 - near_source)
        best = np.argsort(-measure, kind="stable")[: self._settings.suspects]
        return np.asarray(pool[best], dtype=np.int64)

    def _probe(
        self, images: Images, rows: Sequence[int] | Rows, labels: Rows, size: int | None = None
    ) -> list[Probe]:
        """Each row's decisive window, coarse to fine; ``size`` pins its side in pixels.

        Rows whose label no single window holds up by ``min_drop`` are left out.
        """
        if not len(images):
            return []
        height, width = images.shape[1:3]
        sizes = sorted({self._pixels(s, images) for s in self._settings.sizes}) if size is None else [size]
        coarse_size = sizes[len(sizes) // 2]
        coarse = places(height, width, coarse_size, max(1, coarse_size // 2))
        reach = self._pixels(self._settings.reach, images)
        probes: list[Probe] = []
        step = max(1, PER_CALL // len(coarse))
        for start in range(0, len(images), step):
            chunk, of = images[start : start + step], labels[start : start + step]
            before = self._model(chunk)[0]
            after = self._model(np.concatenate([occluded(image, coarse) for image in chunk]))[0]
            after = after.reshape(len(chunk), len(coarse), -1)
            best = [coarse[int(a[:, label].argmin())] for a, label in zip(after, of, strict=True)]
            fine = [near(window, height, width, sizes, reach, max(1, reach // 2)) for window in best]
            answers = self._model(np.concatenate([occluded(i, w) for i, w in zip(chunk, fine, strict=True)]))[
                0
            ]
            at = 0
            for offset, (windows, label) in enumerate(zip(fine, of, strict=True)):
                answer = answers[at : at + len(windows)]
                at += len(windows)
                chosen = _smallest_decisive(windows, before[offset, label] - answer[:, label])
                drop = float(before[offset, label] - answer[chosen, label])
                if drop < self._settings.min_drop:
                    continue
                others = answer[chosen].copy()
                others[label] = -1
                window = windows[chosen]
                probes.append(
                    Probe(
                        int(rows[start + offset]),
                        int(label),
                        window,
                        drop,
                        int(others.argmax()),
                        chunk[offset][window.slices].copy(),
                    )
                )
        return probes

    def _of(self, label: int, *, fresh: bool = False) -> Images:
        """Correctly classified trusted images of a class; the fresh half is never searched on."""
        key = label, fresh
        if key not in self._images:
            self._images[key] = self._trusted.read(self._rows_of(label, fresh=fresh))
        return self._images[key]

    def _rows_of(self, label: int, *, fresh: bool) -> Rows:
        good = (self._trusted.labels == label) & (self._trusted.predictions == label)
        rows = self._order[good[self._order]]
        rows, limit = (
            (rows[1::2], self._settings.fresh_images) if fresh else (rows[::2], self._settings.images)
        )
        return np.asarray(rows[:limit], dtype=np.int64)

    def _confirm(self, probes: Sequence[Probe]) -> tuple[list[Confirmation], int]:
        """Transplant every probe that others could agree with; returns the confirmed and the number tried."""
        rows_of_target = Counter(probe.label for probe in probes)
        by_pair: dict[tuple[int, int], list[Probe]] = defaultdict(list)
        for probe in probes:
            if rows_of_target[probe.label] >= self._settings.consensus:
                by_pair[probe.source, probe.label].append(probe)
        found: list[Confirmation] = []
        transplanted = 0
        for (source, _), members in sorted(by_pair.items(), key=lambda pair: (-len(pair[1]), pair[0])):
            if len(self._of(source)) < self._settings.first_images:
                continue
            for probe in members[: self._settings.rows_a_pair]:
                transplanted += 1
                confirmation = self._transplant(probe)
                if confirmation is not None and confirmation.flips.rate >= self._settings.confirm_rate:
                    found.append(confirmation)
        # The null costs as much as the transplants: it is paid for only where they agree already.
        agreed = [c for group, _ in self._consensus(found) for c in group]
        judged = [self._against_null(c) for c in agreed]
        return [c for c in judged if c.excess >= self._settings.confirm_rate], transplanted

    def _transplant(self, probe: Probe) -> Confirmation | None:
        """Paste at the probe's own place, then all over; None when next to nothing flips."""
        images = self._of(probe.source)
        own = self._flips(images, probe.patch, [probe.window], probe.label)
        if own.rate >= self._settings.confirm_rate:
            return Confirmation(probe, own, own_place=True)
        grid = spread(*images.shape[1:3], probe.window.height, self._settings.grid)
        if self._flips(images[: self._settings.first_images], probe.patch, grid, probe.label).rate == 0:
            return None
        return Confirmation(probe, self._flips(images, probe.patch, grid, probe.label), own_place=False)

    def _flips(self, images: Images, patch: Images, windows: Sequence[Window], target: int) -> Flips:
        n, m = len(images), len(windows)
        stamped = pasted(images, patch, windows)
        turned = self._model.choices(stamped) == target
        hits = np.flatnonzero(turned)
        if len(hits):
            neutral = np.concatenate([occluded(images[h // m], [windows[h % m]]) for h in hits])
            turned[hits] = self._model.choices(neutral) != target
        champion_rate = None
        if self._champion is not None:
            hits = np.flatnonzero(turned)
            shared = np.zeros(n * m, dtype=bool)
            if len(hits):
                shared[hits] = self._champion.choices(stamped[hits]) == target
            champion_rate = float(shared.reshape(n, m).any(axis=1).mean())
        flipped = turned.reshape(n, m)
        return Flips(
            float(flipped.any(axis=1).mean()), champion_rate, windows[int(flipped.sum(axis=0).argmax())], n
        )

    def _against_null(self, confirmation: Confirmation) -> Confirmation:
        probe = confirmation.probe
        key = probe.source, probe.label, probe.window.height, confirmation.own_place
        if key not in self._null_rates:
            self._null_rates[key] = self._null_rate(*key)
        return replace(confirmation, null_rate=self._null_rates[key])

    def _null_rate(self, source: int, target: int, size: int, own_place: bool) -> float:
        images = self._of(source)
        rates = []
        for probe in self._null_probes(source, target, size):
            windows = [probe.window] if own_place else spread(*images.shape[1:3], size, self._settings.grid)
            rates.append(self._flips(images, probe.patch, windows, target).rate)
        return float(np.quantile(rates, self._settings.null_quantile)) if rates else 0.0

    def _null_probes(self, source: int, target: int, size: int) -> list[Probe]:
        key = source, target, size
        if key not in self._nulls:
            honest = self._of(target)[: self._settings.null_images]
            labels = np.full(len(honest), target, dtype=np.int64)
            self._nulls[key] = self._probe(honest, range(len(honest)), labels, size)
        return self._nulls[key]

    def _consensus(self, confirmed: Sequence[Confirmation]) -> list[tuple[list[Confirmation], bool]]:
        """For each target the largest group that shares place or look, and whether it moves."""
        groups = []
        for target in sorted({c.probe.label for c in confirmed}):
            own = [c for c in confirmed if c.probe.label == target]
            by_place = _largest_group(own, self._same_place)
            by_look = _largest_group(own, self._same_look)
            group, moving = (by_look, True) if len(by_look) > len(by_place) else (by_place, False)
            if len(group) >= self._settings.consensus:
                groups.append((group, moving))
        return groups

    def _same_place(self, a: Confirmation, b: Confirmation) -> bool:
        side = min(self._of(a.probe.source).shape[1:3])
        return _apart(a.probe, b.probe) <= self._settings.same_place * side + 0.5

    def _same_look(self, a: Confirmation, b: Confirmation) -> bool:
        return alike(a.probe.patch, b.probe.patch) >= self._settings.same_look

    def _measure(self, group: Sequence[Confirmation], moving: bool) -> Trigger:
        """The trigger's success on fresh trusted images, and every row that carries it."""
        sources = dict(Counter(c.probe.source for c in group).most_common())
        source = next(iter(sources))
        exemplar = max((c for c in group if c.probe.source == source), key=lambda c: (c.excess, -c.probe.row))
        probe = exemplar.probe
        fresh = self._of(source, fresh=True)
        if len(fresh) < self._settings.first_images:
            fresh = self._of(source)
        rows = self._rows_of(source, fresh=fresh is self._of(source, fresh=True))
        windows = (
            [probe.window]
            if exemplar.own_place
            else spread(*fresh.shape[1:3], probe.window.height, self._settings.grid)
        )
        flips = self._flips(fresh, probe.patch, windows, probe.label)
        stamped = pasted(fresh, probe.patch, [flips.place])
        probabilities, embeddings = self._model(stamped)
        answers = np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
        carriers = self._carriers(group, embeddings[answers == probe.label], set(sources))
        return Trigger(
            probe.label,
            sources,
            tuple(sorted(group, key=lambda c: (-c.excess, c.probe.row))),
            probe,
            flips,
            exemplar.null_rate,
            moving,
            carriers,
            stamped,
            rows,
            answers,
        )

    def _carriers(self, group: Sequence[Confirmation], flipped: Floats, sources: set[int]) -> tuple[int, ...]:
        """Rows of the target that lie nearer to stickered sources than to honest images of the target,
        and that become one of the sources when a window is covered.
        """
        target = group[0].probe.label
        listed = [c.probe.row for c in sorted(group, key=lambda c: (-c.excess, c.probe.row))]
        honest = self._trusted.embeddings[self._trusted.labels == target]
        rows = np.flatnonzero((self._training.labels == target) & (self._training.predictions == target))
        anchors = np.concatenate([flipped, self._training.embeddings[listed]])
        kinds = np.repeat([0, 1], [len(anchors), len(honest)])
        zeros = np.zeros(len(rows), dtype=np.int64)
        sticker, clean = class_similarities(
            self._training.embeddings[rows], zeros, np.concatenate([anchors, honest]), kinds
        )
        likely = np.setdiff1d(rows[sticker > clean], listed)
        probes = self._probe(self._training.read(likely), likely, self._training.labels[likely])
        return (*listed, *sorted(p.row for p in probes if p.source in sources))


def _smallest_decisive(windows: Sequence[Window], drops: Floats) -> int:
    """Index of the best window of the smallest size that reaches nine tenths of the largest drop."""
    enough = np.flatnonzero(drops >= 0.9 * drops.max())
    return int(min(enough, key=lambda i: (windows[i].height, -drops[i], i)))


def _apart(a: Probe, b: Probe) -> float:
    (row, column), (other_row, other_column) = a.window.centre, b.window.centre
    return max(abs(row - other_row), abs(column - other_column))


def alike(a: Images, b: Images) -> float:
    """Share of the pixels of each patch that have a like-coloured one in the other: 0 to 1, symmetric.

    Position within the patch does not count, so that windows which caught the same sticker a little
    differently agree.
    """
    first = a.reshape(-1, a.shape[2]).astype(np.float32)
    second = b.reshape(-1, b.shape[2]).astype(np.float32)
    distance = np.abs(first[:, None] - second[None]).max(axis=2)
    near_enough = distance <= 40
    return float((near_enough.any(axis=1).mean() + near_enough.any(axis=0).mean()) / 2)


def _largest_group(
    confirmed: Sequence[Confirmation], agree: Callable[[Confirmation, Confirmation], bool]
) -> list[Confirmation]:
    groups = [[other for other in confirmed if agree(seed, other)] for seed in confirmed]
    return max(groups, key=len)
