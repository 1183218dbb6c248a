"""A causal search for patch triggers: what a suspect row carries is pasted on trusted images.

The rows are those of the training data, and the images that production saw where the policy names some: the
same search, by itself, so that its bounds and what it says of training rows stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.checks.subject import subject_of
from promotion_gate.core.types import Exhibit, Finding, Status
from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect.transplant import PatchSearch, Search, Settings, Trigger
from promotion_gate.evidence.interface import Evidence, ForwardPass

SHOWN = 12
NO_TRAINING = "no training data: carriers of a trigger cannot be looked for"


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
        "live_confirmed": "the same as confirmed_rows, of the live images that the policy names as suspects",
        "live_carriers": "the same as carriers, of these live images",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = PatchTransplantOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = PatchTransplantOptions.model_validate(
            (options or PatchTransplantOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        training = self._look(
            evidence, evidence.training, evidence.training_pass, evidence.champion_training_pass
        )
        live = self._look(
            evidence, evidence.suspects, evidence.suspects_pass, evidence.champion_suspects_pass, live=True
        )
        looks = [look for look in (training, live) if look is not None]
        if not looks:
            return Finding.inconclusive(self.name, NO_TRAINING)
        finding = _finding(self.name, looks, evidence)
        return finding if training is not None or finding.metrics["triggers"] else _in_doubt(finding)

    def _look(
        self,
        evidence: Evidence,
        rows: ImageDataset | None,
        answers: ForwardPass | None,
        champion_answers: ForwardPass | None,
        *,
        live: bool = False,
    ) -> _Look | None:
        """Search some rows by the same steps and bounds; None where there are none."""
        if rows is None or answers is None:
            return None
        subject = subject_of(evidence, rows, answers, champion_answers)
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
            fill_null=not live,
            seed=evidence.seed,
            progress=evidence.progress,
        ).run()
        return _Look(search, rows, live, int((answers.predictions == rows.labels).sum()))


@dataclass(frozen=True, slots=True)
class _Look:
    """One search, and the rows it was on: training rows, or live images that the policy names as suspects.

    ``agreed`` is how many of them the candidate answers as they are labelled: on the others it follows no
    trigger.
    """

    search: Search
    rows: ImageDataset
    live: bool
    agreed: int

    @property
    def effort(self) -> dict[str, int]:
        return {
            "screened": len(self.search.screened),
            "probed": len(self.search.probed),
            "transplanted": self.search.transplanted,
            "forwards": self.search.forwards,
            "champion_forwards": self.search.champion_forwards,
        }

    @property
    def detail(self) -> dict[str, Any]:
        """The live images in the JSON report, with the digest that says which they were."""
        return {
            "uri": self.rows.uri,
            "images": len(self.rows),
            "answered_alike": self.agreed,
            "sha256": self.rows.sha256(),
            "effort": self.effort,
        }

    def most(self, count: Callable[[Trigger], int]) -> float:
        return float(max((count(trigger) for trigger in self.search.triggers), default=0))


def _finding(name: str, looks: Sequence[_Look], evidence: Evidence) -> Finding:
    names = evidence.class_names
    found = sorted(
        ((look, trigger) for look in looks for trigger in look.search.triggers),
        key=lambda one: (not one[1].established, one[0].live),
    )
    triggers = [_trigger_detail(look, trigger, names) for look, trigger in found]
    metrics = {
        "triggers": float(sum(t.established for _, t in found)),
        "suspected_triggers": float(sum(not t.established for _, t in found)),
        "attack_success_rate": triggers[0]["attack_success_rate"] if triggers else 0.0,
    }
    absent = {}
    for metric, count in (("confirmed_rows", _confirmed), ("carriers", _carriers)):
        metrics |= {_metric(metric, look): look.most(count) for look in looks}
        if all(look.live for look in looks):
            absent[metric] = "there is no training data"
    detail: dict[str, Any] = {"triggers": triggers}
    suspects = {live: list(_suspects(found, names, live=live)) for live in (False, True)}
    for look in looks:
        if look.live:
            detail |= {"live": look.detail, "live_suspects": suspects[True]}
        else:
            detail |= {"effort": look.effort, "suspects": suspects[False]}
    windows = sum(look.search.transplanted for look in looks)
    live = next((look for look in looks if look.live), None)
    if not found:
        summary = f"no patch trigger found; {windows} windows were pasted on trusted images"
        if live is not None:
            summary += f"; {live.agreed} of {len(live.rows)} live images are answered as production did"
        return Finding(name, Status.MEASURED, summary, metrics, detail, not_applicable=absent)
    return Finding(
        name,
        Status.MEASURED,
        _summary(triggers[0], live),
        metrics,
        detail,
        _exhibits(*found[0], evidence),
        not_applicable=absent,
    )


def _in_doubt(finding: Finding) -> Finding:
    """Live images speak against a candidate or not at all: a harmless few do not stand for training rows."""
    suspected = {name: finding.metrics[name] for name in ("suspected_triggers",) if finding.metrics[name]}
    summary = f"{NO_TRAINING}; in live images: {finding.summary}"
    return replace(finding, status=Status.INCONCLUSIVE, summary=summary, metrics=suspected)


def _summary(lead: Mapping[str, Any], live: _Look | None) -> str:
    carried = "live images" if lead["live"] else "training rows"
    summary = (
        f"a patch turns {lead['source']} into {lead['target']} on {lead['attack_success_rate']:.0%} of"
        f" {lead['images_tried']} fresh trusted images; {lead['carriers_found']} {carried} carry it"
    )
    if not lead["live"] and live is not None:
        carrying = int(live.most(_carriers))
        summary += f"; {carrying} of {len(live.rows)} live images carry one" if carrying else ""
    if not lead["established"]:
        summary = f"suspected, not established: {summary}"
        if (shared := lead["champion_rate"]) is not None and shared > lead["attack_success_rate"] / 2:
            summary += f"; the champion does the same on {shared:.0%}: a natural part, or both are poisoned"
    return summary


def _metric(name: str, look: _Look) -> str:
    return {"confirmed_rows": "live_confirmed", "carriers": "live_carriers"}[name] if look.live else name


def _confirmed(trigger: Trigger) -> int:
    return len(trigger.confirmed)


def _carriers(trigger: Trigger) -> int:
    return len(trigger.carriers)


def _suspects(
    found: Sequence[tuple[_Look, Trigger]], names: Sequence[str], *, live: bool
) -> Iterator[dict[str, Any]]:
    for look, trigger in found:
        if look.live != live:
            continue
        for row in trigger.carriers:
            turned = f"turns {names[_source(trigger)]} into {names[trigger.target]}"
            yield {
                "row": row,
                "id": look.rows.ids[row],
                "label": names[trigger.target],
                "why": f"{'live image: ' if live else ''}carries the patch that {turned}",
            }


def _source(trigger: Trigger) -> int:
    return next(iter(trigger.sources))


def _trigger_detail(look: _Look, trigger: Trigger, names: Sequence[str]) -> dict[str, Any]:
    """``rows`` and ``carriers`` are training rows; those of ``live`` images have names of their own."""
    flips = trigger.flips
    rows, carriers = [c.probe.row for c in trigger.confirmed], list(trigger.carriers)
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
        "live": look.live,
        "rows": [] if look.live else rows,
        "carriers": [] if look.live else carriers,
        "live_rows": rows if look.live else [],
        "live_carriers": carriers if look.live else [],
        "carriers_found": len(carriers),
        "box": flips.place.box,
        "moving": trigger.moving,
    }


def _exhibits(look: _Look, trigger: Trigger, evidence: Evidence) -> tuple[Exhibit, ...]:
    names = evidence.class_names
    target = names[trigger.target]
    shown = trigger.confirmed[:SHOWN]
    carriers = look.rows.read([c.probe.row for c in shown], evidence.model.shape)
    labelled = "predicted" if look.live else "labelled"
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
            f"{'live images' if look.live else 'training rows'} {labelled} {target} that carry it",
            {"images": carriers},
            tuple(
                {
                    "caption": f"{labelled} {target}, under the patch {names[c.probe.source]}",
                    "id": look.rows.ids[c.probe.row],
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
