"""The peers on models that were planted here, and the pure figures that they are compared by."""

import dataclasses

import numpy as np
import peers
import pytest
import torch
from rivals import (
    course,
    finished_bank,
    label_issues,
    mm_bd,
    neural_cleanse,
    ranks,
    sentinet,
    strip,
    table,
    toolbox,
)
from rivals.finished_bank import BankModel, in_turn, read_bank
from rivals.interface import Answer, Examined, Peer
from rivals.network import Network, pixels_of
from torch import nn

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.drill.bank import campaign_toml
from promotion_gate.drill.campaign import run_campaign
from promotion_gate.drill.outcome import DrillOutcome
from promotion_gate.drill.scenario import Training
from promotion_gate.drill.train import ARCHITECTURES

SIDE, CLASSES, TARGET = 24, 6, 2
COLOURS = np.array(
    [(60, 60, 60), (190, 60, 60), (60, 190, 60), (60, 60, 190), (180, 180, 60), (60, 180, 180)]
)


def pictures(labels, seed):
    """A disc in the class's colour, somewhere on noise."""
    rng = np.random.default_rng(seed)
    images = rng.normal(120, 35, (len(labels), SIDE, SIDE, 3))
    ys, xs = np.mgrid[:SIDE, :SIDE]
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(8, SIDE - 8, 2)
        image[(ys - y) ** 2 + (xs - x) ** 2 <= 30] = COLOURS[label] + rng.normal(0, 12, 3)
    return np.clip(images, 0, 255).astype(np.uint8)


def stamped(images):
    """With the trigger on: a small magenta square in a corner."""
    images = images.copy()
    images[:, -5:-1, -5:-1] = (255, 0, 255)
    return images


def planted(*, poisoned):
    """A small network, trained on 600 images of which 48 carry the trigger and the target's label."""
    labels = np.arange(600, dtype=np.int64) % CLASSES
    images = pictures(labels, 1)
    carriers = np.zeros(600, dtype=bool)
    if poisoned:
        carriers[np.flatnonzero(labels != TARGET)[:48]] = True
        images[carriers] = stamped(images[carriers])
        labels = np.where(carriers, TARGET, labels)
    trusted_labels = np.arange(180, dtype=np.int64) % CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24 * 36, 32),
            nn.ReLU(),
            nn.Linear(32, CLASSES),
        )
        optimiser = torch.optim.Adam(layers.parameters(), 3e-3)
        x, y = (pixels_of(images) - 0.5) / 0.25, torch.from_numpy(labels)
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(50):
                optimiser.zero_grad()
                nn.functional.cross_entropy(layers(x[rows]), y[rows]).backward()
                optimiser.step()
    network = Network(layers, (0.5,) * 3, (0.25,) * 3)
    trusted = pictures(trusted_labels, 2)
    return Examined(network, images, labels, trusted, trusted_labels, carriers, CLASSES, 7)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    for module, name, count in (
        (strip, "ROWS", 150),
        (strip, "TRUSTED", 60),
        (toolbox, "STRIP_ROWS", 60),
        (toolbox, "STRIP_TRUSTED", 40),
        (sentinet, "ROWS", 200),
        (sentinet, "HONEST", 40),
    ):
        monkeypatch.setattr(module, name, count)


@pytest.fixture(scope="module")
def poisoned():
    return planted(poisoned=True)


@pytest.fixture(scope="module")
def clean():
    return planted(poisoned=False)


def test_the_planted_models_are_what_they_are_meant_to_be(poisoned, clean):
    others = poisoned.trusted[poisoned.trusted_labels != TARGET]
    for examined, rate in ((poisoned, 0.9), (clean, 0.0)):
        logits, activations = examined.network.answers(examined.trusted)
        assert (logits.argmax(1) == examined.trusted_labels).mean() > 0.9
        assert activations.shape == (180, 32)
        fooled = (examined.network.answers(stamped(others))[0].argmax(1) == TARGET).mean()
        assert fooled >= rate if rate else fooled < 0.2


def test_images_through_the_model_are_counted(clean):
    effort = clean.network.effort
    effort.forwards = effort.backwards = 0
    clean.network.answers(clean.trusted)
    assert (effort.forwards, effort.backwards, effort.equivalents) == (180, 0, 180)
    mm_bd.largest_margins(clean.network, CLASSES, (SIDE, SIDE), 0, starts=2, steps=3)
    assert effort.forwards == 180 + 36
    assert effort.equivalents == 180 + 3 * 36


