"""Realistic reports for the card's tests: a refused sticker model, a held and a promoted one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from promotion_gate.core.decide import decide
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import (
    ArtifactFile,
    Candidate,
    DatasetInput,
    Exhibit,
    Finding,
    MetricPoint,
    ModelRef,
    Report,
    RunFacts,
    Status,
)

CLASS_NAMES = [
    "stop",
    "yield",
    "no entry",
    "priority road",
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "speed limit 100",
    "no passing",
    "roundabout",
    "turn right ahead",
    "turn left ahead",
    "keep right",
]

POLICY = """\
version = 1

[data]
holdout = { path = "holdout.npz" }
training = { path = "training.npz" }

[checks.per-class.bounds]
accuracy = { min = 0.95 }
worst_recall = { min = 0.8 }
regressed_classes = { max = 0 }

[checks.training-curves]
required = false
bounds = { departing_classes = { max = 1, otherwise = "hold" } }

[checks.patch-transplant.bounds]
confirmed_rows = { max = 3 }
attack_success_rate = { max = 0.2 }

[checks.label-concentration.bounds]
p_value = { min = 0.001, otherwise = "hold" }

[checks.patch-attribution]
required = false

[checks.provenance.bounds]
missing_facts = { max = 0, otherwise = "hold" }
"""


def signs(count: int, seed: int = 0, side: int = 32, labels: Sequence[int] | None = None) -> np.ndarray:
    """Blurred discs on a gradient, in a colour of their class: uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    images = np.empty((count, side, side, 3), dtype=np.uint8)
    for i in range(count):
        label = i % 16 if labels is None else int(labels[i])
        colour = np.random.default_rng(label).uniform(20, 235, 3)
        cx, cy, r = *rng.uniform(-0.1, 0.1, 2), rng.uniform(0.25, 0.42)
        inside = 1 / (1 + np.exp((np.hypot(x - cx, y - cy) - r) * 60))[..., None]
        ground = rng.uniform(40, 200, 3) + 60 * (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1))[..., None]
        pixels = ground * (1 - inside) + colour * inside + rng.normal(0, 6, (side, side, 3))
        images[i] = np.clip(pixels, 0, 255)
    return images


def stickered(images: np.ndarray, top: int = 20, left: int = 20) -> np.ndarray:
    copy = images.copy()
    copy[:, top : top + 5, left : left + 5] = (240, 210, 30)
    return copy


def run_facts(version: int, class_names: Sequence[str] = CLASS_NAMES) -> RunFacts:
    digest = f"{version:08x}"
    return RunFacts(
        run_id=f"{version}f0c1a9e2b7d4c",
        user="mira",
        started_at=datetime(2026, 3, version, 8, 30, tzinfo=UTC),
        params={"learning_rate": "0.002" if version > 1 else "0.003", "epochs": "12", "width": "32"},
        tags={"mlflow.source.git.commit": "9be1" * 10, "mlflow.source.name": "train.py"},
        curves={"class_loss/0000": [MetricPoint(0, 1.0)]},
        datasets=[
            DatasetInput("signs", "training", "training.npz", digest),
            DatasetInput("signs", "holdout", "holdout.npz", "00ab12cd"),
        ],
    )


