"""Where on an image SHAP sees the evidence for a class: a witness for the patch search, never the judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import JSON, Exhibit, Finding, Status
from promotion_gate.data.interface import ImageDataset, Images
from promotion_gate.detect.attribution import lies_on, position_consensus
from promotion_gate.detect.windows import Window
from promotion_gate.evidence.attributions import CELLS, Explained, explained, forwards
from promotion_gate.evidence.interface import Classifier, Evidence, Float32

NOTE = (
    "SHAP corroborates patch-transplant and never decides. How concentrated the evidence is does not by "
    "itself tell poisoned rows from clean ones, and explainers miss part of a trigger in most backdoored "
    "models (Lin et al., KDD 2021). The transplant is the causal test."
)
Rows = NDArray[np.int64]


class PatchAttributionOptions(Options):
    """Options of ``patch-attribution``.

    ``images`` of each group are explained (suspects, images with the recovered trigger, the same without
    it), and ``extremes`` trusted images of high and of low confidence each. ``permutations`` makes the
    values of the groups steadier at 129 forwards an image; extremes and the champion get one.
    """

    images: int = Field(default=6, ge=1, le=50)
    extremes: int = Field(default=3, ge=0, le=50)
    permutations: int = Field(default=2, ge=1, le=20)


class PatchAttribution:
    """Permutation SHAP on a grid of cells, for the rows and the trigger that the patch search names."""

    name: ClassVar[str] = "patch-attribution"
    metrics: ClassVar[Mapping[str, str]] = {
        "trigger_overlap": "share of images with the recovered trigger where SHAP's evidence lies on it",
        "concentration_suspects": "how concentrated the evidence is on suspect rows, 0 to 1",
        "concentration_holdout": "how concentrated the evidence is on trusted images, 0 to 1",
    }
    after: ClassVar[tuple[str, ...]] = ("patch-transplant",)
    options_type: ClassVar[type[Options]] = PatchAttributionOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = PatchAttributionOptions.model_validate(
            (options or PatchAttributionOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        options, permutations = self._options, self._options.permutations
        trigger = _recovered(earlier.get("patch-transplant"), evidence, options.images)
        suspects = _suspects(evidence, trigger, options.images)
        groups = [g for g in (suspects, *(trigger.groups if trigger else ())) if g is not None]
        evidence.progress(f"SHAP on {sum(len(g.images) for g in groups) + 2 * options.extremes} images")
        extremes = _extremes(evidence, options.extremes)
        seen = {g.name: _explained(evidence.model, g, permutations, evidence.seed) for g in groups}
        if extremes is not None:
            groups.append(extremes)
            seen[extremes.name] = _explained(evidence.model, extremes, 1, evidence.seed)
        by_champion = {}
        if evidence.champion is not None and _alike(evidence):
            for group in groups:
                if group is not extremes:
                    by_champion[group.name] = _explained(evidence.champion, group, 1, evidence.seed)
        if not seen:
            return Finding.inconclusive(self.name, "there are no images to explain")
        return self._report(evidence, trigger, groups, seen, by_champion)

    def _report(
        self,
        evidence: Evidence,
        trigger: _Recovered | None,
        groups: Sequence[_Group],
        seen: Mapping[str, Explained],
        by_champion: Mapping[str, Explained],
    ) -> Finding:
        stickered = [g for g in groups if g.name == "stickered"]
        overlap = _overlap(stickered, seen)
        without = _overlap([g for g in groups if g.name == "plain"], seen)
        corroborates = None if overlap is None else overlap >= 0.5 and (without is None or without < 0.5)
        measured = {"concentration_suspects": "suspects", "concentration_holdout": "holdout"}
        metrics = {metric: seen[name].concentration for metric, name in measured.items() if name in seen}
        absent = {
            metric: "there are no such images to explain"
            for metric, name in measured.items()
            if name not in seen
        }
        if overlap is None:
            absent["trigger_overlap"] = "no trigger was recovered"
        else:
            metrics["trigger_overlap"] = overlap
        cells = min(CELLS, evidence.model.shape.height, evidence.model.shape.width)
        reach = min(evidence.model.shape.height, evidence.model.shape.width) / cells
        detail: dict[str, Any] = {
            "note": NOTE,
            "corroborates": corroborates,
            "overlap_without_trigger": without,
            "overlap_champion": _overlap(stickered, by_champion) if by_champion else None,
            "seed": evidence.seed,
            "forwards": sum(
                forwards(len(g.images), 1 if g.name == "holdout" else self._options.permutations, cells)
                for g in groups
            ),
            "champion_forwards": sum(forwards(len(e.windows), 1, cells) for e in by_champion.values()),
            "groups": [
                {
                    "name": group.name,
                    "model": who,
                    "images": len(group.images),
                    "concentration": of[group.name].concentration,
                    "position_consensus": position_consensus(of[group.name].windows, reach),
                }
                for who, of in (("candidate", seen), ("champion", by_champion))
                for group in groups
                if group.name in of
            ],
        }
        exhibits = [_exhibit(group, seen[group.name], "") for group in groups]
        exhibits += [_exhibit(g, by_champion[g.name], "champion ") for g in groups if g.name in by_champion]
        summary = _summary(overlap, without, len(stickered[0].images) if stickered else 0, metrics)
        return Finding(
            self.name, Status.MEASURED, summary, metrics, detail, tuple(exhibits), not_applicable=absent
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """Images to explain, each for one class; ``boxes`` are where the trigger is or would be."""

    name: str
    caption: str
    images: Images = field(repr=False, compare=False)
    targets: Rows
    captions: Sequence[str]
    ids: Sequence[str]
    boxes: Sequence[Window] = ()


@dataclass(frozen=True, slots=True)
class _Recovered:
    """The leading trigger of the patch search; ``carriers`` are rows of the live images where ``live``."""

    target: int
    carriers: Rows
    live: bool
    groups: Sequence[_Group]


def _explained(model: Classifier, group: _Group, permutations: int, seed: int) -> Explained:
    return explained(model.forward, group.images, group.targets, permutations=permutations, seed=seed)


def _alike(evidence: Evidence) -> bool:
    champion = evidence.champion
    return (
        champion is not None
        and champion.shape == evidence.model.shape
        and champion.classes == evidence.model.classes
    )


def _overlap(groups: Sequence[_Group], seen: Mapping[str, Explained]) -> float | None:
    """Share of the images whose window lies on the trigger's box; None without such a group."""
    marked = [
        lies_on(window, box, min(group.images.shape[1:3]) / CELLS)
        for group in groups
        if group.name in seen
        for window, box in zip(seen[group.name].windows, group.boxes, strict=True)
    ]
    return float(np.mean(marked)) if marked else None


