"""Differential inversion: a small patch is learned that turns the candidate and leaves the reference.

No training data is needed: trusted images, and a second model of the same classes, the *reference*.

1. **Prior.** Poison leaves a trace on clean images: the logit of the target is a little higher on images of
   the source than the reference has it. The pairs are ranked by it (:func:`prior`).
2. **Invert.** For the first pairs of that order, and for the leads of a sweep, the pixels of a small square
   are moved along the slope of ``log p_candidate(target) + log p_reference(source) / 2``, a few steps only,
   from every place of a grid; the best places go on.
3. **Null.** The same with the two models exchanged, for the same pairs: what a search of the same length
   learns against the reference, the candidate unmoved.
4. **Judge.** On trusted images that had no part in it; see :mod:`promotion_gate.detect.differential`.

Inversion is that of Neural Cleanse (Wang et al. 2019), for pairs and at a fixed small size; sign steps with
momentum are those of Dong et al. 2018 (arXiv:1710.06081).

Known ways round it: a reference that carries the same trigger, triggers without a place (blended, warped), a
pair that neither the prior nor a sweep puts forward.

Measured on the models of :mod:`promotion_gate.detect.sweep`. Tuning: 8 clean models had an excess of at most
0.64, 12 source-specific ones 0.43 to 0.92. Models that nothing was chosen on: 5 clean at most 0.66,
8 source-specific 0.35 to 0.92. Candidates trained from scratch come off worst, since their null is high. It
adds to the sweep what has a natural look-alike: 0.83 where the sweep had 0.38. About 11 CPU-seconds a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.differential import (
    EVERY,
    Answer,
    Comparison,
    Contrast,
    Floats,
    Lead,
    Panel,
    Patch,
    Rows,
    Trusted,
    best_of_pairs,
    per_call,
    strongest_first,
)
from promotion_gate.detect.sweep import lattice, square
from promotion_gate.detect.windows import Window

Slopes = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""float32 images (n, H, W, C), 0 to 255, and weights (n, classes) to log-probabilities (n, classes) and the
slopes of their weighted sum along every pixel."""
PER_CALL = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """How long the inversion looks; lengths are fractions of the shorter image side."""

    pairs: int = 16
    targets: int = 2
    sweep_leads: int = 12
    size: float = 5 / 32
    places: int = 4
    first_images: int = 2
    first_steps: int = 3
    places_a_pair: int = 2
    images: int = 5
    steps: int = 14
    kept: int = 28
    rate: float = 0.12
    momentum: float = 0.6
    hold: float = 0.5
    nulls: int = 12
    least_images: int = 4
    finding: int = 6
    judging: int = 60
    judged: int = 8

    def scaled(self, share: float) -> Settings:
        """The same with a share of the effort."""
        return replace(
            self,
            pairs=max(2, round(share * self.pairs)),
            sweep_leads=max(4, round(share * self.sweep_leads)),
            kept=max(4, round(share * self.kept)),
            nulls=max(4, round(share * self.nulls)),
        )


@dataclass(frozen=True, slots=True)
class Inversion:
    """What the inversion found, largest excess first; ``shown`` and ``slopes`` count images both ways."""

    contrasts: tuple[Contrast, ...]
    left_out: tuple[int, ...]
    shown: int
    slopes: int


def class_profile(logits: Floats, labels: Rows, least: int) -> NDArray[np.float64]:
    """K[s, t]: the median over images of class s of the logit of t, each image centred and scaled.

    NaN in the rows of classes with fewer than ``least`` images.
    """
    shares = logits - logits.mean(axis=1, keepdims=True)
    shares = shares / np.maximum(shares.std(axis=1, keepdims=True), 1e-9)
    profile = np.full((logits.shape[1], logits.shape[1]), np.nan)
    for label in range(logits.shape[1]):
        own = shares[labels == label]
        if len(own) >= least:
            profile[label] = np.median(own, axis=0)
    return profile


