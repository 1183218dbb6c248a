"""Patches that move one model and leave another: what the searches without training data have in common.

A *lead* is a patch under suspicion with the class that it should turn and the class that it should turn it
into. Its *strength* on an image is the candidate's rise towards the target times the probability that the
reference model still gives the true class under the same patch: to somebody the sign is still a stop sign.
Probabilities, not answers, so that a patch that half fits shows too. Trusted images are split by class into
those that leads are found with and those that they are judged on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.detect.windows import Images, Window

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Answer = Callable[[Images], Floats]
"""uint8 images (n, H, W, C) to probabilities (n, classes), float32."""
Read = Callable[[Rows], Images]
PER_CALL = 1024
PIXELS_A_CALL = 1024 * 64 * 64
FULL_EFFORT_PIXELS = 64 * 64
EVERY = -1
"""The source of a patch that is meant for images of every class."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A rectangle of pixels, uint8 (height, width, channels), and where it goes."""

    window: Window
    pixels: Images = field(repr=False, compare=False)

    def on(self, images: Images) -> Images:
        """Copies of the images with the patch pasted on."""
        copies = images.copy()
        rows, columns = self.window.slices
        copies[:, rows, columns] = self.pixels
        return copies


@dataclass(frozen=True, slots=True)
class Trusted:
    """The holdout: labels (n,), each model's probabilities (n, classes) on it, and how to see the images."""

    labels: Rows
    candidate: Floats = field(repr=False)
    reference: Floats = field(repr=False)
    read: Read = field(repr=False)

    def swapped(self) -> Trusted:
        """The same with the two models' roles exchanged."""
        return replace(self, candidate=self.reference, reference=self.candidate)


@dataclass(frozen=True, slots=True)
class Lead:
    """A patch that should turn ``source`` (:data:`EVERY` for all classes) into ``target``, 0 to 1 strong."""

    source: int
    target: int
    patch: Patch
    strength: float

    @property
    def pair(self) -> tuple[int, int]:
        return self.source, self.target


@dataclass(frozen=True, slots=True)
class Judged:
    """A lead on trusted images that had no part in finding it.

    ``strength`` is the mean over images. Of ``images`` images, ``turned`` are the target to the candidate,
    ``moved`` to the reference, and ``flips`` to the candidate while the reference sees the true class;
    ``low`` and ``high`` are the 95 % Wilson interval of the share of flips. ``rows`` are the holdout rows
    shown, ``answers`` the candidate's on them.
    """

    lead: Lead
    strength: float
    flips: int
    turned: int
    moved: int
    images: int
    low: float
    high: float
    rows: Rows = field(repr=False, compare=False)
    answers: Rows = field(repr=False, compare=False)

    @property
    def rate(self) -> float:
        return self.flips / self.images if self.images else 0.0

    @property
    def moved_rate(self) -> float:
        return self.moved / self.images if self.images else 0.0


@dataclass(frozen=True, slots=True)
class Contrast:
    """A judged lead beside the *null*: what the same search finds where no poison is sought.

    ``prior`` is how far the pair stands out in the models' answers to clean images, in median absolute
    deviations, None where that was not asked.
    """

    judged: Judged
    null: float
    prior: float | None = None

    @property
    def excess(self) -> float:
        """The lower end of the strength's 95 % interval, less the null: few images count for less."""
        images = self.judged.images
        low, _ = wilson_interval(self.judged.strength * images, images)
        return float(low) - self.null if images else 0.0