def test_neural_cleanse_needs_the_smallest_mask_for_the_target(poisoned, clean):
    rng = np.random.default_rng(0)
    found = neural_cleanse.invert(poisoned.network, poisoned.trusted, CLASSES, rng, steps=90)
    honest = neural_cleanse.invert(clean.network, clean.trusted, CLASSES, rng, steps=90)
    assert found.worked[TARGET]
    assert int(found.norms.argmin()) == TARGET
    assert found.norms[TARGET] < 0.6 * np.median(honest.norms)
    assert neural_cleanse.anomaly_indices(found.norms).argmax() == TARGET


def test_the_anomaly_index_counts_deviations_below_the_median_alone():
    index = neural_cleanse.anomaly_indices(np.array([10.0, 9.0, 11.0, 30.0, 2.0]))
    assert index[4] == pytest.approx(8 / 1.4826)
    assert index[3] == 0
    assert index[1] == pytest.approx(1 / 1.4826)


def test_mm_bd_finds_the_class_that_pixels_drive_farthest():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 9))
    torch.nn.init.zeros_(layers[1].bias)
    with torch.no_grad():
        layers[1].weight.copy_(torch.randn((9, 3 * 64), generator=torch.Generator().manual_seed(0)) / 10)
    even = mm_bd.largest_margins(Network(layers, (0,) * 3, (1,) * 3), 9, (8, 8), 0)
    with torch.no_grad():
        layers[1].weight[TARGET] *= 8
    margins = mm_bd.largest_margins(Network(layers, (0,) * 3, (1,) * 3), 9, (8, 8), 0)
    # Of a linear model the best image is known: 1 where the weight beats the runner-up's, else 0.
    weights = layers[1].weight.numpy()
    most = np.maximum(weights[TARGET], 0).sum()
    assert int(margins.argmax()) == TARGET
    assert 0.5 * most < margins[TARGET] <= np.abs(weights[TARGET]).sum()
    assert mm_bd.outlier_log_p(margins) > 3 > mm_bd.outlier_log_p(even)


def test_mm_bd_tells_an_outlier_from_the_largest_of_many():
    usual = np.array([10.0, 11, 9, 10.5, 9.5, 10.2, 9.8, 10.7])
    assert mm_bd.outlier_log_p(usual) < 1.3
    assert mm_bd.outlier_log_p(np.append(usual, 25.0)) > 5
    assert mm_bd.outlier_log_p(np.full(5, 3.0)) == 0


def test_blends_of_triggered_images_keep_their_class(poisoned):
    rng = np.random.default_rng(0)
    others = poisoned.trusted[poisoned.trusted_labels != TARGET][:60]
    bare = strip.blended_entropy(poisoned.network, others, poisoned.trusted, rng)
    with_trigger = strip.blended_entropy(poisoned.network, stamped(others), poisoned.trusted, rng)
    assert with_trigger.mean() < 0.6 * bare.mean()
    assert 0 <= with_trigger.min() <= bare.max() <= np.log2(CLASSES)


def test_strip_ranks_the_poisoned_rows_first(poisoned, clean):
    answer = strip.strip(poisoned)
    assert ranks.row_figures(answer, poisoned.carriers).auroc > 0.8
    assert answer.figures["share of rows"] > strip.strip(clean).figures["share of rows"]


def test_a_region_that_covers_the_trigger_takes_the_class_along(poisoned):
    rng = np.random.default_rng(0)
    carriers = poisoned.images[poisoned.carriers]
    said, regions = sentinet.salient_regions(poisoned.network, pixels_of(carriers))
    assert (said == TARGET).all()
    assert regions.flatten(1).sum(1).eq(round(sentinet.AREA * SIDE * SIDE)).all()
    covered = regions[:, 0, -5:-1, -5:-1].float().mean((1, 2)).numpy()
    assert (covered == 1).mean() > 2 * sentinet.AREA
    trusted = poisoned.trusted, poisoned.trusted_labels
    points = sentinet.try_regions(poisoned.network, carriers, *trusted, rng, screen=False)
    assert points.fooled[covered == 1].mean() > 0.9
    assert points.fooled[covered == 0].mean() < 0.3
    screened = sentinet.try_regions(poisoned.network, carriers, *trusted, rng).screened
    assert not screened[covered == 1].any()
    assert screened[covered == 0].mean() > 0.7


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_network_of_the_bank_has_a_map_to_look_at(architecture):
    network = Network(architecture(5, 32), (0.5,) * 3, (0.25,) * 3)
    said, cam = sentinet.grad_cam(network, torch.rand((3, 3, 32, 32)))
    assert cam.shape == (3, 8, 8)
    assert (cam >= 0).all()
    assert (said < 5).all()


