"""A search for patch triggers without training data: plain stickers on trusted images, and the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.checks.recovered import (
    BRIEF,
    METRICS,
    answer_of,
    finding_of,
    is_established,
    trigger_known,
    trusted_of,
    why_not,
)
from promotion_gate.core.types import Finding
from promotion_gate.detect.differential import effort_for
from promotion_gate.detect.sweep import PatchSweep, Settings, Sweep
from promotion_gate.evidence.interface import Evidence

LEADS = 12
"""How many pairs an inversion is given to go on from."""
SHARED_RATE = 0.85
"""Share of all classes' images that one patch must turn in both models to be named. A large bright patch in
the middle of a sign turned up to 0.63 in clean models of real signs, a trigger for all classes over 0.9."""


class StickerSweepOptions(Options):
    """Options of ``sticker-sweep``.

    ``images`` bounds what the screen shows to the candidate, for images up to 64 x 64 pixels; larger ones get
    less by their area. A pair is suspected from an excess over the null
    of ``suspect``, and established from ``establish`` on where its patch also turns ``rate`` of the fresh
    images, by the lower end of the 95 % interval. Clean models had an excess of up to 0.79, where a square of
    8 pixels repaints a digit, and of 0.52, where one of 7 pixels paints over the 2 of a real limit of 120.
    """

    images: int = Field(default=20_000, ge=500)
    hues: int = Field(default=12, ge=3, le=60)
    suspect: float = Field(default=0.6, gt=0, lt=1)
    establish: float = Field(default=0.85, gt=0, lt=1)
    rate: float = Field(default=0.8, gt=0, lt=1)


class StickerSweep:
    """Screen, compare, refine, judge; see :mod:`promotion_gate.detect.sweep`."""

    name: ClassVar[str] = "sticker-sweep"
    metrics: ClassVar[Mapping[str, str]] = {
        **METRICS,
        "shared_targets": "targets to which one patch sends most classes, in candidate and champion alike",
    }
    after: ClassVar[tuple[str, ...]] = ("patch-transplant",)
    options_type: ClassVar[type[Options]] = StickerSweepOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = StickerSweepOptions.model_validate((options or StickerSweepOptions()).model_dump())

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        reason = why_not(evidence)
        champion, answers = evidence.champion, evidence.champion_holdout_pass
        if reason or champion is None or answers is None:
            return Finding.inconclusive(self.name, reason)
        shape, brief = evidence.model.shape, trigger_known(earlier)
        settings = Settings(screen_images=self._options.images, hues=self._options.hues)
        settings = settings.scaled(effort_for(shape.height, shape.width) * (BRIEF if brief else 1))
        sweep = PatchSweep(
            answer_of(evidence.model),
            answer_of(champion),
            trusted_of(evidence, answers),
            settings=settings,
            seed=evidence.seed,
            progress=evidence.progress,
        ).run()
        return self._finding(sweep, evidence, brief=brief)

    def _finding(self, sweep: Sweep, evidence: Evidence, *, brief: bool) -> Finding:
        o, names = self._options, evidence.class_names
        if not sweep.shown:
            reason = "fewer than two classes have enough trusted images that both models know"
            return Finding.inconclusive(self.name, reason)
        established = [is_established(c, rate=o.rate, excess=o.establish) for c in sweep.contrasts]
        shared = [
            judged
            for judged in sweep.universal
            if min(judged.turned, judged.moved) >= SHARED_RATE * max(judged.images, 1)
        ]
        notes = [
            f"One patch sends {j.turned / j.images:.0%} of the images of all classes to"
            f" {names[j.lead.target]} for the candidate and {j.moved_rate:.0%} for the champion: both may be"
            " poisoned, and the comparison of the two is blind to it."
            for j in shared
        ]
        if brief:
            notes.append("A short look, since training rows have shown a trigger already.")
        return finding_of(
            self.name,
            sweep.contrasts,
            evidence,
            established=established,
            suspected=[c.excess >= o.suspect for c in sweep.contrasts],
            left_out=sweep.left_out,
            effort={"forwards": sweep.shown},
            notes=notes,
            metrics={"shared_targets": float(len({judged.lead.target for judged in shared}))},
            leads=sweep.leads[:LEADS],
        )