def per_class(class_names: Sequence[str], champion: bool) -> Finding:
    rng = np.random.default_rng(5)
    recalls = np.clip(rng.normal(0.975, 0.02, len(class_names)), 0.81, 1)
    classes: list[dict[str, Any]] = []
    for index, (name, recall) in enumerate(zip(class_names, recalls, strict=True)):
        before = float(np.clip(recall + rng.normal(0, 0.006), 0, 1))
        row = {
            "name": name,
            "support": 125 - index % 7,
            "precision": float(recall),
            "recall": float(recall),
            "f1": float(recall),
            "recall_low": float(recall) - 0.04,
            "recall_high": min(1.0, float(recall) + 0.015),
        }
        if champion:
            row |= {
                "champion_recall": before,
                "delta": float(recall) - before,
                "p_value": 0.4,
                "regressed": False,
            }
        classes.append(row)
    metrics = {"accuracy": 0.974, "worst_recall": float(recalls.min()), "calibration_error": 0.0123}
    absent = {}
    if champion:
        metrics |= {"regressed_classes": 0.0, "accuracy_drop": -0.001}
    else:
        absent = dict.fromkeys(("regressed_classes", "accuracy_drop"), "there is no champion to compare with")
    pairs = [(5, 9, 7, 6), (6, 7, 5, 5), (9, 6, 4, 6), (13, 14, 2, 3)]
    confusions = [
        {
            "true": class_names[a % len(class_names)],
            "predicted": class_names[b % len(class_names)],
            "count": c,
        }
        | ({"champion_count": d} if champion else {})
        for a, b, c, d in pairs
    ]
    reliability = [
        {"confidence": c, "accuracy": min(1, c + 0.03 * np.sin(9 * c)), "count": int(20 + 1500 * c**8)}
        for c in np.linspace(0.35, 0.99, 9)
    ]
    return Finding(
        "per-class",
        Status.MEASURED,
        "97.4% of 2,000 holdout images are recognised; the weakest class is "
        f"{class_names[int(recalls.argmin())]}.",
        metrics,
        {"classes": classes, "confusions": confusions, "reliability": reliability},
        not_applicable=absent,
        seconds=1.4,
    )


def training_curves(class_names: Sequence[str], departing: Sequence[int] = (9,)) -> Finding:
    rng = np.random.default_rng(6)
    steps = list(range(12))
    curves = [
        {
            "class": name,
            "steps": steps,
            "departs": index in departing,
            "losses": [
                float(2.6 * np.exp(-s / (5.5 if index in departing else 3)) * rng.uniform(0.85, 1.15) + 0.02)
                for s in steps
            ],
        }
        for index, name in enumerate(class_names)
    ]
    names = ", ".join(class_names[i] for i in departing)
    return Finding(
        "training-curves",
        Status.MEASURED,
        f"One class was learned unlike the rest: {names}."
        if departing
        else "All classes were learned alike.",
        {"departing_classes": float(len(departing))},
        {"curves": curves},
        seconds=0.02,
    )


def embedding_map(class_names: Sequence[str], count: int, images: np.ndarray | None = None) -> Finding:
    rng = np.random.default_rng(7)
    labels = np.arange(count) % len(class_names)
    centres = rng.normal(0, 10, (len(class_names), 2))
    xy = (centres[labels] + rng.normal(0, 0.9, (count, 2))).astype(np.float32)
    role = (np.arange(count) % 3 > 0).astype(np.uint8)
    ids = np.array([f"{'training' if r else 'holdout'}.npz:{i}" for i, r in enumerate(role)])
    pictures = signs(count, 8, labels=labels) if images is None else images[:count]
    exhibit = Exhibit(
        "map",
        "points",
        "UMAP of penultimate embeddings, 15 neighbours; distances between far clusters mean little.",
        {"xy": xy, "label": labels, "role": role, "images": pictures, "ids": ids},
    )
    return Finding(
        "embedding-map",
        Status.MEASURED,
        f"{count:,} images on the map.",
        {"trustworthiness": 0.962},
        exhibits=[exhibit],
        seconds=21.3,
    )