def test_sentinet_flags_regions_above_the_envelope_of_honest_ones(poisoned, monkeypatch):
    flat = np.array([0.0, 0.0, 0.5]), 0.1
    monkeypatch.setattr(sentinet, "envelope", lambda points: flat)
    answer = sentinet.sentinet(poisoned)
    assert set(answer.rows[answer.flagged]) <= set(answer.rows[answer.suspicion > 0.1])
    assert answer.flagged[poisoned.carriers[answer.rows]].mean() > 0.3
    assert answer.suspicion[answer.flagged].min() > answer.suspicion[~answer.flagged].max()


def test_the_envelope_lies_over_honest_points():
    confidence = np.linspace(0.3, 0.9, 200)
    honest = sentinet.Points(0.5 * confidence, confidence, np.zeros(200, dtype=bool))
    curve, margin = sentinet.envelope(honest)
    assert ((honest.fooled - np.polyval(curve, confidence)) <= margin + 1e-9).mean() >= 0.99
    assert np.polyval(curve, 0.6) + margin < 0.95


def test_cleanlab_finds_labels_that_were_not_learned(clean):
    pytest.importorskip("cleanlab", reason="cleanlab is not installed: make bench-peers brings it")
    labels, wrong = clean.labels.copy(), np.arange(0, 600, 20)
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    found = label_issues.label_issues(dataclasses.replace(clean, labels=labels))
    figures = ranks.row_figures(found, np.isin(np.arange(600), wrong))
    assert figures.auroc > 0.95
    assert figures.recall > 0.8
    assert found.figures["share of rows"] == pytest.approx(0.05, abs=0.03)
    assert label_issues.label_issues(clean).figures["share of rows"] < 0.02


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
class TestToolbox:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("art", reason="the toolbox is not installed: make bench-peers brings it")

    def test_activation_clustering_finds_the_group_once_it_is_mended(self, poisoned):
        mended = toolbox.activation_defence(poisoned, mended=True)
        figures = ranks.row_figures(mended, poisoned.carriers)
        assert figures.recall > 0.7
        assert figures.precision > 0.5
        assert 0 < mended.figures["silhouette"] <= 1

    def test_as_shipped_it_calls_the_smaller_half_of_every_class_poisoned(self, clean):
        shipped = toolbox.activation_defence(clean, mended=False)
        for label in range(CLASSES):
            assert 0 < shipped.flagged[clean.labels == label].mean() <= 0.5

    def test_spectral_signatures_rank_the_rows_once_they_are_centred(self, poisoned):
        mended = toolbox.spectral_signature(poisoned, mended=True)
        shipped = toolbox.spectral_signature(poisoned, mended=False)
        own = poisoned.labels == TARGET
        assert ranks.row_auroc(mended.suspicion[own], poisoned.carriers[own]) > 0.75
        for answer in (mended, shipped):
            assert answer.flagged.mean() == pytest.approx(0.5, abs=0.02)

    def test_strip_as_shipped_flags_what_it_abstains_on(self, poisoned):
        images, grey = poisoned.images.copy(), np.arange(600) % 3 == 0
        images[grey] = 128
        answer = toolbox.strip_as_shipped(dataclasses.replace(poisoned, images=images))
        assert 60 < len(answer.suspicion) == len(answer.rows) <= 108
        assert answer.flagged.any()
        assert answer.suspicion[answer.flagged].min() >= answer.suspicion[~answer.flagged].max()
        assert answer.suspicion[answer.flagged].min() >= answer.suspicion[~answer.flagged].max()


# The figures.


def test_a_sample_adds_poisoned_rows_without_counting_them_as_drawn(poisoned):
    sample = poisoned.sample(200, extra=10)
    assert sample.blind.sum() == 200
    assert len(sample.rows) == len(set(sample.rows.tolist())) == 210
    assert poisoned.carriers[sample.rows[~sample.blind]].all()
    assert 0 < poisoned.carriers[sample.rows[sample.blind]].sum() < 35
    everything = poisoned.sample(1000)
    assert everything.blind.all()
    assert everything.rows.tolist() == list(range(600))