def _recovered(search: Finding | None, evidence: Evidence, limit: int) -> _Recovered | None:
    """The trigger that the patch search reports first, with its images where they fit the model."""
    triggers = () if search is None else search.detail.get("triggers") or ()
    if search is None or not triggers:
        return None
    lead = triggers[0]
    target = int(lead["target_index"])
    live = lead.get("live") is True
    carriers = np.asarray(lead.get("live_carriers" if live else "carriers", ()), dtype=np.int64)
    exhibit = next((e for e in search.exhibits if e.name == "transplanted"), None)
    groups = () if exhibit is None else _transplanted(exhibit, lead, evidence, limit)
    return _Recovered(target, carriers, live, groups)


def _transplanted(
    exhibit: Exhibit, lead: Mapping[str, Any], evidence: Evidence, limit: int
) -> tuple[_Group, ...]:
    shape, target = evidence.model.shape, int(lead["target_index"])
    images = np.asarray(exhibit.arrays.get("images", ()))
    if images.ndim != 4 or images.shape[1:] != (shape.height, shape.width, shape.channels):
        return ()
    items = list(exhibit.items) or [{} for _ in images]
    flipped = [i for i, item in enumerate(items) if item.get("mark", "flipped") == "flipped"][:limit]
    if not flipped or len(items) != len(images):
        return ()
    boxes = [_window(items[i].get("box") or lead["box"]) for i in flipped]
    ids = [str(items[i].get("id", "")) for i in flipped]
    targets = np.full(len(flipped), target, dtype=np.int64)
    asked = [f"evidence for {_short(evidence.class_names[target])}"] * len(flipped)
    groups = [
        _Group(
            "stickered",
            "trusted images with the recovered trigger pasted",
            images[flipped],
            targets,
            asked,
            ids,
            boxes,
        )
    ]
    before = np.asarray(exhibit.arrays.get("before", ()))
    if before.shape == images.shape:
        groups.append(
            _Group(
                "plain", "the same images without the trigger", before[flipped], targets, asked, ids, boxes
            )
        )
    return tuple(groups)