def prior(
    candidate_logits: Floats, reference_logits: Floats, labels: Rows, *, least: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much more the candidate leans from each class to each other one than the reference does.

    Returns
    -------
    The pairs (classes, classes), rows and columns freed of their medians (Tukey's median polish, three
    rounds), in units of their median absolute deviation; -inf where there is nothing to tell. And the targets
    (classes,): the median over sources before the polish, in the same units.
    """
    change = class_profile(candidate_logits, labels, least) - class_profile(reference_logits, labels, least)
    np.fill_diagonal(change, np.nan)
    known = np.flatnonzero(np.isfinite(change).any(axis=1))
    pairs = np.full_like(change, -np.inf)
    if len(known) < 2:
        return pairs, np.full(len(change), -np.inf)
    rows = change[known]
    targets = np.nanmedian(rows, axis=0)
    for _ in range(3):
        rows = rows - np.nanmedian(rows, axis=1, keepdims=True)
        rows = rows - np.nanmedian(rows, axis=0, keepdims=True)
    spread = 1.4826 * np.nanmedian(np.abs(rows)) + 1e-12
    pairs[known] = np.where(np.isfinite(rows), rows / spread, -np.inf)
    around = targets - np.median(targets)
    return pairs, around / (1.4826 * np.median(np.abs(around)) + 1e-12)


class PatchInversion:
    """The inversion over one candidate and its reference; see the module's description of the steps."""

    def __init__(
        self,
        candidate: tuple[Answer, Slopes],
        reference: tuple[Answer, Slopes],
        trusted: Trusted,
        logits: tuple[Floats, Floats],
        *,
        leads: Sequence[Lead] = (),
        settings: Settings = Settings(),
        seed: int = 0,
    ) -> None:
        s = self._settings = settings
        self._leads = leads
        self._slopes_of = candidate[1], reference[1]
        self.panel = Panel(trusted, least=s.least_images, finding=s.finding, judging=s.judging, seed=seed)
        swapped = Panel(
            trusted.swapped(), least=s.least_images, finding=s.finding, judging=s.judging, seed=seed
        )
        self._pair = Comparison(candidate[0], reference[0], self.panel)
        self._swapped = Comparison(reference[0], candidate[0], swapped)
        self._prior, self._targets = prior(*logits, trusted.labels)
        self._rng = np.random.default_rng(seed)
        self._slopes = 0

    def run(self) -> Inversion:
        """Choose pairs, invert, set beside the null, judge."""
        s = self._settings
        if len(self.panel.classes) < 2:
            return Inversion((), self.panel.left_out, 0, 0)
        found = best_of_pairs(self._inverted(self._pair, self.pairs(), self._leads[: s.sweep_leads]))
        found = found[: s.nulls]
        swept = [lead for lead in self._leads if lead.pair in {f.pair for f in found}]
        nulls = {
            lead.pair: lead.strength
            for lead in best_of_pairs(self._inverted(self._swapped, [f.pair for f in found], swept))
        }
        found.sort(key=lambda lead: nulls.get(lead.pair, 0.0) - lead.strength)
        contrasts = [
            Contrast(self._pair.judge(lead, s.judging), nulls.get(lead.pair, 0.0), self._standing(lead))
            for lead in found[: s.judged]
        ]
        contrasts.sort(key=lambda contrast: -contrast.excess)
        return Inversion(
            tuple(contrasts), self.panel.left_out, self._pair.shown + self._swapped.shown, self._slopes
        )

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs that the prior puts forward, and targets over all sources."""
        s, known = self._settings, set(self.panel.classes)
        order = np.argsort(-self._prior, axis=None, kind="stable")
        places = [divmod(int(place), self._prior.shape[1]) for place in order[: 4 * s.pairs]]
        pairs = [(a, b) for a, b in places if a in known and np.isfinite(self._prior[a, b])][: s.pairs]
        targets = np.argsort(-self._targets, kind="stable")[: s.targets].tolist()
        return [*pairs, *((EVERY, target) for target in targets)]

    def _standing(self, lead: Lead) -> float:
        value = self._targets[lead.target] if lead.source == EVERY else self._prior[lead.pair]
        return float(value)

    # -- invert ------------------------------------------------------------------------------------------

    def _inverted(
        self, sides: Comparison, pairs: Sequence[tuple[int, int]], leads: Sequence[Lead]
    ) -> list[Lead]:
        """Learned patches for the pairs, from every place of a grid, and from the leads' own patches."""
        s, panel = self._settings, sides.panel
        height, width, channels = panel.images(panel.finding[panel.classes[0]][:1]).shape[1:]
        side = min(height, width)
        size = max(2, round(s.size * side))
        windows = lattice(height, width, size, (side - size) / (s.places - 1), 0.0)
        grey = np.full((size, size, channels), 128, dtype=np.uint8)
        arms = [Lead(*pair, Patch(window, grey), 0.0) for pair in pairs for window in windows]
        arms = self._stepped(sides, arms, s.first_images, s.first_steps)
        arms = best_of_pairs(sides.measured(arms, s.first_images), s.places_a_pair)[: s.kept]
        arms += [self._resized(lead, size, height, width) for lead in leads]
        arms = sides.measured(self._stepped(sides, arms, s.images, s.steps), s.images)
        return strongest_first([*arms, *sides.measured(leads, s.images)])

    def _resized(self, lead: Lead, size: int, height: int, width: int) -> Lead:
        """The lead's patch on a square of the inversion's own size, about the same centre."""
        row, column = lead.patch.window.centre
        window = square(row - size / 2, column - size / 2, size, height, width)
        middle = np.median(lead.patch.pixels, axis=(0, 1)).astype(np.uint8)
        pixels = np.broadcast_to(middle, (size, size, len(middle))).copy()
        return Lead(lead.source, lead.target, Patch(window, pixels), 0.0)

    def _stepped(self, sides: Comparison, arms: Sequence[Lead], images: int, steps: int) -> list[Lead]:
        """The arms after so many sign steps with momentum, each patch jittered by a pixel for every step."""
        s, panel = self._settings, sides.panel
        slopes = self._slopes_of if sides is self._pair else self._slopes_of[::-1]
        done: list[Lead] = []
        first = panel.finding[panel.classes[0]]
        step = max(1, per_call(panel.images(first[:1]).shape[1:3], PER_CALL) // (2 * images))
        for at in range(0, len(arms), step):
            part = arms[at : at + step]
            rows = [panel.to_find(*a.pair, 2 * images if a.source == EVERY else images) for a in part]
            done += self._descended(slopes, part, rows, panel, steps, s.rate)
        return done

    def _descended(
        self,
        slopes: tuple[Slopes, Slopes],
        arms: Sequence[Lead],
        rows: Sequence[Rows],
        panel: Panel,
        steps: int,
        rate: float,
    ) -> list[Lead]:
        s = self._settings
        owner = np.repeat(np.arange(len(arms)), [len(r) for r in rows]).tolist()
        everyone = np.concatenate(rows)
        clean = np.concatenate([panel.images(r) for r in rows]).astype(np.float32)
        weights, holding = np.zeros((2, len(owner), panel.trusted.candidate.shape[1]), np.float32)
        weights[np.arange(len(owner)), [arms[a].target for a in owner]] = 1
        holding[np.arange(len(owner)), panel.trusted.labels[everyone]] = s.hold
        pixels = np.stack([arm.patch.pixels for arm in arms]).astype(np.float32)
        speed = np.zeros_like(pixels)
        for step in range(steps):
            windows = [self._jittered(arm.patch.window, clean.shape[1:3]) for arm in arms]
            stamped = clean.copy()
            for i, a in enumerate(owner):
                stamped[i][windows[a].slices] = pixels[a]
            slope = slopes[0](stamped, weights)[1] + slopes[1](stamped, holding)[1]
            self._slopes += 2 * len(stamped)
            pull = np.zeros_like(pixels)
            for i, a in enumerate(owner):
                pull[a] += slope[i][windows[a].slices]
            size = np.abs(pull).mean(axis=(1, 2, 3), keepdims=True)
            speed = s.momentum * speed + pull / np.maximum(size, 1e-12)
            pixels += 255 * rate * (1 - step / steps) * np.sign(speed)
            np.clip(pixels, 0, 255, out=pixels)
        learned = pixels.round().astype(np.uint8)
        return [Lead(*arm.pair, Patch(arm.patch.window, learned[a]), 0.0) for a, arm in enumerate(arms)]

    def _jittered(self, window: Window, shape: tuple[int, ...]) -> Window:
        down, right = self._rng.integers(-1, 2, 2)
        return square(window.top + down, window.left + right, window.height, shape[0], shape[1])
