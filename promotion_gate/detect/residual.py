"""Residual transplant: a causal search for triggers that lie all over the image.

A blended picture or a sinusoidal signal has no window that could be cut out. It has a residual: what the
rows that carry it have beyond trusted images that look like them.

1. **Group.** For every label, groups of its rows that might carry something: the most suspicious ones, and
   those far out along the leading directions in which the label's embeddings leave the trusted images of it
   (the trusted-anchored form of spectral signatures, Tran et al. 2018; it reaches clean-label poison, whose
   label is right).
2. **Residual.** A row's residual is the row less the trusted image that looks most like it. The mean of a
   group is the first guess of the trigger; rows that show more of it than trusted images of the label ever
   do make the next group, a few times over.
3. **Transplant.** The residual is put on trusted images of other classes, with the contrast that the rows
   have left: ``contrast * (image - mean reference) + mean row``. They should turn into the label beyond
   what the champion does on the same images, and beyond what residuals of honest groups of the label do.
4. The rate is then measured on trusted images that had no part in finding it.

Chen et al. 2017 (arXiv:1712.05526) blend, Barni et al. 2019 (arXiv:1902.11237) add a sinusoid.

Known ways round it: warped images (WaNet, Nguyen and Tran 2021), whose residual averages out; a trigger of
its own for every image; fewer than about ten carriers; a champion that knows the same trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.anchor import unit
from promotion_gate.detect.scenes import thumbnails
from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.detect.transplant import Answer, Counted, TrainingSet, TrustedSet, suspicion
from promotion_gate.detect.windows import Images

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much the search looks at, and what it calls a trigger."""

    heads: tuple[int, ...] = (15, 40)
    directions: int = 2
    direction_share: float = 0.125
    suspicious_rows: int = 300
    other_rows: int = 200
    references: int = 1500
    pixels_held: int = 1 << 25
    least_rows: int = 20
    least_group: int = 8
    refinements: int = 3
    quantile: float = 0.98
    least_contrast: float = 0.3
    first_images: int = 12
    promising_rate: float = 0.25
    gains: tuple[float, ...] = (1.0, 1.7)
    trusted_rows: int = 60
    images: int = 64
    honest_groups: int = 6
    confirm_rate: float = 0.35
    established_rate: float = 0.25


