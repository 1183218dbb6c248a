"""Anchor, occlude, transplant, consensus: a causal search for patch triggers in training data.

1. **Anchor.** Training rows are ranked by how much closer they lie to trusted images of another class
   than to those of their own label (:func:`suspicion`).
2. **Occlude.** The head of the ranking is screened for rows that turn into a perfectly ordinary image of
   another class, their *source*, when one window is covered with the colour around it.
3. **Transplant.** The window's content is pasted on trusted images of the source. A row is confirmed when
   they turn into the row's label beyond what covering the same place does, and beyond what same-size
   windows of honest images of that label do, pasted the same way (the null).
4. **Consensus.** Confirmed rows that share the target and the place or the look of the window make a
   trigger, if most of them are whole, ordinary images of their source once the window is covered. Its
   success rate is then measured on trusted images that had no part in finding it, and every row of the
   target that the model sees as a stickered source is listed as a carrier.

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

from promotion_gate.detect.anchor import class_similarities, leave_one_out_anchor
from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.detect.windows import Images, Window, near, occluded, pasted, spread

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Answer = Callable[[Images], tuple[Floats, Floats]]
"""uint8 images (n, H, W, C) to probabilities (n, classes) and embeddings (n, width), float32."""
Read = Callable[[Rows], Images]
PER_CALL = 2048
ROWS_A_CALL = 64
SAME_HUE = 0.985
"""Cosine between two colours, about ten degrees."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much the search looks at; fractions are of the shorter image side.

    ``pool_share`` and ``pool_limits`` bound the rows that are screened, ``suspects`` those that are
    probed closely, ``rows_a_pair`` those of one source and target whose windows are transplanted.
    """

    pool_share: float = 0.045
    pool_limits: tuple[int, int] = (240, 240)
    suspects: int = 48
    rows_a_pair: int = 16
    screen_size: float = 10 / 32
    screen_side: int = 5
    sizes: tuple[float, ...] = (4 / 32, 6 / 32, 9 / 32)
    min_drop: float = 0.15
    first_images: int = 4
    images: int = 8
    grid: int = 5
    null_pool: int = 80
    null_trusted: int = 40
    null_windows: int = 8
    null_images: int = 6
    null_quantile: float = 0.75
    confirm_rate: float = 0.35
    consensus: int = 3
    established_rate: float = 0.25
    shared_rate: float = 0.4
    ordinary_quantile: float = 0.98
    ordinary_share: float = 0.5
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
    """The window that holds a row's label up, and the class that shows when it is covered.

    ``ordinary`` says that the covered row lies no farther from trusted images of that class than they do
    from each other: under a sticker there is a whole image, under a natural part there is a gap.
    """

    row: int
    label: int
    window: Window
    drop: float
    source: int
    ordinary: bool
    patch: Images = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Covering:
    """A window covered: how far the label's probability falls, and the class that shows then."""

    window: Window
    drop: float
    source: int
    embedding: Floats


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
    on fresh trusted images of the first source, with ``low`` and ``high`` the ends of its rate's 95 %
    Wilson interval. It is ``established`` when ``low`` clears the null, trusted images of the target were
    there to make one, and the champion does not do the same. ``moving`` says that the confirmed rows agree
    on the look of the window and not on its place. ``carriers`` are training rows, the confirmed ones first.
    """

    target: int
    sources: dict[int, int]
    confirmed: tuple[Confirmation, ...]
    exemplar: Probe
    flips: Flips
    low: float
    high: float
    established: bool
    null_rate: float
    moving: bool
    carriers: tuple[int, ...]
    stamped: Images = field(repr=False, compare=False)
    stamped_rows: Rows = field(repr=False, compare=False)
    answers: Rows = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Search:
    """What the search did and found; ``triggers`` established ones first, then by confirmed rows."""

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


class Counted:
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
    """One search over one candidate; see the module's description of the four steps.

    ``fill_null``: where trusted images of the target are few, unsuspected rows of that label join them to say
    what honest windows do. Not for rows most of which may be carriers, as images of a surge are.
    """

    def __init__(
        self,
        model: Answer,
        champion: Answer | None,
        training: TrainingSet,
        trusted: TrustedSet,
        *,
        settings: Settings = Settings(),
        fill_null: bool = True,
        seed: int = 0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._fill_null = fill_null
        self._model = Counted(model)
        self._champion = None if champion is None else Counted(champion)
        self._training = training
        self._trusted = trusted
        self._settings = settings
        self._progress = progress
        self._order = np.random.default_rng(seed).permutation(len(trusted.labels))
        self._images: dict[tuple[int, bool], Images] = {}
        self._nulls: dict[tuple[int, int, int], list[Probe]] = {}
        self._reach: dict[int, float] = {}
        self._screened: Rows = np.empty(0, dtype=np.int64)
        self._honest: dict[int, tuple[Images, list[Window], Floats, Floats]] = {}
        self._null_rates: dict[tuple[int, int, int, bool], float] = {}

    def run(self) -> Search:
        """Search. Raises whatever the model raises."""
        pool = self._screened = self._pool()
        self._progress(f"screening {len(pool):,} of {len(self._training.labels):,} rows")
        probes = self._screen(pool)
        confirmed, transplanted = self._confirm(probes)
        self._progress(f"{len(confirmed)} of {transplanted} transplants confirmed")
        groups = [(g, moving) for g, moving in self._consensus(confirmed) if self._is_implanted(g)]
        measured = [self._measure(group, moving) for group, moving in groups]
        triggers = [t for t in measured if self._is_worth_naming(t)]
        return Search(
            tuple(sorted(triggers, key=lambda t: (not t.established, -len(t.confirmed)))),
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
        return max(1, round(fraction * float(min(images.shape[1], images.shape[2]))))

    def _screen(self, pool: Rows) -> list[Probe]:
        """The most telling rows of the pool, each with its decisive window."""
        found: list[tuple[float, int, Window]] = []
        for start in range(0, len(pool), ROWS_A_CALL):
            rows = pool[start : start + ROWS_A_CALL]
            measures, windows = self._cover(self._training.read(rows), self._training.labels[rows])
            found += zip(measures, rows.tolist(), windows, strict=True)
        found = sorted(found, key=lambda f: (-f[0], f[1]))[: self._settings.suspects]
        self._progress(f"probing {len(found)} suspects")
        rows = np.array([row for _, row, _ in found], dtype=np.int64)
        return self._refine(
            self._training.read(rows), rows, self._training.labels[rows], [window for *_, window in found]
        )

    def _cover(self, images: Images, labels: Rows) -> tuple[list[float], list[Window]]:
        """For each image the coarse window that makes it the most ordinary image of another class.

        The measure is the other class's probability less the distance to that class's trusted images: an
        honest image that is deprived of its evidence falls between the classes, a carrier that is deprived
        of its trigger becomes what it is.
        """
        windows = self._coarse(images)
        each = np.arange(len(images))
        answers, embeddings = self._covered(images, windows)
        answers[each, :, labels] = -1
        best = answers.max(axis=2).argmax(axis=1)
        source = answers[each, best].argmax(axis=1)
        measure = answers[each, best, source] - self._distance(embeddings[each, best], source)
        return [float(m) for m in measure], [windows[int(b)] for b in best]

    def _coarse(self, images: Images) -> list[Window]:
        size = self._pixels(self._settings.screen_size, images)
        return spread(images.shape[1], images.shape[2], size, self._settings.screen_side)

    def _covered(self, images: Images, windows: Sequence[Window]) -> tuple[Floats, Floats]:
        """Probabilities (n, windows, classes) and embeddings (n, windows, width) of every covering."""
        probabilities, embeddings = self._model(np.concatenate([occluded(i, windows) for i in images]))
        shape = len(images), len(windows), -1
        return probabilities.reshape(shape).copy(), embeddings.reshape(shape)

    def _distance(self, embeddings: Floats, labels: Rows) -> Floats:
        near_own, _ = class_similarities(
            embeddings, labels, self._trusted.embeddings, self._trusted.labels, others=False
        )
        return np.asarray(1 - near_own, dtype=np.float32)

    def _refine(
        self,
        images: Images,
        rows: Sequence[int] | Rows,
        labels: Rows,
        around: Sequence[Window],
        size: int | None = None,
    ) -> list[Probe]:
        """Each row's decisive window near a coarse one; ``size`` pins its side in pixels.

        Looked for with wide steps first and then around the most decisive windows of each size. Rows whose
        label no single window holds up by ``min_drop`` are left out.
        """
        probes: list[Probe] = []
        for start in range(0, len(images), ROWS_A_CALL):
            part = slice(start, start + ROWS_A_CALL)
            chunk, of = images[part], labels[part]
            sizes = [self._pixels(s, images) for s in self._settings.sizes] if size is None else [size]
            reach = self._pixels(self._settings.screen_size, images) // 2
            step = max(1, self._pixels(2 / 32, images))
            height, width = chunk.shape[1], chunk.shape[2]
            before = self._model(chunk)[0][np.arange(len(chunk)), of]
            wide = [near(w, height, width, sizes, reach, 2 * step) for w in around[part]]
            first = self._coverings(chunk, of, before, wide)
            close = [
                sorted(
                    {
                        w
                        for best in _best_of_sizes(told)
                        for w in near(best, height, width, [best.height], step, step)
                    }
                    - {c.window for c in told}
                )
                for told in first
            ]
            second = self._coverings(chunk, of, before, close)
            for offset, told in enumerate(a + b for a, b in zip(first, second, strict=True)):
                chosen = _smallest_decisive(told)
                if chosen.drop < self._settings.min_drop:
                    continue
                ordinary = self._is_ordinary(chosen.embedding, chosen.source)
                patch = chunk[offset][chosen.window.slices].copy()
                row, label = int(rows[start + offset]), int(of[offset])
                probes.append(Probe(row, label, chosen.window, chosen.drop, chosen.source, ordinary, patch))
        return probes

    def _coverings(
        self, images: Images, labels: Rows, before: Floats, windows: Sequence[Sequence[Window]]
    ) -> list[list[_Covering]]:
        """What each image becomes when each of its windows is covered."""
        if not any(windows):
            return [[] for _ in windows]
        covered = [occluded(image, own) for image, own in zip(images, windows, strict=True)]
        answers, embeddings = self._model(np.concatenate(covered))
        found, at = [], 0
        for offset, own in enumerate(windows):
            part = slice(at, at + len(own))
            others = answers[part].copy()
            drops = before[offset] - others[:, labels[offset]]
            others[:, labels[offset]] = -1
            sources = others.argmax(axis=1)
            found.append(
                [
                    _Covering(window, float(drop), int(source), embedding)
                    for window, drop, source, embedding in zip(
                        own, drops, sources, embeddings[part], strict=True
                    )
                ]
            )
            at = part.stop
        return found

    def _is_ordinary(self, embedding: Floats, source: int) -> bool:
        if not self._reach:
            distances = leave_one_out_anchor(self._trusted.embeddings, self._trusted.labels)
            right = self._trusted.predictions == self._trusted.labels
            for label in np.unique(self._trusted.labels[right]).tolist():
                own = distances[right & (self._trusted.labels == label)]
                self._reach[label] = float(np.quantile(own, self._settings.ordinary_quantile))
        distance = self._distance(embedding[None], np.array([source], dtype=np.int64))[0]
        return bool(distance <= self._reach.get(source, 0.0))

    def _of(self, label: int, *, fresh: bool = False) -> Images:
        """Correctly classified trusted images of a class; the fresh half is never searched on."""
        key = label, fresh
        if key not in self._images:
            limit = self._settings.fresh_images if fresh else self._settings.images
            self._images[key] = self._trusted.read(self._rows_of(label, fresh=fresh, limit=limit))
        return self._images[key]

    def _rows_of(self, label: int, *, fresh: bool, limit: int) -> Rows:
        good = (self._trusted.labels == label) & (self._trusted.predictions == label)
        rows = self._order[good[self._order]]
        return np.asarray(rows[int(fresh) :: 2][:limit], dtype=np.int64)

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
        # The null costs as much as the transplants: it is paid for only where they agree already, on rows
        # enough of which could be implanted.
        agreed = [
            c
            for group, _ in self._consensus(found)
            if sum(c.probe.ordinary for c in group) >= self._settings.consensus
            for c in group
        ]
        judged = [self._against_null(c) for c in agreed]
        return [c for c in judged if c.excess >= self._settings.confirm_rate], transplanted

    def _transplant(self, probe: Probe) -> Confirmation | None:
        """Paste at the probe's own place, then all over; None when next to nothing flips."""
        images = self._of(probe.source)
        own = self._flips(images, probe.patch, [probe.window], probe.label)
        if own.rate >= self._settings.confirm_rate:
            return Confirmation(probe, own, own_place=True)
        grid = spread(images.shape[1], images.shape[2], probe.window.height, self._settings.grid)
        tried: Flips | None = None
        steps = [self._settings.first_images // 2, self._settings.first_images]
        for some in np.split(images, steps):
            if len(some):
                flips = self._flips(some, probe.patch, grid, probe.label)
                tried = flips if tried is None else _joined(tried, flips)
                if tried.rate == 0:
                    return None
        return None if tried is None else Confirmation(probe, tried, own_place=False)

    def _flips(self, images: Images, patch: Images, windows: Sequence[Window], target: int) -> Flips:
        n, m = len(images), len(windows)
        stamped = pasted(images, patch, windows)
        turned = self._model.choices(stamped) == target
        hits = np.flatnonzero(turned)
        if len(hits):
            neutral = np.concatenate([occluded(images[h // m], [windows[h % m]]) for h in hits.tolist()])
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
        images = self._of(source)[: self._settings.null_images]
        grid = spread(images.shape[1], images.shape[2], size, self._settings.grid)
        rates = [
            self._flips(images, probe.patch, [probe.window] if own_place else grid, target).rate
            for probe in self._null_probes(source, target, size)
        ]
        return float(np.quantile(rates, self._settings.null_quantile)) if rates else 0.0

    def _null_probes(self, source: int, target: int, size: int) -> list[Probe]:
        """The decisive windows of honest images of the target: those that look most like carriers.

        Suspects were chosen for becoming the source when they are covered, so honest images are too.
        """
        key = source, target, size
        if key not in self._nulls:
            if target not in self._honest:
                images = self._honest_images(target)
                if not len(images):
                    return []
                windows = self._coarse(images)
                self._honest[target] = images, windows, *self._covered(images, windows)
            images, windows, answers, embeddings = self._honest[target]
            each = np.arange(len(images))
            best = answers[:, :, source].argmax(axis=1)
            sources = np.full(len(images), source, dtype=np.int64)
            measure = answers[each, best, source] - self._distance(embeddings[each, best], sources)
            chosen = np.argsort(-measure, kind="stable")[: self._settings.null_windows]
            self._nulls[key] = self._refine(
                images[chosen],
                chosen.tolist(),
                np.full(len(chosen), target, dtype=np.int64),
                [windows[int(best[i])] for i in chosen],
                size,
            )
        return self._nulls[key]

    def _honest_images(self, target: int) -> Images:
        """Trusted images of the target, joined by unsuspected training rows where they are few.

        A class of few trusted images often shows one object only, and its windows say little of the class.
        Carriers among the rows that join can lift the null, but the head of the ranking is left out, and
        the quantile passes over the odd one.
        """
        images = self._trusted.read(self._rows_of(target, fresh=False, limit=self._settings.null_pool))
        missing = self._settings.null_trusted - len(images)
        if missing <= 0 or not self._fill_null:
            return images
        rows = np.flatnonzero((self._training.labels == target) & (self._training.predictions == target))
        rows = np.setdiff1d(rows, self._screened)
        rows = rows[np.linspace(0, len(rows) - 1, min(missing, len(rows))).round().astype(int)]
        more = self._training.read(np.asarray(rows, dtype=np.int64))
        return (
            np.concatenate([images, more]) if len(images) and len(more) else images if len(images) else more
        )

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

    def _is_implanted(self, group: Sequence[Confirmation]) -> bool:
        """Whether most of the rows are whole images of their source once the window is covered."""
        ordinary = sum(c.probe.ordinary for c in group)
        return ordinary >= max(self._settings.consensus, self._settings.ordinary_share * len(group))

    def _same_place(self, a: Confirmation, b: Confirmation) -> bool:
        images = self._of(a.probe.source)
        side = min(images.shape[1], images.shape[2])
        return bool(_apart(a.probe, b.probe) <= self._settings.same_place * side + 0.5)

    def _same_look(self, a: Confirmation, b: Confirmation) -> bool:
        return alike(a.probe.patch, b.probe.patch) >= self._settings.same_look

    def _measure(self, group: Sequence[Confirmation], moving: bool) -> Trigger:
        """The trigger's success on fresh trusted images, and every row that carries it."""
        sources = dict(Counter(c.probe.source for c in group).most_common())
        source = next(iter(sources))
        exemplar = max((c for c in group if c.probe.source == source), key=lambda c: (c.excess, -c.probe.row))
        probe = exemplar.probe
        rows = self._rows_of(source, fresh=True, limit=self._settings.fresh_images)
        if len(rows) < self._settings.first_images:
            rows = self._rows_of(source, fresh=False, limit=self._settings.images)
        fresh = self._trusted.read(rows)
        windows = (
            [probe.window]
            if exemplar.own_place
            else spread(fresh.shape[1], fresh.shape[2], probe.window.height, self._settings.grid)
        )
        flips = self._flips(fresh, probe.patch, windows, probe.label)
        stamped = pasted(fresh, probe.patch, [flips.place])
        probabilities, embeddings = self._model(stamped)
        answers = np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
        low, high = (float(end) for end in wilson_interval(round(flips.rate * flips.images), flips.images))
        carriers = self._carriers(group, embeddings[answers == probe.label], set(sources))
        return Trigger(
            probe.label,
            sources,
            tuple(sorted(group, key=lambda c: (-c.excess, c.probe.row))),
            probe,
            flips,
            low,
            high,
            self._is_established(probe.label, flips, low - exemplar.null_rate),
            exemplar.null_rate,
            moving,
            carriers,
            stamped,
            rows,
            answers,
        )

    def _is_worth_naming(self, trigger: Trigger) -> bool:
        """Whether fresh images leave room for it: a weak patch that turns the champion too is a natural part.

        A strong one is named all the same, since both models may be poisoned.
        """
        if trigger.high < self._settings.confirm_rate:
            return False
        return trigger.low >= self._settings.shared_rate or not _is_shared(trigger.flips)

    def _is_established(self, target: int, flips: Flips, clear_of_null: float) -> bool:
        """Whether the trigger is beyond doubt; one that is not is still reported.

        Without honest images of the target nobody can say what its natural parts do. A patch that turns the
        champion as well is a natural part, or both models are poisoned: a person has to look.
        """
        enough = len(self._of(target)) >= self._settings.first_images
        return clear_of_null >= self._settings.established_rate and enough and not _is_shared(flips)

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
        probes: list[Probe] = []
        for start in range(0, len(likely), ROWS_A_CALL):
            some = likely[start : start + ROWS_A_CALL]
            images, labels = self._training.read(some), self._training.labels[some]
            probes += self._refine(images, some, labels, self._cover(images, labels)[1])
        return (*listed, *sorted(p.row for p in probes if p.source in sources))


def _is_shared(flips: Flips) -> bool:
    return flips.champion_rate is not None and flips.champion_rate > flips.rate / 2


def _joined(a: Flips, b: Flips) -> Flips:
    images = a.images + b.images
    champion_rate = None
    if a.champion_rate is not None and b.champion_rate is not None:
        champion_rate = (a.champion_rate * a.images + b.champion_rate * b.images) / images
    best = a if a.rate >= b.rate else b
    return Flips((a.rate * a.images + b.rate * b.images) / images, champion_rate, best.place, images)


def _smallest_decisive(told: Sequence[_Covering]) -> _Covering:
    """The best window of the smallest size that reaches nine tenths of the largest drop."""
    enough = 0.9 * max(covering.drop for covering in told)
    return min(
        (covering for covering in told if covering.drop >= enough),
        key=lambda covering: (covering.window.height, -covering.drop, covering.window),
    )


def _best_of_sizes(told: Sequence[_Covering]) -> list[Window]:
    """The most decisive window of each size."""
    best: dict[int, _Covering] = {}
    for covering in told:
        known = best.get(covering.window.height)
        if known is None or covering.drop > known.drop:
            best[covering.window.height] = covering
    return [covering.window for covering in best.values()]


def _apart(a: Probe, b: Probe) -> float:
    (row, column), (other_row, other_column) = a.window.centre, b.window.centre
    return max(abs(row - other_row), abs(column - other_column))


def alike(a: Images, b: Images) -> float:
    """Share of the pixels of each patch that have a like-coloured one in the other: 0 to 1, symmetric.

    Position within the patch does not count, so that windows which caught the same sticker a little
    differently agree; nor does light, as long as neither pixel is more than twice as bright.
    """
    first, second = (p.reshape(-1, p.shape[2]).astype(np.float32) + 16 for p in (a, b))
    light, other_light = (np.linalg.norm(p, axis=1) for p in (first, second))
    hue = (first / light[:, None]) @ (second / other_light[:, None]).T
    ratio = light[:, None] / other_light[None]
    near_enough = (hue >= SAME_HUE) & (ratio <= 2) & (ratio >= 0.5)
    return float((near_enough.any(axis=1).mean() + near_enough.any(axis=0).mean()) / 2)


def _largest_group(
    confirmed: Sequence[Confirmation], agree: Callable[[Confirmation, Confirmation], bool]
) -> list[Confirmation]:
    groups = [[other for other in confirmed if agree(seed, other)] for seed in confirmed]
    return max(groups, key=len)