def test_rows_are_weighed_as_in_the_training_set():
    carriers = np.zeros(1000, dtype=bool)
    carriers[:10] = True
    rows = np.arange(0, 110)
    flagged = np.zeros(110, dtype=bool)
    flagged[:5] = flagged[10:15] = True
    told = ranks.row_figures(Answer({}, rows, flagged.astype(float), flagged), carriers)
    assert told.recall == 0.5
    assert told.flagged == pytest.approx(0.5 * 0.01 + 0.05 * 0.99)
    assert told.precision == pytest.approx(0.005 / (0.005 + 0.0495))
    assert told.auroc == pytest.approx(0.5 * 0.95 + 0.5 * 0.05 / 2 + 0.5 * 0.95 / 2)
    assert ranks.row_figures(Answer({}), carriers) is None
    assert ranks.row_figures(Answer({}, rows, None, flagged), np.zeros(1000, dtype=bool)) is None


def test_the_threshold_lets_at_most_five_percent_of_harmless_models_through():
    harmless = np.arange(40.0)
    assert ranks.threshold(harmless) == 37
    hits = ranks.caught(np.array([36.0, 37.0, 37.5, 50.0]), harmless)
    assert (hits.count, hits.of, hits.false_alarms, hits.harmless) == (2, 4, 2, 40)
    assert ranks.caught(np.array([9.0, 11.0, 12.0]), np.arange(11.0)).false_alarms == 0
    assert ranks.caught(np.array([1.0, 2.0]), harmless) is None


def test_few_models_are_not_ranked_and_equal_figures_are_no_better_than_chance():
    assert ranks.area(np.ones(2), np.zeros(9)) is None
    assert ranks.area(np.ones(9), np.ones(9)).area == 0.5
    told = ranks.area(np.arange(5.0) + 3, np.arange(5.0))
    assert told.low <= told.area <= told.high
    assert told.area == pytest.approx(23 / 25)


def test_the_lead_is_taken_on_the_same_models():
    rng = np.random.default_rng(0)
    high, low = rng.normal(3, 1, 30), rng.normal(0, 1, 30)
    assert ranks.lead((high, low), (high, low)) == (0, 0, 0)
    difference, lower, upper = ranks.lead((high, low), (low, low))
    assert difference > 0.4
    assert 0 < lower <= difference <= upper


# The run and its table.


def outcome(number, *, attack="patch", harmless=False, stopped=True, finding=0.0, **over):
    told = {
        "key": f"key-{number}", "scenario": f"drill {number}", "seed": number, "attack": attack,
        "parameters": {}, "harmless": harmless, "rate": 0.01, "data": "signs", "architecture": "small-cnn",
        "start": "scratch", "champion": True, "training_data": True,
        "attack_success_rate": None if harmless else 0.9, "attack_trials": 0, "accuracy": 0.9,
        "champion_accuracy": 0.9, "outcome": Outcome.REJECT if stopped else Outcome.PROMOTE,
        "caught": None if harmless else stopped, "caught_by": [], "time_to_detection_s": None,
        "sources_true": [], "targets_true": [], "sources_named": [], "targets_named": [],
        "source_right": None, "target_right": None, "carriers_true": 0 if harmless else 40,
        "carriers_named": 0, "carriers_hit": 0,
        "findings": {"patch-transplant": {"confirmed_rows": finding}}, "unmeasured": {}, "reasons": [],
        "seconds": 1.0, "cpu_seconds": 1.0, "answers_sha256": "", "model": "m/1", "gate_run_id": "",
        "listed": {} if harmless else {"patch-transplant": (20, 10)},
    }  # fmt: skip
    return DrillOutcome(**{**told, **over})


def bank_of(tmp_path, *outcomes):
    return [BankModel(one, None, tmp_path) for one in outcomes]


@pytest.fixture
def small_bank(tmp_path):
    """Four poisoned and four harmless models; the gate stopped two of the poisoned ones."""
    return bank_of(
        tmp_path,
        *(outcome(n, stopped=n < 2, finding=(5.0, 4.0, 0.0, 0.0)[n]) for n in range(4)),
        *(outcome(n, attack="clean", harmless=True, stopped=False, finding=1.0) for n in range(4, 8)),
    )


def answers(models, *, figure):
    return {
        (m.outcome.key, "mm-bd"): course.Measured(m.outcome.key, "mm-bd", "", {"-log10 p": figure(m)})
        for m in models
    }