def _window(box: Any) -> Window:
    top, left, height, width = (int(edge) for edge in box)
    return Window(top, left, height, width)


def _suspects(evidence: Evidence, trigger: _Recovered | None, limit: int) -> _Group | None:
    """Carriers of the trigger, else the head of the anchor ranking among rows the model agrees with."""
    if trigger is not None and trigger.live and evidence.suspects is not None and len(trigger.carriers):
        seen, rows = evidence.suspects, trigger.carriers[:limit]
        caption = "live images that carry the recovered trigger"
        return _of_rows("suspects", caption, seen, rows, np.asarray(seen.labels)[rows], evidence, "predicted")
    training, answers, anchor = evidence.training, evidence.training_pass, evidence.anchor
    if training is None or answers is None or anchor is None:
        return None
    labels = np.asarray(training.labels)
    if trigger is not None and not trigger.live and len(trigger.carriers):
        rows, caption = trigger.carriers[:limit], "training rows that carry the recovered trigger"
    else:
        agreeing = np.flatnonzero(answers.predictions == labels)
        rows = agreeing[np.argsort(-anchor[agreeing], kind="stable")[:limit]]
        caption = "training rows farthest from trusted images of their label"
    if not len(rows):
        return None
    return _of_rows("suspects", caption, training, rows, labels[rows], evidence, "labelled")


def _extremes(evidence: Evidence, count: int) -> _Group | None:
    """Trusted images on which the candidate is most and least confident."""
    answers = evidence.holdout_pass
    confidence = answers.probabilities().max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    rows = order[np.unique(np.r_[np.arange(min(count, len(order))), np.arange(len(order))[-count:]])]
    if count == 0 or not len(rows):
        return None
    caption = "trusted images of high and of low confidence, evidence for the predicted class"
    return _of_rows(
        "holdout",
        caption,
        evidence.holdout,
        rows,
        answers.predictions[rows],
        evidence,
        "predicted",
        confidence,
    )


def _of_rows(
    name: str,
    caption: str,
    dataset: ImageDataset,
    rows: Rows,
    targets: Rows,
    evidence: Evidence,
    verb: str,
    confidence: Float32 | None = None,
) -> _Group:
    captions = [f"{verb} {_short(evidence.class_names[target])}" for target in targets.tolist()]
    if confidence is not None:
        captions = [
            f"{text} at {confidence[row]:.0%}" for text, row in zip(captions, rows.tolist(), strict=True)
        ]
    ids = [dataset.ids[row] for row in rows.tolist()]
    return _Group(name, caption, dataset.read(rows, evidence.model.shape), targets, captions, ids)


def _exhibit(group: _Group, seen: Explained, who: str) -> Exhibit:
    caption = (
        f"{group.caption}{', as the champion sees them' if who else ''}; the box holds half of the evidence"
    )
    return Exhibit(
        f"{who}{group.name}",
        "attribution",
        caption,
        {"images": group.images, "positive": seen.positive},
        tuple(_items(group, seen.windows)),
    )


def _items(group: _Group, windows: Iterable[Window | None]) -> Iterable[Mapping[str, JSON]]:
    mark = {"suspects": "suspect", "stickered": "flipped"}.get(group.name, "plain")
    for text, name, window in zip(group.captions, group.ids, windows, strict=True):
        item: dict[str, JSON] = {"caption": text, "id": name, "mark": mark}
        if window is not None:
            item["box"] = window.box
        else:
            item["caption"] = f"{text}; no evidence to locate"
        yield item


def _short(name: str) -> str:
    return f"{name!r:.60}"


def _summary(overlap: float | None, without: float | None, images: int, metrics: Mapping[str, float]) -> str:
    if overlap is None:
        shown = ", ".join(
            f"{name.removeprefix('concentration_')} {value:.2f}" for name, value in metrics.items()
        )
        return f"no recovered trigger to corroborate; concentration of the evidence: {shown}"
    text = f"SHAP's evidence lies on the recovered trigger in {overlap:.0%} of {images} images that carry it"
    return text if without is None else f"{text} and in {without:.0%} of the same images without it"