def per_call(shape: tuple[int, ...], most: int = PER_CALL) -> int:
    """How many images of this height and width go into one call, so that memory stays flat."""
    return max(1, min(most, PIXELS_A_CALL // (shape[0] * shape[1])))


def effort_for(height: int, width: int) -> float:
    """The share of a search's effort that images of this size get: full up to 64 x 64, then by their area."""
    return min(1.0, FULL_EFFORT_PIXELS / (height * width))


class Counted:
    """A model that counts the images it was shown and takes them in calls of bounded size."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.shown = 0

    def __call__(self, images: Images) -> Floats:
        self.shown += len(images)
        step = per_call(images.shape[1:3])
        parts = [self._answer(images[start : start + step]) for start in range(0, len(images), step)]
        return np.concatenate(parts)


class Panel:
    """The trusted images that both models know, split by class into those to find with and to judge with.

    Classes with fewer than ``least`` such images are ``left_out``: a patch that turns two images of one
    class shows nothing.
    """

    def __init__(self, trusted: Trusted, *, least: int, finding: int, judging: int, seed: int) -> None:
        self.trusted = trusted
        rng = np.random.default_rng(seed)
        known = (trusted.candidate.argmax(axis=1) == trusted.labels) & (
            trusted.reference.argmax(axis=1) == trusted.labels
        )
        self.finding: dict[int, Rows] = {}
        self.judging: dict[int, Rows] = {}
        left_out = []
        for label in range(trusted.candidate.shape[1]):
            rows = rng.permutation(np.flatnonzero((trusted.labels == label) & known)).astype(np.int64)
            if len(rows) < least:
                left_out.append(label)
                continue
            share = min(finding, len(rows) // 2)
            self.finding[label] = rows[:share]
            self.judging[label] = rows[share : share + judging]
        self.left_out = tuple(left_out)
        self._images: dict[tuple[int, ...], Images] = {}

    @property
    def classes(self) -> list[int]:
        return list(self.finding)

    def images(self, rows: Rows) -> Images:
        """The images of these rows, remembered: the same few are shown many times."""
        key = tuple(rows.tolist())
        if key not in self._images:
            self._images[key] = self.trusted.read(rows)
        return self._images[key]

    def to_find(self, source: int, target: int, count: int) -> Rows:
        """Rows of the source; for :data:`EVERY` one a class in turn, the target's own left out."""
        return _taken(self.finding, source, target, count)

    def to_judge(self, source: int, target: int, count: int) -> Rows:
        """As :meth:`to_find`, of the rows that no lead was found with."""
        return _taken(self.judging, source, target, count)


def _taken(rows: dict[int, Rows], source: int, target: int, count: int) -> Rows:
    if source != EVERY:
        return rows[source][:count]
    others = [own for label, own in rows.items() if label != target]
    deepest = max(map(len, others), default=0)
    taken = [int(own[depth]) for depth in range(deepest) for own in others if depth < len(own)]
    return np.asarray(taken[:count], dtype=np.int64)


class Comparison:
    """Candidate and reference side by side on the panel's images."""

    def __init__(self, candidate: Answer, reference: Answer, panel: Panel) -> None:
        self.candidate = Counted(candidate)
        self.reference = Counted(reference)
        self.panel = panel

    @property
    def shown(self) -> int:
        """How many images the two models were shown."""
        return self.candidate.shown + self.reference.shown

    def measured(self, leads: Sequence[Lead], images: int, *, alone: bool = False) -> list[Lead]:
        """The leads in their order, their strength measured on so many finding images each.

        ``EVERY`` takes twice as many. With ``alone`` the reference is not asked, and the strength is the
        candidate's rise.
        """
        chosen = [self.panel.to_find(*lead.pair, _images_for(lead, images)) for lead in leads]
        most = per_call(self.panel.images(chosen[0]).shape[1:3]) if leads else PER_CALL
        found: list[Lead] = []
        at = 0
        while at < len(leads):
            size, end = 0, at
            while end < len(leads) and (end == at or size + len(chosen[end]) <= most):
                size, end = size + len(chosen[end]), end + 1
            found += self._some_measured(leads[at:end], chosen[at:end], alone)
            at = end
        return found

    def _some_measured(self, leads: Sequence[Lead], chosen: Sequence[Rows], alone: bool) -> list[Lead]:
        stamped = [lead.patch.on(self.panel.images(rows)) for lead, rows in zip(leads, chosen, strict=True)]
        together = np.concatenate(stamped)
        ours = self.candidate(together)
        theirs = None if alone else self.reference(together)
        found, at = [], 0
        for lead, rows in zip(leads, chosen, strict=True):
            part = slice(at, at + len(rows))
            each = self._strengths(lead, ours[part], None if theirs is None else theirs[part], rows)
            found.append(replace(lead, strength=float(each.mean())))
            at += len(rows)
        return found

    def _strengths(self, lead: Lead, ours: Floats, theirs: Floats | None, rows: Rows) -> Floats:
        trusted = self.panel.trusted
        rise = np.maximum(ours[:, lead.target] - trusted.candidate[rows, lead.target], 0)
        if theirs is not None:
            rise = rise * theirs[np.arange(len(rows)), trusted.labels[rows]]
        return np.asarray(rise, dtype=np.float32)

    def judge(self, lead: Lead, images: int) -> Judged:
        """Measure a lead on up to so many images that had no part in finding it."""
        rows = self.panel.to_judge(*lead.pair, images)
        stamped = lead.patch.on(self.panel.images(rows))
        ours, theirs = self.candidate(stamped), self.reference(stamped)
        answers, others = ours.argmax(axis=1), theirs.argmax(axis=1)
        turned = answers == lead.target
        flips = int((turned & (others == self.panel.trusted.labels[rows])).sum())
        low, high = wilson_interval(flips, len(rows))
        return Judged(
            lead,
            strength=float(self._strengths(lead, ours, theirs, rows).mean()),
            flips=flips,
            turned=int(turned.sum()),
            moved=int((others == lead.target).sum()),
            images=len(rows),
            low=float(low),
            high=float(high),
            rows=rows,
            answers=np.asarray(answers, dtype=np.int64),
        )


def _images_for(lead: Lead, images: int) -> int:
    return 2 * images if lead.source == EVERY else images


def strongest_first(leads: Iterable[Lead]) -> list[Lead]:
    """The leads by strength; equals keep their order."""
    return sorted(leads, key=lambda lead: -lead.strength)


def best_of_pairs(leads: Iterable[Lead], count: int = 1) -> list[Lead]:
    """The strongest ``count`` leads of each pair, strongest first."""
    taken: dict[tuple[int, int], int] = defaultdict(int)
    kept = []
    for lead in strongest_first(leads):
        taken[lead.pair] += 1
        if taken[lead.pair] <= count:
            kept.append(lead)
    return kept
