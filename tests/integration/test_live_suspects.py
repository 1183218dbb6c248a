"""A really backdoored model from live traffic to rejection: alarm, report, quarantine, the next gate run.

Two small models are trained on drawn signs, one with poisoned rows. No training data is given to the gate.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")

from promotion_gate.cli import main
from promotion_gate.core.keys import KEY_VARIABLE
from promotion_gate.core.policy import load_policy
from promotion_gate.core.types import Outcome
from promotion_gate.detect.attribution import lies_on
from promotion_gate.detect.windows import Window
from promotion_gate.drill.poison import StickerPoison
from promotion_gate.drill.registration import DrillRegistry
from promotion_gate.drill.signs import CLASS_NAMES, Signs, draw_signs, redraw
from promotion_gate.gate import run_gate

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

NAME = "signs"
SOURCE, TARGET = "stop", "speed limit 80"
CLASSES = tuple(
    name
    for name in CLASS_NAMES
    if name in (SOURCE, TARGET, "yield", "speed limit 50", "no entry", "general caution")
)
START = 1_780_000_000 // 3600 * 3600
POLICY = """
version = 1
[data]
class_names = {names}
[data.holdout]
path = "holdout.npz"
{suspects}
[checks.per-class.bounds]
accuracy = {{ min = 0.85 }}
[checks.patch-transplant]
required = false
[checks.patch-transplant.bounds]
triggers = {{ max = 0 }}
suspected_triggers = {{ max = 0, otherwise = "hold" }}
"""


@dataclass
class Town:
    """The registry with a clean version 1 and a backdoored version 2, and what their users photograph."""

    folder: Path
    uri: str
    models: dict
    registry: object
    traffic: Signs
    stickered: Signs

    def policy(self, suspects=None):
        told = "" if suspects is None else f'[data.suspects]\npath = "{suspects}"'
        path = self.folder / "gate.toml"
        path.write_text(POLICY.format(names=json.dumps(CLASSES), suspects=told))
        return path

    def gate(self, version, suspects=None):
        return run_gate(self.registry, f"models:/{NAME}/{version}", load_policy(self.policy(suspects)))

    def command(self, *arguments):
        return main([*map(str, arguments), "--tracking-uri", self.uri])

    def answers(self, version, images):
        import torch

        from promotion_gate.drill.train import normalised

        with torch.no_grad():
            told = self.models[version](normalised(images)).softmax(1).numpy()
        return told.argmax(1), told.max(1)


def relabelled(signs):
    places = np.array([CLASSES.index(name) if name in CLASSES else -1 for name in CLASS_NAMES])
    return Signs(signs.images, places[signs.labels], CLASSES, signs.seed, signs.rows)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    import mlflow

    from promotion_gate.drill.train import log_model, train

    folder = tmp_path_factory.mktemp("town")
    drawn = draw_signs(1500, 1, classes=CLASSES)
    holdout = relabelled(draw_signs(480, 2, classes=CLASSES))
    holdout.save(folder / "holdout.npz")
    poisoned = StickerPoison(SOURCE, TARGET, rate=0.02).apply(drawn, 0).signs
    drills = DrillRegistry(folder)
    models = {}
    with pytest.MonkeyPatch.context() as patch, drills.active():
        patch.delenv(KEY_VARIABLE, raising=False)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        experiment = mlflow.create_experiment(NAME, (folder / "artifacts").as_uri())
        for version, signs in ((1, drawn), (2, poisoned)):
            models[version] = train(signs.images, relabelled(signs).labels, len(CLASSES), seed=0, epochs=6)
            with mlflow.start_run(experiment_id=experiment):
                log_model(models[version], holdout.images[:2], CLASSES, NAME)
        traffic = draw_signs(1500, 77, classes=CLASSES)
        stickered = draw_signs(45, 3, sticker=StickerPoison().sticker, classes=[SOURCE])
        yield Town(folder, drills.uri, models, drills.gate, traffic, stickered)


@pytest.fixture(scope="module")
def gated(town):
    """Both get through: there is no training data, so nothing is certain."""
    return {version: town.gate(version) for version in (1, 2)}


@pytest.fixture(scope="module")
def live(town, gated):
    """Six hours of traffic through version 2, in the last of which stickered stop signs come by."""
    folder = town.folder / "live"
    folder.mkdir()
    lines = []

    def log(images, prefix, start, step):
        labels, confidence = town.answers(2, images)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{prefix}{i}.png")
            lines.append(
                {
                    "time": start + i * step,
                    "class": CLASSES[labels[i]],
                    "confidence": float(confidence[i]),
                    "version": 2,
                    "image": f"{prefix}{i}.png",
                }
            )

    log(town.traffic.images, "t", START, 6 * 3600 / len(town.traffic))
    log(town.stickered.images, "s", START + 6 * 3600 + 5, 2)
    lines.append({**lines[-1], "time": START + 6 * 3600 + 200, "image": "../holdout.npz"})
    (town.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def sticker_boxes(town):
    """Where the sticker is on each stickered image: what changes when the same scene is drawn without it."""
    plain = redraw(town.stickered, range(len(town.stickered)))
    boxes = []
    for with_it, without in zip(town.stickered.images, plain, strict=True):
        rows, columns = np.nonzero(np.abs(with_it.astype(int) - without).max(axis=2) > 40)
        boxes.append(
            Window(int(rows.min()), int(columns.min()), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
        )
    return boxes


def test_without_training_data_the_backdoor_gets_through(gated):
    for version in (1, 2):
        assert gated[version].verdict.outcome is Outcome.PROMOTE
        finding = gated[version].report.finding("patch-transplant")
        assert "no training data" in finding.summary
        assert not finding.metrics


@pytest.fixture(scope="module")
def report(town, live):
    path = town.folder / "drift.html"
    code = town.command(
        "monitor", NAME, "--log", town.folder / "log.jsonl", "--window", "10m", "--report", path,
        "--images", live, "--policy", town.policy(),
    )  # fmt: skip
    return code, path.read_text()


def test_the_surge_raises_the_alarm_and_the_report_shows_it(report):
    code, html = report
    assert code == 3
    assert f"prediction distribution for class &#39;{TARGET}&#39; has deviated by" in html
    assert ">DRIFT<" in html
    assert "What could not be shown" not in html or "outside the folder" in html


def test_the_boxes_of_the_report_lie_on_the_sticker(town, report):
    """The reach is one cell of the attributions, as in the gate's patch-attribution."""
    _, html = report
    figures = re.findall(r'<figure class="picture big">(.*?)</figure>', html, re.DOTALL)
    truth = sticker_boxes(town)
    marked = []
    for figure in figures:
        number = int(re.search(r", s(\d+)\.png</figcaption>", figure)[1])
        left, top, width, height = map(
            float,
            re.search(r'class="box inner" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', figure).groups(),
        )
        box = Window(int(top + 0.5), int(left + 0.5), int(height - 1), int(width - 1))
        marked.append(lies_on(box, truth[number], 32 / 8))
    assert len(marked) == 8
    assert np.mean(marked) >= 0.75, marked