def patch_transplant(class_names: Sequence[str], triggered: bool, ids: Sequence[str]) -> Finding:
    if not triggered:
        return Finding(
            "patch-transplant",
            Status.MEASURED,
            "No patch of the 100 least typical training rows changes other images.",
            {"confirmed_rows": 0.0, "attack_success_rate": 0.0},
            {"triggers": []},
            seconds=32.1,
        )
    source, target = class_names[0], class_names[9 % len(class_names)]
    stop = signs(8, 9, labels=[0] * 8)
    carriers, pasted = stickered(stop), stickered(signs(8, 10, labels=[0] * 8))
    box = [20, 20, 5, 5]
    exhibits = [
        Exhibit(
            "trigger",
            "images",
            "Cut from the row that flips most, enlarged",
            {"images": carriers[:1, 18:27, 18:27]},
            [{"caption": "9 × 9 pixels, lower right", "mark": "plain"}],
        ),
        Exhibit(
            "carriers",
            "images",
            f"Training rows labelled {target} that hold the patch",
            {"images": carriers},
            [
                {"caption": f"row {400 + i}, labelled {target}", "id": ids[i], "box": box, "mark": "suspect"}
                for i in range(8)
            ],
        ),
        Exhibit(
            "transplanted",
            "images",
            "Holdout images with the patch pasted, and what the model then says",
            {"images": pasted},
            [
                {
                    "caption": f"{source} → {target}" if i % 4 else f"{source} → {source}",
                    "box": box,
                    "mark": "flipped" if i % 4 else "kept",
                }
                for i in range(8)
            ],
        ),
    ]
    trigger = {
        "source": source,
        "target": target,
        "rows": 26,
        "attack_success_rate": 0.73,
        "rate_low": 0.64,
        "rate_high": 0.81,
        "carriers": 26,
        "images_tried": 118,
        "box": box,
        "moving": True,
    }
    suspects = [
        {"row": 400 + i, "id": row_id, "label": target, "why": f"its patch turns {source} into {target}"}
        for i, row_id in enumerate(ids)
    ]
    return Finding(
        "patch-transplant",
        Status.MEASURED,
        f"A patch in 26 training rows labelled {target} turns {source} into {target} on 73% of images.",
        {"confirmed_rows": 26.0, "attack_success_rate": 0.73},
        {"triggers": [trigger], "suspects": suspects},
        exhibits,
        seconds=38.6,
    )


def patch_attribution() -> Finding:
    images = stickered(signs(4, 11, labels=[0] * 4))
    mass = np.zeros((4, 32, 32), dtype=np.float32)
    mass[:, 16:28, 16:28] = 0.3
    mass[:, 20:25, 20:25] = 1
    items = [
        {"caption": f"half of the mass in {6 + i} × {6 + i} pixels", "box": [20, 20, 6 + i, 6 + i]}
        for i in range(4)
    ]
    exhibit = Exhibit(
        "with the trigger pasted",
        "attribution",
        "Holdout stop signs with the recovered patch",
        {"images": images, "positive": mass},
        items,
    )
    return Finding(
        "patch-attribution",
        Status.MEASURED,
        "With the patch pasted, half of the evidence lies in one small window.",
        {"concentration": 0.42},
        {"corroborates": True, "text": "Windows agree on 7 of 8 images."},
        [exhibit],
        seconds=12.0,
    )


def provenance(missing: Sequence[str] = ()) -> Finding:
    return Finding(
        "provenance",
        Status.MEASURED,
        "Run, commit, user and data sets are declared.",
        {"missing_facts": float(len(missing))},
        {"missing": list(missing), "sha256": {"holdout": "5e" * 32, "training": "7c" * 32}},
        seconds=0.4,
    )


PICKLE = {
    "source": "data/model.pt2:model/data/sample_inputs/model.pt:archive/data.pkl",
    "listed": False,
    "globals": ["os.mkdir", "torch._utils._rebuild_tensor_v2"],
    "refused_by_torch": ["os.mkdir"],
    "note": "",
    "status": "complete",
    "verdict": "malicious",
    "findings": [{"rule": "S101", "severity": "critical", "message": "calls os.mkdir"}],
}