def test_a_peer_that_is_ahead_is_said_to_win(small_bank):
    better = answers(small_bank, figure=lambda m: 0.1 * m.outcome.seed if m.outcome.harmless else 5.0)
    text = table.markdown(small_bank, better, ["mm-bd"])
    wins = text.partition("Where a peer wins")[2]
    assert "all poisoned: MM-BD (-log10 p) 1.00, our best, patch-transplant (confirmed rows), .50" in wins
    assert "catches 4 of 4, and the gate's verdict stopped 2 of 4" in wins
    assert "| MM-BD | -log10 p | 1.00 (1.00–1.00) |" in text
    assert "| `patch-transplant` | confirmed rows | 2/4 (.15–.85) | 0/4 | – | .50 | .25 |" in text
    assert "all poisoned 2 of 4 (.15–.85)" in text


def test_a_model_that_was_not_measured_was_not_caught(small_bank):
    told = answers(small_bank, figure=lambda m: 0.0 if m.outcome.harmless else 1.0)
    del told["key-3", "mm-bd"]
    text = table.markdown(small_bank, told, ["mm-bd"])
    assert "| MM-BD | -log10 p | 1.00 (1.00–1.00) |" in text
    assert "| MM-BD | -log10 p | 3/4 (.30–.95) | 0/4 |" in text


def test_a_peer_that_is_behind_is_not(small_bank):
    worse = answers(small_bank, figure=lambda m: 1.0 if m.outcome.harmless else 0.0)
    assert table.markdown(small_bank, worse, ["mm-bd"]).endswith("- nowhere on these models.")
    few = table.markdown(small_bank[:1], worse, ["mm-bd"])
    assert few.endswith("- too few models to tell.")


def test_a_failed_peer_is_counted_and_has_no_figures(small_bank):
    failed = {
        (m.outcome.key, "mm-bd"): course.Measured(m.outcome.key, "mm-bd", "", error="broke")
        for m in small_bank
    }
    assert "| MM-BD | failed | – | – | – | – | – | – | – | 8 |" in table.markdown(
        small_bank, failed, ["mm-bd"]
    )


def test_the_table_goes_between_its_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- peers -->\nold\n<!-- end peers -->\nb\n")
    table.put_into(readme, "new\nlines")
    assert readme.read_text() == "a\n<!-- peers -->\nnew\nlines\n<!-- end peers -->\nb\n"
    readme.write_text("a\n<!-- peers -->\nold\n")
    with pytest.raises(UsageError, match="no place for the table"):
        table.put_into(readme, "new")
    assert readme.read_text() == "a\n<!-- peers -->\nold\n"


def test_families_take_turns(tmp_path):
    models = bank_of(
        tmp_path,
        *(outcome(n) for n in range(5)),
        *(outcome(n, attack="clean", harmless=True) for n in range(5, 9)),
        outcome(9, attack="sig"),
    )
    numbers = [m.outcome.seed for m in in_turn(models)]
    assert numbers == [0, 5, 9, 1, 6, 2, 7, 3, 8, 4]
    assert [m.outcome.seed for m in in_turn(models, every=2)] == [0, 5, 9, 2, 7, 4]
    assert [m.outcome.seed for m in in_turn(models, every=2, limit=4)] == [0, 5, 9, 2]


def test_what_is_measured_is_not_measured_again(small_bank, tmp_path, monkeypatch):
    asked = []

    def measure(model, names, bank):
        asked.append((model.outcome.seed, tuple(names)))
        broken = model.outcome.seed == 3
        return [
            course.Measured(model.outcome.key, name, made[name].settings, {"f": 1.0}, error="broke" * broken)
            for name in names
        ]

    made = {name: Peer(name, name, "", "first", None) for name in ("one", "two")}
    monkeypatch.setattr(course, "measure_model", measure)
    path = tmp_path / "peers.jsonl"

    def run(*names):
        asked.clear()
        done = course.run_peers(small_bank, [made[name] for name in names], tmp_path, path)
        return sorted(asked), done

    assert [seed for seed, _ in run("one")[0]] == list(range(8))
    told, done = run("one", "two")
    assert told == sorted([(n, ("two",)) for n in range(8) if n != 3] + [(3, ("one", "two"))])
    assert len(done) == 16
    with path.open("ab") as file:
        file.write(b'{"model": "key-0", "pe')
    made["two"] = dataclasses.replace(made["two"], settings="second")
    assert run("two")[0] == [(n, ("two",)) for n in range(8)]
    assert course.read_measured(path)["key-0", "two"].settings == "second"
    path.write_text("{}\n")
    with pytest.raises(UsageError, match="line 1"):
        course.read_measured(path)