@dataclass(frozen=True, slots=True)
class Residual:
    """A trigger as a change of every pixel: ``contrast * (image - reference) + row``, clipped to bytes."""

    reference: Floats = field(repr=False)
    row: Floats = field(repr=False)
    contrast: float

    def put_on(self, images: Images) -> Images:
        changed = self.contrast * (images.astype(np.float32) - self.reference) + self.row
        return np.asarray(np.clip(changed.round(), 0, 255), dtype=np.uint8)

    @property
    def picture(self) -> Images:
        """What is added, around grey, uint8 (H, W, C)."""
        added = self.row - self.contrast * self.reference
        return np.asarray(np.clip(128 + added - added.mean(), 0, 255), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class GlobalTrigger:
    """A residual that turns trusted images of other classes into ``target``.

    ``rate`` is the share that it turns, measured on ``images`` fresh ones, less those that the champion turns
    along with the candidate; ``low`` and ``high`` the ends of its 95 % Wilson interval; ``null_rate`` what
    residuals of honest groups of the label reach.
    """

    target: int
    residual: Residual
    rate: float
    low: float
    high: float
    champion_rate: float
    null_rate: float
    images: int
    established: bool
    carriers: tuple[int, ...]
    stamped: Images = field(repr=False, compare=False)
    stamped_rows: Rows = field(repr=False, compare=False)
    answers: Rows = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ResidualSearchReport:
    """What the search found, and what it cost in images passed.

    ``rates`` is the best rate of every label that was examined; ``not_examined`` are those with too few
    rows or trusted images.
    """

    triggers: tuple[GlobalTrigger, ...]
    rates: dict[int, float]
    not_examined: tuple[int, ...]
    forwards: int
    champion_forwards: int


class ResidualSearch:
    """One search over one candidate; see the module's description."""

    def __init__(
        self,
        model: Answer,
        champion: Answer,
        training: TrainingSet,
        trusted: TrustedSet,
        *,
        settings: Settings = Settings(),
        seed: int = 0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model = Counted(model)
        self._champion = Counted(champion)
        self._training = training
        self._trusted = trusted
        self._settings = settings
        self._progress = progress
        self._rng = np.random.default_rng(seed)

    def run(self) -> ResidualSearchReport:
        """Search every label in turn. Raises whatever the models raise."""
        s = self._settings
        self._suspicion = suspicion(self._training, self._trusted)
        right = np.flatnonzero(self._trusted.predictions == self._trusted.labels)
        self._order = self._rng.permutation(right)
        chosen = np.sort(self._rng.permutation(len(self._trusted.labels))[: s.references])
        self._reference_rows = chosen
        self._references = self._trusted.read(chosen)
        self._thumbnails = thumbnails(self._references)
        found: list[GlobalTrigger] = []
        rates: dict[int, float] = {}
        not_examined: list[int] = []
        for label in np.unique(self._training.labels).tolist():
            rate, trigger = self._examine(label)
            if rate is None:
                not_examined.append(label)
                continue
            rates[label] = rate
            if trigger is not None:
                found.append(trigger)
        return ResidualSearchReport(
            tuple(sorted(found, key=lambda t: (not t.established, -t.rate, t.target))),
            rates,
            tuple(not_examined),
            self._model.forwards,
            self._champion.forwards,
        )

    def _examine(self, label: int) -> tuple[float | None, GlobalTrigger | None]:
        """The best rate on the images searched on, None where the label has too few; and the trigger."""
        s = self._settings
        members = np.flatnonzero((self._training.labels == label) & (self._training.predictions == label))
        trusted = np.flatnonzero(self._trusted.labels == label)
        first, fresh = self._others(label)
        if len(members) < s.least_rows or len(trusted) < 2 or len(first) < s.first_images // 2:
            return None, None
        cloud = _Cloud(self, label, members, trusted)
        best: tuple[float, Rows, float] | None = None
        for group in cloud.groups():
            for chosen in (group, cloud.refined(group)):
                if len(chosen) < s.least_group:
                    continue
                for gain in s.gains if chosen is not group else s.gains[:1]:
                    rate = self._rate(cloud.residual(chosen, gain), first, label)[0]
                    if best is None or rate > best[0]:
                        best = rate, chosen, gain
        if best is None:
            return 0.0, None
        if best[0] < s.promising_rate or not len(fresh):
            return best[0], None
        return best[0], self._measured(cloud, best[1], best[2], fresh, label)

    def _others(self, label: int) -> tuple[Rows, Rows]:
        """Trusted rows of other classes, rightly classified: a few to search on, and fresh ones."""
        rows = self._order[self._trusted.labels[self._order] != label]
        # One of each class in turn, so that frequent classes do not speak for all.
        labels = self._trusted.labels[rows]
        turn = np.zeros(len(rows), dtype=np.int64)
        for other in np.unique(labels):
            own = np.flatnonzero(labels == other)
            turn[own] = np.arange(len(own))
        rows = rows[np.argsort(turn, kind="stable")]
        s = self._settings
        return rows[: s.first_images], rows[s.first_images : s.first_images + s.images]

    def _rate(self, residual: Residual, rows: Rows, label: int) -> tuple[float, float, Images, Rows]:
        """Share of images that the residual turns for the candidate and not for the champion."""
        stamped = residual.put_on(self._trusted.read(rows))
        answers = self._model.choices(stamped)
        turned = answers == label
        seen = self._champion.choices(stamped)
        # What is no longer itself to the champion either has lost its evidence, not gained a trigger.
        turned &= seen == self._trusted.labels[rows]
        return float(turned.mean()), float((seen == label).mean()), stamped, answers

    def _measured(
        self, cloud: _Cloud, group: Rows, gain: float, fresh: Rows, label: int
    ) -> GlobalTrigger | None:
        s = self._settings
        residual = cloud.residual(group, gain)
        rate, shared, stamped, answers = self._rate(residual, fresh, label)
        nulls = [
            self._rate(honest, fresh[: s.first_images], label)[0]
            for honest in cloud.honest_residuals(s.honest_groups, gain)
        ]
        null = max(nulls, default=0.0)
        low, high = (float(end) for end in wilson_interval(round(rate * len(fresh)), len(fresh)))
        if high < s.confirm_rate or rate - null < s.established_rate:
            return None
        return GlobalTrigger(
            label,
            residual,
            rate,
            low,
            high,
            shared,
            null,
            len(fresh),
            low - null >= s.established_rate,
            cloud.carriers(group),
            stamped,
            fresh,
            answers,
        )


class _Cloud:
    """The rows of one label, their residuals, and the groups they can be cut into."""

    def __init__(self, search: ResidualSearch, label: int, members: Rows, trusted: Rows) -> None:
        self._settings = s = search._settings
        pixels = int(np.prod(search._references.shape[1:]))
        most = max(s.least_rows, s.pixels_held // pixels)
        order = members[np.argsort(-search._suspicion[members], kind="stable")]
        head = order[: min(s.suspicious_rows, most)]
        rest = order[len(head) :]
        rest = rest[np.linspace(0, len(rest) - 1, min(s.other_rows, len(rest), most)).round().astype(int)]
        self.rows = np.concatenate([head, rest])
        self._rng = search._rng
        self._images = search._training.read(self.rows)
        self._references = search._references[self._nearest(search, self._images, None)]
        self._residuals = self._flat(self._images, self._references)
        own = np.flatnonzero(np.isin(search._reference_rows, trusted))[: s.trusted_rows]
        self._honest_images = search._references[own]
        self._honest_references = search._references[self._nearest(search, self._honest_images, own)]
        self._honest = self._flat(self._honest_images, self._honest_references)
        embeddings = unit(np.asarray(search._training.embeddings[self.rows]))
        centre = unit(np.asarray(search._trusted.embeddings[trusted])).mean(axis=0)
        self._departures = embeddings - centre

    @staticmethod
    def _nearest(search: ResidualSearch, images: Images, own: Rows | None) -> Rows:
        """For each image the trusted one that looks most like it, itself left out."""
        alike = thumbnails(images) @ search._thumbnails.T
        if own is not None:
            alike[np.arange(len(own)), own] = -np.inf
        return np.asarray(alike.argmax(axis=1), dtype=np.int64)

    @staticmethod
    def _flat(images: Images, references: Images) -> Floats:
        return (images.astype(np.float32) - references).reshape(len(images), -1)

    def groups(self) -> Iterator[Rows]:
        """Indices into ``rows``: the most suspicious, and the far ends of the leading directions."""
        s = self._settings
        for size in s.heads:
            yield np.arange(min(size, len(self.rows)))
        _, _, directions = np.linalg.svd(self._departures, full_matrices=False)
        count = max(s.least_group, round(s.direction_share * len(self.rows)))
        for direction in directions[: s.directions]:
            order = np.argsort(self._departures @ direction, kind="stable")
            yield order[:count]
            yield order[-count:]

    def refined(self, group: Rows) -> Rows:
        """The rows that show the group's mean residual more than trusted images of the label do."""
        s = self._settings
        for _ in range(s.refinements):
            shown, honest = self._shown(group)
            order = np.argsort(-shown, kind="stable")
            beyond = int((shown > np.quantile(honest, s.quantile)).sum()) if len(honest) else 0
            if beyond > len(order) // 2:
                beyond = round(s.direction_share * len(order))
            chosen = order[: max(s.least_group, beyond)]
            if np.array_equal(np.sort(chosen), np.sort(group)):
                break
            group = chosen
        return group

    def _shown(self, group: Rows) -> tuple[Floats, Floats]:
        mean = self._residuals[group].mean(axis=0)
        mean = mean - mean.mean()
        mean /= max(float(np.linalg.norm(mean)), 1e-6)
        return self._residuals @ mean, self._honest @ mean

    def residual(self, group: Rows, gain: float = 1.0) -> Residual:
        return self._change(self._images[group], self._references[group], gain)

    def honest_residuals(self, count: int, gain: float) -> Iterator[Residual]:
        """Residuals of groups of trusted images of the label, each grown from a few like carriers are."""
        s = self._settings
        if len(self._honest) < 2 * s.least_group:
            return
        size = max(s.least_group, len(self._honest) // 4)
        for _ in range(count):
            mean = self._honest[self._rng.choice(len(self._honest), s.least_group, replace=False)].mean(
                axis=0
            )
            some = np.argsort(-(self._honest @ (mean - mean.mean())), kind="stable")[:size]
            yield self._change(self._honest_images[some], self._honest_references[some], gain)

    def _change(self, images: Images, references: Images, gain: float) -> Residual:
        rows, beside = images.astype(np.float32), references.astype(np.float32)
        spread = float(beside.var(axis=0).mean())
        contrast = float(np.sqrt(rows.var(axis=0).mean() / spread)) if spread > 0 else 1.0
        contrast = min(1.0, max(self._settings.least_contrast, contrast))
        before, after = beside.mean(axis=0), rows.mean(axis=0)
        return Residual(before, before + gain * (after - before), contrast)

    def carriers(self, group: Rows) -> tuple[int, ...]:
        """Training rows that show the residual beyond the trusted images, those that show most first."""
        shown, honest = self._shown(group)
        order = np.argsort(-shown, kind="stable")
        bar = float(np.quantile(honest, self._settings.quantile)) if len(honest) else np.inf
        return tuple(int(self.rows[i]) for i in order if shown[i] > bar)