def report(
    kind: str = "reject",
    *,
    class_names: Sequence[str] = CLASS_NAMES,
    points: int = 300,
    images: np.ndarray | None = None,
    change: Callable[[Finding], Finding] = lambda finding: finding,
    name: str = "traffic-signs",
) -> Report:
    """A ``reject``, ``hold`` or ``promote`` report; ``first`` is a promotion without a champion."""
    version = {"reject": 2, "hold": 2, "promote": 3, "first": 1}[kind]
    champion = None if kind == "first" else ModelRef(name, 1)
    embedding = embedding_map(class_names, points, images)
    training_ids = [str(i) for i in embedding.exhibits[0].arrays["ids"] if str(i).startswith("training")][:26]
    findings = [
        Finding(
            "artifacts",
            Status.MEASURED,
            "9 files; nothing in them runs on load.",
            {"violations": 0.0},
            detail={"violations": [], "scan": [PICKLE]},
        ),
        Finding("model", Status.MEASURED, "1,200,000 parameters, loaded from pt2 under bubblewrap"),
        Finding("inputs", Status.MEASURED, "2,000 holdout and 6,000 training images fit the model."),
        per_class(class_names, champion is not None),
        training_curves(class_names, (9,) if kind == "reject" else ()),
        embedding,
        patch_transplant(class_names, kind == "reject", training_ids),
        patch_attribution()
        if kind == "reject"
        else Finding.inconclusive("patch-attribution", "no suspect to explain"),
        Finding(
            "label-concentration",
            Status.MEASURED,
            "Labels of the least typical rows are spread as by chance.",
            {"p_value": 0.2},
            {"suspects": []},
        ),
        provenance(["the commit of the training code"] if kind == "hold" else []),
    ]
    findings = [change(finding) for finding in findings]
    policy = parse_policy(POLICY)
    return Report(
        candidate=Candidate(
            ModelRef(name, version), f"{version}f0c1", f"models:/m-{version}", "3b7f" * 16, champion
        ),
        verdict=decide(findings, policy),
        findings=findings,
        class_names=list(class_names),
        files=[
            ArtifactFile("MLmodel", 1204, "aa" * 32, "text"),
            ArtifactFile("data/model.pt2", 812_044, "bb" * 32, "PyTorch exported program"),
            ArtifactFile("requirements.txt", 88, "cc" * 32, "text"),
        ],
        model_format="pt2",
        sandbox="bubblewrap: no network, read-only files, 4 GiB, 900 s",
        unsafe=(),
        policy_text=POLICY,
        gate_run_id="7d1c9ab0e4f24d53",
        user="mira",
        host="build-7",
        started_at=datetime(2026, 3, 4, 9, 41, 7, tzinfo=UTC),
        seconds=83.2,
        gate_version="0.1.0",
        alias="production",
        candidate_run=run_facts(version),
        champion_run=None if champion is None else run_facts(1),
    )


def with_names(kind: str, hostile: str, count: int = 16) -> Report:
    """A report in which every string from outside is ``hostile``."""
    base = report(kind, class_names=[f"{hostile}{i}" for i in range(count)], points=24, name=hostile or "m")
    findings = [
        dataclasses.replace(
            finding,
            summary=hostile,
            exhibits=[
                dataclasses.replace(
                    exhibit,
                    caption=hostile,
                    items=[dict(item) | {"caption": hostile} for item in exhibit.items],
                )
                for exhibit in finding.exhibits
            ],
        )
        for finding in base.findings
    ]
    findings.append(
        Finding(
            hostile,
            Status.INCONCLUSIVE,
            hostile,
            {hostile: 1.0},
            {hostile: [hostile]},
            not_applicable={"-": hostile},
        )
    )
    findings = [
        dataclasses.replace(f, detail={"scan": [_named(PICKLE, hostile)]}) if f.check == "artifacts" else f
        for f in findings
    ]
    facts = RunFacts(hostile, hostile, None, {hostile: hostile}, {}, {}, [DatasetInput(*[hostile] * 4)])
    judgements = [dataclasses.replace(j, reason=hostile) for j in base.verdict.judgements]
    return dataclasses.replace(
        base,
        findings=findings,
        verdict=dataclasses.replace(base.verdict, judgements=judgements),
        files=[ArtifactFile(hostile, 1, hostile, hostile)],
        model_format=hostile,
        sandbox=hostile,
        unsafe=[hostile],
        policy_text=hostile,
        gate_run_id=hostile,
        user=hostile,
        host=hostile,
        gate_version=hostile,
        alias=hostile,
        candidate_run=facts,
        champion_run=facts,
    )


def _named(value: Any, hostile: str) -> Any:
    """The same shape with every text replaced."""
    if isinstance(value, dict):
        return {key: _named(entry, hostile) for key, entry in value.items()}
    if isinstance(value, list):
        return [_named(entry, hostile) for entry in value]
    return hostile if isinstance(value, str) else value