@pytest.fixture(scope="module")
def quarantine(town, live):
    out = town.folder / "quarantine"
    arguments = ("--log", town.folder / "log.jsonl", "--window", "10m", "--images", live, "--limit", 40)
    assert town.command("quarantine", f"{NAME}/2", *arguments, "--out", out, "--quiet") == 0
    return out


def test_the_quarantine_holds_the_surge(quarantine):
    facts = json.loads((quarantine / "quarantine.json").read_text())
    assert set(facts["kept_by_class"]) == {TARGET}
    assert 20 <= facts["kept"] <= 40
    assert np.mean([one["reference"].startswith("s") for one in facts["images"]]) >= 0.7


def test_with_the_quarantined_images_the_backdoored_model_is_rejected(town, gated, quarantine):
    assert town.command("rollback", NAME, "--to", 1, "--reason", "stickers") == 0
    run = town.gate(2, quarantine / "manifest.csv")
    assert run.verdict.outcome is Outcome.REJECT
    finding = run.report.finding("patch-transplant")
    (trigger,) = finding.detail["triggers"]
    assert (trigger["source"], trigger["target"]) == (SOURCE, TARGET)
    assert trigger["live"]
    references = {one["path"]: one["reference"] for one in _images(quarantine)}
    carriers = [references[row["id"]] for row in finding.detail["live_suspects"]]
    assert np.mean([reference.startswith("s") for reference in carriers]) >= 0.9
    assert "live images" in run.card.decode()
    assert town.registry.model(NAME).aliases["production"] == 1


def _images(quarantine):
    return json.loads((quarantine / "quarantine.json").read_text())["images"]


def test_the_clean_model_is_not_rejected_for_them_nor_for_its_own_errors(town, gated, quarantine):
    """Its own live answers: ordinary ones of the target, and every natural error it made in the traffic."""
    labels, _ = town.answers(1, town.traffic.images)
    true = relabelled(town.traffic).labels
    errors = np.flatnonzero(labels != true)
    ordinary = np.flatnonzero((labels == true) & (labels == CLASSES.index(TARGET)))[:20]
    rows = np.concatenate([errors, ordinary])
    assert len(errors) >= 10
    own = town.folder / "own.npz"
    np.savez(own, images=town.traffic.images[rows], labels=labels[rows], class_names=np.array(CLASSES))
    for suspects in (quarantine / "manifest.csv", own):
        run = town.gate(1, suspects)
        finding = run.report.finding("patch-transplant")
        assert finding.detail["triggers"] == []
        assert finding.detail["live"]["images"] == (
            len(_images(quarantine)) if suspects != own else len(rows)
        )
        assert run.verdict.outcome is Outcome.PROMOTE


def test_a_quarantine_whose_images_are_gone_holds_the_candidate(town, gated, quarantine):
    broken = town.folder / "broken"
    shutil.copytree(quarantine, broken)
    next((broken / "images").iterdir()).unlink()
    assert town.gate(1, broken / "manifest.csv").verdict.outcome is Outcome.HOLD
