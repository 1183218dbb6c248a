"""A soft sweep: plain patches of many colours, sizes and places on trusted images.

No training data is needed: trusted images, and a second model of the same classes, the *reference*.

1. **Screen.** Images of every class are shown to the candidate with a patch of each colour at each place.
   What counts is how much the probability of another class rises, not whether the answer flips.
2. **Compare.** The strongest (source, target, patch) are shown to the reference too, and count as far as it
   still sees the source; see :mod:`promotion_gate.detect.differential`.
3. **Refine.** Place, size and colour of the best patches of each pair are improved step by step.
4. **Null.** The reference is screened and its best patches refined for the same pairs. What a patch of the
   same kind does to the reference tells how near the two classes lie by nature.
5. **Judge.** The best pairs are measured on trusted images that had no part in 1 to 4.

A pair without a source stands for a patch that sends images of every class to the target.

Related work: adversarial patches (Brown et al. 2017, arXiv:1712.09665) and the comparison of effort between
classes of Neural Cleanse (Wang et al. 2019);
the soft differential to a reference model is not from either.

Known ways round it: a reference that carries the same trigger, triggers without a place (blended, warped),
patterns that no plain colour comes near, patches that only work together.

Measured on real and drawn traffic signs and digits, small networks, triggers of 3 to 6 pixels with attack
success rates of 0.82 to 1. Tuning: 8 clean models had an excess of at most 0.33, 12 source-specific ones 0.38
to 0.94, 3 all-to-one ones 0.94. Models that nothing was chosen on: 5 clean at most 0.24; 8 source-specific
0.65 to 0.93 but for one of 0.14, whose two classes turn into each other by nature; 1 all-to-one 0.94. About
18 CPU-seconds a model of 6 million multiply-adds on a 32 x 32 image.
"""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.differential import (
    EVERY,
    Answer,
    Comparison,
    Contrast,
    Floats,
    Judged,
    Lead,
    Panel,
    Patch,
    Trusted,
    best_of_pairs,
    per_call,
    strongest_first,
)
from promotion_gate.detect.windows import Images, Window


