"""A search for patch triggers without training data: patches learned against the champion."""

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
    leads_of,
    log_probabilities,
    trigger_known,
    trusted_of,
    why_not,
)
from promotion_gate.core.types import Finding
from promotion_gate.detect.differential import Floats, effort_for
from promotion_gate.detect.inversion import PatchInversion, Settings, Slopes
from promotion_gate.evidence.interface import Classifier, Evidence, NoGradients


class TriggerInversionOptions(Options):
    """Options of ``trigger-inversion``.

    ``pairs`` is how many pairs of classes the prior puts forward, ``steps`` how long each patch is learned.
    A pair is suspected from an excess over the null of ``suspect``, and established from ``establish`` on
    where its patch also turns ``rate`` of the fresh images, by the lower end of the 95 % interval.
    """

    pairs: int = Field(default=16, ge=1, le=1000)
    steps: int = Field(default=14, ge=2, le=500)
    suspect: float = Field(default=0.9, gt=0, lt=1)
    establish: float = Field(default=0.93, gt=0, lt=1)
    rate: float = Field(default=0.9, gt=0, lt=1)


class TriggerInversion:
    """Prior, invert, null, judge; see :mod:`promotion_gate.detect.inversion`."""

    name: ClassVar[str] = "trigger-inversion"
    metrics: ClassVar[Mapping[str, str]] = METRICS
    after: ClassVar[tuple[str, ...]] = ("patch-transplant", "sticker-sweep")
    options_type: ClassVar[type[Options]] = TriggerInversionOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = TriggerInversionOptions.model_validate(
            (options or TriggerInversionOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        reason = why_not(evidence)
        champion, answers = evidence.champion, evidence.champion_holdout_pass
        if reason or champion is None or answers is None:
            return Finding.inconclusive(self.name, reason)
        o = self._options
        shape, brief = evidence.model.shape, trigger_known(earlier)
        settings = Settings(pairs=o.pairs, steps=o.steps)
        settings = settings.scaled(effort_for(shape.height, shape.width) * (BRIEF if brief else 1))
        inversion = PatchInversion(
            (answer_of(evidence.model), _slopes(evidence.model, "candidate")),
            (answer_of(champion), _slopes(champion, "champion")),
            trusted_of(evidence, answers),
            (log_probabilities(evidence.holdout_pass), log_probabilities(answers)),
            leads=leads_of(earlier.get("sticker-sweep")),
            settings=settings,
            seed=evidence.seed,
        ).run()
        if not inversion.shown:
            reason = "fewer than two classes have enough trusted images that both models know"
            return Finding.inconclusive(self.name, reason)
        return finding_of(
            self.name,
            inversion.contrasts,
            evidence,
            established=[is_established(c, rate=o.rate, excess=o.establish) for c in inversion.contrasts],
            suspected=[c.excess >= o.suspect for c in inversion.contrasts],
            left_out=inversion.left_out,
            effort={"forwards": inversion.shown, "gradients": inversion.slopes},
            notes=["A short look, since training rows have shown a trigger already."] if brief else [],
        )


def _slopes(model: Classifier, who: str) -> Slopes:
    def slopes(images: Floats, weights: Floats) -> tuple[Floats, Floats]:
        try:
            told = model.gradients(images, weights)
        except NoGradients as error:
            raise NoGradients(f"{who}: {error}") from None
        return told.log_probabilities, told.slopes

    return slopes
