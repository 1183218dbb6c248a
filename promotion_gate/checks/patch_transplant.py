"""A causal search for patch triggers: what a suspect row carries is pasted on trusted images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.checks.subject import subject_of
from promotion_gate.core.types import Exhibit, Finding, Status
from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect.transplant import PatchSearch, Search, Settings, Trigger
from promotion_gate.evidence.interface import Evidence

SHOWN = 12


class PatchTransplantOptions(Options):
    """Options of ``patch-transplant``.

    ``confirm_rate`` is how many of the trusted images a row's window must turn, beyond the null, for the
    row to count; ``consensus`` how many such rows make a trigger; ``suspects`` how many rows are probed.
    """

    confirm_rate: float = Field(default=0.35, gt=0, lt=1)
    consensus: int = Field(default=3, ge=2)
    suspects: int = Field(default=48, ge=10, le=5000)


class PatchTransplant:
    """Anchor, occlude, transplant, consensus; see :mod:`promotion_gate.detect.transplant`."""

    name: ClassVar[str] = "patch-transplant"
    metrics: ClassVar[Mapping[str, str]] = {
        "triggers": "patch triggers recovered, their success on fresh trusted images clear of chance",
        "suspected_triggers": "patch triggers that rows agree on, weak on fresh images or the champion's too",
        "confirmed_rows": "training rows whose window was confirmed for the leading trigger",
        "carriers": "training rows that carry the leading trigger",
        "attack_success_rate": "share of fresh trusted images of the source that the leading trigger turns",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = PatchTransplantOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = PatchTransplantOptions.model_validate(
            (options or PatchTransplantOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        answers = evidence.training_pass
        if evidence.training is None or answers is None:
            return Finding.inconclusive(
                self.name, "no training data: carriers of a trigger cannot be looked for"
            )
        subject = subject_of(evidence, evidence.training, answers)
        search = PatchSearch(
            subject.model,
            subject.champion,
            subject.training,
            subject.trusted,
            settings=Settings(
                confirm_rate=self._options.confirm_rate,
                consensus=self._options.consensus,
                suspects=self._options.suspects,
            ),
            seed=evidence.seed,
            progress=evidence.progress,
        ).run()
        return _finding(self.name, search, evidence, evidence.training)


def _finding(name: str, search: Search, evidence: Evidence, training: ImageDataset) -> Finding:
    names = evidence.class_names
    triggers = [_trigger_detail(trigger, names) for trigger in search.triggers]
    metrics = {
        "triggers": float(sum(t.established for t in search.triggers)),
        "suspected_triggers": float(sum(not t.established for t in search.triggers)),
        "confirmed_rows": float(max((len(t.confirmed) for t in search.triggers), default=0)),
        "carriers": float(max((len(t.carriers) for t in search.triggers), default=0)),
        "attack_success_rate": triggers[0]["attack_success_rate"] if triggers else 0.0,
    }
    effort = {
        "screened": len(search.screened),
        "probed": len(search.probed),
        "transplanted": search.transplanted,
        "forwards": search.forwards,
        "champion_forwards": search.champion_forwards,
    }
    suspects = [
        {
            "row": row,
            "id": training.ids[row],
            "label": names[trigger.target],
            "why": f"carries the patch that turns {names[_source(trigger)]} into {names[trigger.target]}",
        }
        for trigger in search.triggers
        for row in trigger.carriers
    ]
    if not triggers:
        summary = f"no patch trigger found; {search.transplanted} windows were pasted on trusted images"
        return Finding(name, Status.MEASURED, summary, metrics, {"triggers": [], "effort": effort})
    lead = triggers[0]
    summary = (
        f"a patch turns {lead['source']} into {lead['target']} on {lead['attack_success_rate']:.0%} of"
        f" {lead['images_tried']} fresh trusted images; {lead['carriers_found']} training rows carry it"
    )
    if not search.triggers[0].established:
        summary = f"suspected, not established: {summary}"
        if (shared := lead["champion_rate"]) is not None and shared > lead["attack_success_rate"] / 2:
            summary += f"; the champion does the same on {shared:.0%}: a natural part, or both are poisoned"
    return Finding(
        name,
        Status.MEASURED,
        summary,
        metrics,
        {"triggers": triggers, "suspects": suspects, "effort": effort},
        _exhibits(search.triggers[0], evidence, training),
    )


def _source(trigger: Trigger) -> int:
    return next(iter(trigger.sources))


def _trigger_detail(trigger: Trigger, names: tuple[str, ...]) -> dict[str, Any]:
    flips = trigger.flips
    return {
        "source": names[_source(trigger)],
        "target": names[trigger.target],
        "source_index": _source(trigger),
        "target_index": trigger.target,
        "sources": {names[source]: rows for source, rows in trigger.sources.items()},
        "attack_success_rate": flips.rate,
        "rate_low": trigger.low,
        "rate_high": trigger.high,
        "images_tried": flips.images,
        "established": trigger.established,
        "champion_rate": flips.champion_rate,
        "null_rate": trigger.null_rate,
        "confirmed_rows": len(trigger.confirmed),
        "rows": [c.probe.row for c in trigger.confirmed],
        "carriers": list(trigger.carriers),
        "carriers_found": len(trigger.carriers),
        "box": flips.place.box,
        "moving": trigger.moving,
    }


def _exhibits(trigger: Trigger, evidence: Evidence, training: ImageDataset) -> tuple[Exhibit, ...]:
    names = evidence.class_names
    target = names[trigger.target]
    shown = trigger.confirmed[:SHOWN]
    carriers = training.read([c.probe.row for c in shown], evidence.model.shape)
    by_flip = np.argsort(trigger.answers != trigger.target, kind="stable")[:SHOWN]
    before = evidence.holdout.read(trigger.stamped_rows[by_flip], evidence.model.shape)
    return (
        Exhibit(
            "trigger",
            "images",
            f"the recovered patch, {trigger.exemplar.window.height} x {trigger.exemplar.window.width} pixels",
            {"images": trigger.exemplar.patch[None]},
            ({"caption": f"turns {names[_source(trigger)]} into {target}", "mark": "suspect"},),
        ),
        Exhibit(
            "carriers",
            "images",
            f"training rows labelled {target} that carry it",
            {"images": carriers},
            tuple(
                {
                    "caption": f"labelled {target}, under the patch {names[c.probe.source]}",
                    "id": training.ids[c.probe.row],
                    "box": c.probe.window.box,
                    "mark": "suspect",
                }
                for c in shown
            ),
        ),
        Exhibit(
            "transplanted",
            "images",
            f"trusted images of {names[_source(trigger)]} with the patch pasted on",
            {"images": trigger.stamped[by_flip], "before": before},
            tuple(
                {
                    "caption": f"now {names[int(answer)]}",
                    "id": evidence.holdout.ids[int(row)],
                    "box": trigger.flips.place.box,
                    "mark": "flipped" if answer == trigger.target else "kept",
                }
                for row, answer in zip(trigger.stamped_rows[by_flip], trigger.answers[by_flip], strict=True)
            ),
        ),
    )