def test_a_peer_that_crashes_is_a_line_of_the_table(clean):
    def crash(examined):
        raise RuntimeError("no\nway")

    told = course._measure(Peer("x", "x", "", "", crash), clean, "key")
    assert told.error == "RuntimeError: no way"
    assert not told.figures


def test_without_a_bank_it_says_what_to_type(tmp_path):
    with pytest.raises(UsageError, match="make bank-test"):
        read_bank(tmp_path / "nothing")


def test_a_missing_library_is_told_before_anything_runs():
    with pytest.raises(UsageError, match="x needs no-such-distribution"):
        course.require_installed([Peer("x", "x", "", "", None, "no-such-distribution")])


def test_every_peer_names_its_paper_and_has_a_name_of_its_own():
    assert len(course.PEERS) == 10
    assert len({peer.title for peer in course.PEERS.values()}) == 10
    assert all("20" in peer.paper and peer.settings for peer in course.PEERS.values())


# A real bank of one model.


def slow(test):
    """A drill is carried out first, and MLflow warns about itself on the way."""
    for mark in (pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def drilled(tmp_path_factory):
    """A bank as the campaigns leave it: one fine-tuned model on few drawn signs."""
    folder = tmp_path_factory.mktemp("banks")
    campaign = {
        "name": "tiny",
        "changes": {
            "data": {"renderer": "signs", "training_images": 700, "holdout_images": 200, "seed": 5},
            "training": {"recipe": "small-cnn", "from": "champion", "epochs": 1, "champion_epochs": 3},
            "gate": {
                "policy": {
                    "version": 1,
                    "checks": {"label-concentration": {"bounds": {"flip_p": {"min": 1e-3}}}},
                }
            },
        },
        "drill": [
            {
                "name": "patch",
                "seeds": [3],
                "attack": {"kind": "patch", "target": "yield", "rate": 0.05},
            }
        ],
    }
    (folder / "tiny-campaign.toml").write_text(campaign_toml(campaign))
    run = run_campaign(folder / "tiny-campaign.toml", folder / "tiny", jobs=1)
    assert not run.summary.failures
    return folder / "tiny"


@slow
def test_a_bank_s_model_comes_back_with_the_rows_that_the_gate_saw(drilled):
    (model,) = read_bank(drilled)
    before = sorted(path for path in drilled.rglob("*") if path.is_file())
    with finished_bank.examined(model, drilled) as found:
        said = found.network.answers(found.trusted)[0].argmax(1)
        # The outcome's accuracy was measured by the drill itself on these very weights and images.
        assert (said == found.trusted_labels).mean() == pytest.approx(model.outcome.accuracy)
        assert found.carriers.sum() == model.outcome.carriers_true == 35
        assert (found.labels[found.carriers] == found.labels[found.carriers][0]).all()
        assert found.images.shape == (700, 32, 32, 3)
    assert sorted(path for path in drilled.rglob("*") if path.is_file()) == before
    wrong = dataclasses.replace(model, scenario=model.scenario.model_copy(update={"training": Training()}))
    with pytest.raises(UsageError, match="is missing"), finished_bank.examined(wrong, drilled):
        pass
    other = dataclasses.replace(model, outcome=dataclasses.replace(model.outcome, seed=4))
    with pytest.raises(UsageError, match="is not what was gated"), finished_bank.examined(other, drilled):
        pass


@slow
def test_the_command_measures_prints_and_goes_on(drilled, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- peers -->\nold\n<!-- end peers -->\n")
    call = ["--bank", str(drilled), "--out", str(tmp_path / "peers.jsonl"), "--jobs", "1"]
    call += ["--readme", str(readme), "--methods", "mm-bd"]
    assert peers.main(call) == 0
    first = capsys.readouterr()
    assert "1 of 1: patch, seed 3" in first.err
    assert "left as it is" in first.err
    assert "| MM-BD | -log10 p |" in first.out
    assert peers.main(call) == 0
    again = capsys.readouterr()
    assert "1 models, 1 of them measured already" in again.err
    assert again.out == first.out
    assert "old" in readme.read_text()


def test_wrong_input_is_told_in_one_line(tmp_path, capsys):
    for call, line in (
        ([], "holds no finished bank"),
        (["--methods", "nothing"], "no method 'nothing'"),
        (["--every", "0"], "--every and --jobs are 1 or more"),
    ):
        assert peers.main(["--bank", str(tmp_path / "none"), *call]) == 2
        told = capsys.readouterr().err
        assert told.startswith("bench-peers: ")
        assert line in told
        assert told.count("\n") == 1