@dataclass(frozen=True, slots=True)
class Settings:
    """How much the sweep looks at; lengths are fractions of the shorter image side.

    ``screen_images`` bounds the images that the screen shows to the candidate, ``null_images`` to the
    reference. ``finding`` trusted images of a
    class are used to find patches, and up to ``judging`` others to judge them.
    """

    hues: int = 12
    sizes: tuple[float, ...] = (5 / 32, 4 / 32, 6 / 32)
    stride: float = 3.5 / 32
    screen_images: int = 20_000
    null_images: int = 8_000
    screen_turns: int = 3
    least_images: int = 4
    finding: int = 6
    judging: int = 60
    arms_a_pair: int = 6
    compared: int = 800
    confirmed: int = 240
    images: int = 4
    refined: int = 24
    refine_rounds: int = 3
    judged: int = 8
    universal: int = 2

    def scaled(self, share: float) -> Settings:
        """The same with a share of the effort."""
        return replace(
            self,
            screen_images=max(200, round(share * self.screen_images)),
            null_images=max(100, round(share * self.null_images)),
            compared=max(50, round(share * self.compared)),
            confirmed=max(24, round(share * self.confirmed)),
            refined=max(4, round(share * self.refined)),
        )

    smallest: float = 3 / 32
    largest: float = 8 / 32
    largest_universal: float = 5 / 32


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the sweep found, largest excess first.

    ``universal`` are the patches that send most classes to one target for the candidate, whatever the
    reference makes of them. ``leads`` are what an inversion may go on from. ``left_out`` are classes with too
    few trusted images that both models know. ``shown`` counts the images shown to either model.
    """

    contrasts: tuple[Contrast, ...]
    universal: tuple[Judged, ...]
    leads: tuple[Lead, ...]
    left_out: tuple[int, ...]
    shown: int


def palette(hues: int, channels: int) -> list[Images]:
    """Colours uint8 (channels,): white, black and grey, and ``hues`` strong ones around the circle."""
    if channels == 1:
        return [np.full(1, level, dtype=np.uint8) for level in (250, 190, 128, 64, 6)]
    greys = [np.full(channels, level, dtype=np.uint8) for level in (250, 6, 128)]
    circle = [colorsys.hsv_to_rgb(i / hues, 0.88, 1) for i in range(hues)]
    return [*greys, *(np.asarray([round(235 * v) for v in colour], dtype=np.uint8) for colour in circle)]


def plain(window: Window, colour: Images) -> Patch:
    """One colour."""
    return Patch(window, np.broadcast_to(colour, (window.height, window.width, len(colour))).copy())


def checker(window: Window, channels: int) -> Patch:
    """Black and white squares of one pixel."""
    squares = np.indices((window.height, window.width)).sum(axis=0) % 2
    values = np.where(squares, 250, 6).astype(np.uint8)[..., None]
    return Patch(window, np.repeat(values, channels, axis=2))


def square(top: float, left: float, size: int, height: int, width: int) -> Window:
    """The ``size`` square nearest to this corner that lies on the image."""
    row, column = np.clip(round(top), 0, height - size), np.clip(round(left), 0, width - size)
    return Window(int(row), int(column), size, size)


def lattice(height: int, width: int, size: int, stride: float, shift: float) -> list[Window]:
    """Squares about ``stride`` apart from edge to edge, the inner ones moved on by ``shift`` strides."""
    tops, lefts = _line(height - size, stride, shift), _line(width - size, stride, shift)
    found = [square(top, left, size, height, width) for top in tops for left in lefts]
    return list(dict.fromkeys(found))


def _line(room: int, stride: float, shift: float) -> NDArray[np.float64]:
    line = np.linspace(0, room, max(2, round(room / stride) + 1))
    line[1:-1] += shift * (line[1] - line[0])
    return line


class PatchSweep:
    """The sweep over one candidate and its reference; see the module's description of the steps."""

    def __init__(
        self,
        candidate: Answer,
        reference: Answer,
        trusted: Trusted,
        *,
        settings: Settings = Settings(),
        seed: int = 0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        s = self._settings = settings
        self._panel = Panel(trusted, least=s.least_images, finding=s.finding, judging=s.judging, seed=seed)
        swapped = Panel(
            trusted.swapped(), least=s.least_images, finding=s.finding, judging=s.judging, seed=seed
        )
        self._pair = Comparison(candidate, reference, self._panel)
        self._swapped = Comparison(reference, candidate, swapped)
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._progress = progress

    def run(self) -> Sweep:
        """Screen, compare, refine, set beside the null, judge."""
        s = self._settings
        if len(self._panel.classes) < 2:
            return Sweep((), (), (), self._panel.left_out, 0)
        everyone = self._panel.classes
        found = self._screened(self._pair, everyone, s.screen_images)
        screened = [lead for leads in found.values() for lead in leads]
        self._progress(f"sticker sweep: {len(screened):,} patches move the candidate at all")
        leads = self._refined(self._pair, self._compared(screened)[: s.refined], alone=False)
        leads = best_of_pairs(leads)
        sources = sorted({lead.source for lead in leads if lead.source != EVERY})
        own = self._screened(self._swapped, sources or everyone, s.null_images)
        nulls = self._nulls(leads, own)
        order = sorted(range(len(leads)), key=lambda i: nulls[i].strength - leads[i].strength)[: s.judged]
        contrasts = [Contrast(self._pair.judge(leads[i], s.judging), self._rise(nulls[i])) for i in order]
        contrasts.sort(key=lambda contrast: -contrast.excess)
        universal = self._universal(lead for lead in screened if lead.source == EVERY)
        shown = self._pair.shown + self._swapped.shown
        return Sweep(tuple(contrasts), universal, tuple(leads), self._panel.left_out, shown)

    # -- screen ------------------------------------------------------------------------------------------

    def _screened(
        self, pair: Comparison, classes: Sequence[int], budget: int
    ) -> dict[tuple[int, int], list[Lead]]:
        """The patches that raise a target most, for each (class, target), and over all classes at once."""
        s, panel = self._settings, pair.panel
        found: dict[tuple[int, int], list[Lead]] = defaultdict(list)
        rng = np.random.default_rng(self._seed)
        for turn in range(s.screen_turns):
            rows = np.asarray([panel.finding[c][turn % len(panel.finding[c])] for c in classes])
            images = panel.images(rows)
            arms = self._arms(images, turn)
            fits = budget // len(images)
            if turn and fits < len(arms) // 3:
                break
            if fits < len(arms):
                arms = [arms[i] for i in np.sort(rng.choice(len(arms), max(fits, 1), replace=False))]
            budget -= len(arms) * len(images)
            step = max(1, per_call(images.shape[1:3]) // len(images))
            for at in range(0, len(arms), step):
                part = arms[at : at + step]
                stamped = np.concatenate([arm.on(images) for arm in part])
                rises = pair.candidate(stamped).reshape(len(part), len(images), -1)
                self._note(found, part, rises - panel.trusted.candidate[rows], classes)
        return found

    def _arms(self, images: Images, turn: int) -> list[Patch]:
        """The patches of one turn of the screen; every turn has other places and another size."""
        height, width, channels = images.shape[1:]
        s, side = self._settings, min(height, width)
        size = max(2, round(s.sizes[turn % len(s.sizes)] * side))
        windows = lattice(height, width, size, s.stride * side, (0.0, 0.5, 0.25, 0.75)[turn % 4])
        arms = [plain(window, colour) for colour in self._palette(images) for window in windows]
        return arms + [checker(window, channels) for window in windows]

    def _palette(self, images: Images) -> list[Images]:
        """Greys alone where the images have no colour of their own."""
        channels = images.shape[3]
        if channels == 3 and bool((images == images[..., :1]).all()):
            return [np.repeat(level, 3) for level in palette(0, 1)]
        return palette(self._settings.hues, channels)

    def _note(
        self,
        found: dict[tuple[int, int], list[Lead]],
        arms: Sequence[Patch],
        rises: Floats,
        classes: Sequence[int],
    ) -> None:
        """Keep each pair's best few arms: the two targets that rise most for each class and arm."""
        keep, own = self._settings.arms_a_pair, np.asarray(classes)
        rises[:, np.arange(len(own)), own] = 0
        over_all = np.sort(rises, axis=1)[:, len(own) // 4 :].mean(axis=1)
        top = np.argpartition(-rises, 1, axis=2)[..., :2]
        for a, arm in enumerate(arms):
            target = int(over_all[a].argmax())
            _keep(found[EVERY, target], Lead(EVERY, target, arm, float(over_all[a, target])), keep)
            for place, source in enumerate(classes):
                for target in top[a, place].tolist():
                    rise = float(rises[a, place, target])
                    if rise > 0.005:
                        _keep(found[source, target], Lead(source, target, arm, rise), keep)

    # -- compare and refine ------------------------------------------------------------------------------

    def _compared(self, leads: Sequence[Lead]) -> list[Lead]:
        """The leads by the differential, first on one image each, then the best of those on several."""
        s = self._settings
        single = strongest_first(lead for lead in leads if lead.source != EVERY)[: s.compared]
        single = strongest_first(self._pair.measured(single, 1))[: s.confirmed]
        joint = strongest_first(lead for lead in leads if lead.source == EVERY)[: s.confirmed // 4]
        return best_of_pairs(self._pair.measured([*single, *joint], s.images), 2)

    def _refined(
        self, pair: Comparison, leads: Sequence[Lead], *, alone: bool, largest: float = 0.0
    ) -> list[Lead]:
        """Move, grow and recolour each lead's patch as long as that makes it stronger."""
        best = list(leads)
        for turn in range(self._settings.refine_rounds):
            proposals = [
                (i, other) for i, lead in enumerate(best) for other in self._neighbours(lead, turn, largest)
            ]
            tried = pair.measured([p for _, p in proposals], self._settings.images, alone=alone)
            for (i, _), lead in zip(proposals, tried, strict=True):
                if lead.strength > best[i].strength:
                    best[i] = lead
        return strongest_first(best)

    def _neighbours(self, lead: Lead, turn: int, largest: float) -> Iterable[Lead]:
        s, window, pixels = self._settings, lead.patch.window, lead.patch.pixels
        height, width = self._panel.images(self._panel.to_find(*lead.pair, 1)).shape[1:3]
        side = min(height, width)
        step = max(1, round((1 if turn else 2) * side / 32))
        flat = bool((pixels == pixels[0, 0]).all())

        def moved(top: float, left: float, size: int, colour: Images) -> Lead:
            where = square(top, left, size, height, width)
            return replace(lead, patch=plain(where, colour) if flat else checker(where, pixels.shape[2]))

        for down, right in ((-step, 0), (step, 0), (0, -step), (0, step)):
            yield moved(window.top + down, window.left + right, window.height, pixels[0, 0])
        for grow in (-step, step):
            size = window.height + grow
            if round(s.smallest * side) <= size <= round((largest or s.largest) * side):
                yield moved(window.top - grow / 2, window.left - grow / 2, size, pixels[0, 0])
        if flat:
            shifts = self._rng.normal(0, 40, (6 if pixels.shape[2] == 3 else 2, pixels.shape[2]))
            for colour in np.clip(pixels[0, 0] + shifts, 0, 255).astype(np.uint8):
                yield moved(window.top, window.left, window.height, colour)

    def _universal(self, leads: Iterable[Lead]) -> tuple[Judged, ...]:
        """The patches that send most classes to one target, by the candidate alone, judged on both models.

        A reference with the same backdoor hides a trigger from every comparison. One that serves for all
        classes still shows. Small patches only: a large one in the middle covers what a small object shows.
        """
        s = self._settings
        side = min(self._panel.images(self._panel.finding[self._panel.classes[0]][:1]).shape[1:3])
        small = (lead for lead in leads if lead.patch.window.height <= round(s.largest_universal * side))
        tried = self._pair.measured(best_of_pairs(small)[: 4 * s.universal], s.images, alone=True)
        best = strongest_first(tried)[: s.universal]
        best = self._refined(self._pair, best, alone=True, largest=s.largest_universal)
        return tuple(self._pair.judge(lead, s.judging) for lead in best)

    # -- the null ----------------------------------------------------------------------------------------

    def _nulls(self, leads: Sequence[Lead], own: dict[tuple[int, int], list[Lead]]) -> list[Lead]:
        """For each lead, the patch that raises the same target most for the reference, found the same way."""
        s = self._settings
        starts = [
            replace(best_of_pairs(own[lead.pair])[0] if own.get(lead.pair) else lead, strength=0.0)
            for lead in leads
        ]
        starts = self._swapped.measured(starts, s.images, alone=True)
        place = {lead.pair: lead for lead in self._refined(self._swapped, starts, alone=True)}
        return [place[lead.pair] for lead in leads]

    def _rise(self, lead: Lead) -> float:
        """How far the lead raises its target for the reference, on fresh images."""
        panel = self._swapped.panel
        rows = panel.to_judge(*lead.pair, self._settings.judging)
        answers = self._swapped.candidate(lead.patch.on(panel.images(rows)))[:, lead.target]
        return float(np.maximum(answers - panel.trusted.candidate[rows, lead.target], 0).mean())


def _keep(leads: list[Lead], lead: Lead, count: int) -> None:
    leads.append(lead)
    if len(leads) > count:
        leads.remove(min(leads, key=lambda other: other.strength))
