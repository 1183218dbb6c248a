"""The model bank: what it holds, that tuning and test stay apart, and how it is counted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.detect.accuracy import TABLE, read_table
from promotion_gate.drill import bank
from promotion_gate.drill.attacks import Attack
from promotion_gate.drill.campaign import load_campaign
from promotion_gate.drill.outcome import DrillOutcome

OUTCOME = DrillOutcome(
    key="0" * 16,
    scenario="patch",
    seed=901,
    attack="patch",
    parameters={"target": "yield"},
    harmless=False,
    rate=0.01,
    data="signs",
    architecture="small-cnn",
    start="scratch",
    champion=True,
    training_data=True,
    attack_success_rate=0.9,
    attack_trials=100,
    accuracy=0.97,
    champion_accuracy=0.97,
    outcome=Outcome.REJECT,
    caught=True,
    caught_by=["patch-transplant"],
    time_to_detection_s=10.0,
    sources_true=[],
    targets_true=["yield"],
    sources_named=[],
    targets_named=["yield"],
    source_right=None,
    target_right=True,
    carriers_true=40,
    carriers_named=35,
    carriers_hit=34,
    findings={"patch-transplant": {"confirmed_rows": 20.0}, "label-concentration": {"flip_p": 0.5}},
    unmeasured={},
    reasons=[],
    seconds=30.0,
    cpu_seconds=36.0,
    answers_sha256="",
    model="drill/1",
    gate_run_id="x",
)


def poisoned(caught=True, **changes):
    outcome = Outcome.REJECT if caught else Outcome.PROMOTE
    by = ["patch-transplant"] if caught else []
    told = {"outcome": outcome, "caught": caught, "caught_by": by, "target_right": True if caught else None}
    return replace(OUTCOME, **{**told, **changes})


def clean(outcome=Outcome.PROMOTE, rows=0.0, **changes):
    told = {
        "attack": "clean",
        "harmless": True,
        "attack_success_rate": None,
        "outcome": outcome,
        "caught": None,
        "caught_by": [] if outcome is Outcome.PROMOTE else ["label-concentration"],
        "target_right": None,
        "carriers_true": 0,
        "carriers_hit": 0,
        "findings": {"patch-transplant": {"confirmed_rows": rows}, "label-concentration": {"flip_p": 0.5}},
    }
    return replace(OUTCOME, **{**told, **changes})


@pytest.fixture
def with_data(monkeypatch, tmp_path):
    monkeypatch.setenv("GATE_TEST_DATA", str(tmp_path))


def work_of(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(bank.campaign_toml(bank.resolved_campaign(name)[0]), encoding="utf-8")
    return load_campaign(path)[1]


@pytest.mark.parametrize("name", bank.BANKS)
def test_every_bank_is_a_campaign_whose_checks_exist(name, with_data, tmp_path):
    work = work_of(name, tmp_path)
    assert {s.champion for s, _ in work} == {True}
    for scenario, _ in work:
        checks = set(scenario.gate.policy["checks"])
        assert checks.isdisjoint((*bank.SLOW_PICTURES, *bank.NO_POISON))
        assert "patch-transplant" in checks or not scenario.training_data


def test_the_test_bank_holds_what_the_figures_need(with_data, tmp_path):
    work = [(s, seed) for s, seed in work_of("test", tmp_path) if s.training_data]
    harmless = [s for s, _ in work if s.attack.harmless]
    attacks = {s.attack.kind for s, _ in work}
    assert len(harmless) >= 40
    assert len(work) - len(harmless) >= 60
    assert attacks == {kind.model_fields["kind"].default for kind in kinds(Attack)} - {"art"}
    assert {s.training.recipe for s, _ in work} == {"small-cnn", "resnet"}
    assert {s.training.start for s, _ in work} == {"scratch", "champion"}
    assert {s.data.title for s, _ in work} == {"signs", "gtsrb", "digits"}


def kinds(base):
    for kind in base.__subclasses__():
        if isinstance(kind.model_fields["kind"].default, str):
            yield kind
        yield from kinds(kind)


def test_tuning_and_test_share_no_seed_no_images_and_no_champion(with_data, tmp_path):
    tuning, test = (work_of(name, tmp_path) for name in ("tuning", "test"))
    for told in (
        lambda s, seed: seed,
        lambda s, seed: (s.data.title, s.data.seed),
        lambda s, seed: s.training.champion_seed,
        lambda s, seed: s.attack.model_dump_json() if s.attack.rate else seed,
    ):
        assert not {told(*w) for w in tuning} & {told(*w) for w in test}


def test_models_without_the_training_data_are_those_gated_with_it(with_data, tmp_path):
    table, _ = bank.resolved_campaign("test")
    shown = [d for d in table["drill"] if d.get("training_data", True)]
    pairs = {(json.dumps(d["attack"]), tuple(d["seeds"])) for d in shown}
    hidden = [d for d in table["drill"] if not d.get("training_data", True)]
    assert all((json.dumps(d["attack"]), tuple(d["seeds"])) in pairs for d in hidden)
    assert all(set(d["gate"]["policy"]["checks"]) <= set(bank.NEED_NO_TRAINING_DATA) for d in hidden)


def test_real_images_are_left_out_where_there_are_none(monkeypatch):
    monkeypatch.delenv("GATE_TEST_DATA", raising=False)
    table, left_out = bank.resolved_campaign("test")
    assert left_out > 10
    assert not [d for d in table["drill"] if "prepared" in d.get("data", {})]


def test_an_unknown_bank_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no bank 'huge'; there are tuning, test, small"):
        bank.run_bank("huge", tmp_path / "x")


def test_a_row_counts_what_was_stopped_named_and_listed():
    row = bank.gate_row(
        "patches",
        [
            poisoned(),
            poisoned(target_right=False, source_right=True),
            poisoned(outcome=Outcome.HOLD, carriers_hit=0),
            poisoned(caught=False, carriers_hit=0),
        ],
    )
    assert (row.models, row.rejected, row.stopped) == (4, 2, 3)
    assert (row.target_right, row.target_of, row.source_right, row.source_of) == (2, 3, 1, 1)
    assert (row.rows_listed, row.rows_of) == (68, 160)
    assert row.low < 0.75 < row.high
    assert row.rejected_low < 0.5 < row.rejected_high


def test_models_are_counted_by_attack_strength_and_what_the_gate_saw():
    rows = bank.gate_rows(
        [
            poisoned(),
            poisoned(parameters={"source": "stop", "target": "yield"}),
            poisoned(attack_success_rate=0.2, caught=False),
            poisoned(attack="label-flip", attack_success_rate=None),
            poisoned(training_data=False),
            clean(),
            clean(Outcome.HOLD),
        ]
    )
    assert {row.group: (row.models, row.stopped) for row in rows} == {
        "patches, every source, ASR ≥ .5": (1, 1),
        "patches, one source, ASR ≥ .5": (1, 1),
        "label flips": (1, 1),
        "triggers that hardly work, ASR < .5": (1, 0),
        "harmless: clean": (2, 1),
        "patches, every source, ASR ≥ .5; holdout and champion only": (1, 1),
    }


def test_kinds_are_counted_by_attack_success_rate_where_there_is_a_trigger():
    rows = bank.kind_rows(
        [
            poisoned(),
            poisoned(attack_success_rate=0.4),
            poisoned(attack="label-flip", attack_success_rate=0.0),
            clean(attack="class-mark", attack_success_rate=0.9),
        ]
    )
    groups = ["class-mark", "label-flip", "patch, ASR ≥ .8", "patch, ASR .3 to .5"]
    assert [(row.group, row.models) for row in rows] == [(group, 1) for group in groups]


def test_every_attack_belongs_to_one_family_whether_it_works_or_not():
    for kind in kinds(Attack):
        if kind.model_fields["kind"].default == "art":
            continue
        for parameters in ({}, {"source": "stop"}):
            for rate in (0.1, 0.9):
                outcome = replace(
                    poisoned(),
                    attack=kind.model_fields["kind"].default,
                    harmless=kind.harmless,
                    parameters=parameters if kind.__name__ == "Patch" else {},
                    attack_success_rate=rate,
                )
                families = [f.name for f in bank.FAMILIES if f.holds(outcome)]
                assert len(families) == 1, (kind, parameters, rate, families)
                assert families[0].startswith("harmless") == kind.harmless


def test_a_check_is_counted_alone_and_only_where_it_measured():
    outcomes = [
        poisoned(),
        poisoned(caught_by=["label-concentration"]),
        poisoned(findings={"label-concentration": {}}),
        clean(),
        clean(Outcome.HOLD),
    ]
    figures = {f.what: (f.caught, f.of) for f in bank.check_figures("patch-transplant", outcomes)}
    assert figures == {"patches, every source, ASR ≥ .5": (1, 2), "harmless: clean": (0, 2)}
    alarms = {f.what: (f.caught, f.of) for f in bank.check_figures("label-concentration", outcomes)}
    assert alarms["harmless: clean"] == (1, 2)


def test_a_model_that_was_gated_twice_is_counted_once():
    seen = {"findings": {"sticker-sweep": {"anomaly": 0.9}}, "caught_by": ["sticker-sweep"]}
    outcomes = [poisoned(**seen), poisoned(**seen, training_data=False)]
    (counted,) = bank.check_figures("sticker-sweep", outcomes)
    assert (counted.caught, counted.of) == (1, 1)


def test_the_area_under_the_curve_counts_ties_half():
    assert bank.auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert bank.auroc(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.5
    assert bank.auroc(np.array([0.0]), np.array([1.0, 2.0])) == 0
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    high, low = rng.integers(2, 9, 40).astype(float), rng.integers(0, 7, 60).astype(float)
    expected = roc_auc_score([1] * 40 + [0] * 60, [*high, *low])
    assert bank.auroc(high, low) == pytest.approx(expected)
    lower, upper = bank.bootstrap_auroc(high, low, 0)
    assert lower < expected < upper
    assert (lower, upper) == bank.bootstrap_auroc(high, low, 0)


def test_a_check_is_ranked_against_harmless_models():
    outcomes = [
        *(poisoned(findings={"patch-transplant": {"confirmed_rows": float(n)}}) for n in (9, 10, 30)),
        *(clean(rows=float(n)) for n in (0, 1, 9)),
    ]
    (ranking,) = bank.rankings("patch-transplant", outcomes)
    assert (ranking.metric, ranking.poisoned, ranking.harmless) == ("confirmed_rows", 3, 3)
    assert ranking.auroc == pytest.approx(8.5 / 9, abs=1e-4)
    assert bank.rankings("patch-transplant", outcomes[:2]) == []
    assert bank.rankings("vibes", outcomes) == []


def test_what_compares_with_the_champion_is_ranked_apart_by_where_training_began():
    def seen(make, value, start, shown=False):
        return make(findings={"sticker-sweep": {"anomaly": value}}, start=start, training_data=shown)

    outcomes = [
        seen(make, value, start)
        for start, values in (("champion", (9.0, 8.0, 7.0)), ("scratch", (1.0, 0.0, 2.0)))
        for make, bonus in ((poisoned, 1.0), (clean_with, 0.0))
        for value in (v + bonus for v in values)
    ]
    found = bank.rankings("sticker-sweep", [*outcomes, seen(poisoned, 99.0, "scratch", shown=True)])
    assert [r.against for r in found] == [
        "patches, every source, ASR ≥ .5, fine-tuned",
        "patches, every source, ASR ≥ .5, from scratch",
    ]
    assert all(r.poisoned == r.harmless == 3 for r in found)


def clean_with(**changes):
    return replace(clean(), **changes)


def test_a_check_without_a_bound_is_told_by_how_it_ranks():
    outcomes = [
        *(poisoned(findings={"activation-clustering": {"silhouette": n}}) for n in (0.7, 0.8, 0.9)),
        *(clean_with(findings={"activation-clustering": {"silhouette": n}}) for n in (0.1, 0.2, 0.75)),
    ]
    figures = bank.check_figures("activation-clustering", outcomes)
    line = bank.check_line(figures, bank.rankings("activation-clustering", outcomes), judged=False)
    assert line.startswith("no bound rests on it; silhouette on patches, every source, ASR ≥ .5: AUROC 0.89")


def base():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_the_table_says_what_was_measured_and_keeps_sources_and_evasions(tmp_path):
    test = [*(poisoned() for _ in range(20)), *(clean() for _ in range(12))]
    made = bank.accuracy_from(test, [poisoned(seed=101)], base())
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- accuracy -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    path = tmp_path / "accuracy.json"
    told = bank.write_table(made, path, readme)
    assert told == read_table(path)
    check = told.checks["patch-transplant"]
    assert check.line == (
        "alone it stopped 20 of 20 (100 %, interval 84 to 100 %) of patches, every source, ASR ≥ .5;"
        " false alarms on 0 of 12 (0 %, interval 0 to 24 %) harmless models"
    )
    assert list(check.evasions) == base()["checks"]["patch-transplant"]["evasions"]
    assert told.checks["trigger-inversion"].line == ""
    assert made["obtained"]["seeds"] == {"test": [901], "tuning": [101]}
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- accuracy -->\n20 gate runs on poisoned and 12 on harmless models")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in text
    assert "| harmless: clean | 12 | 0 (0 to 24 %) | 0 (0 to 24 %) | – | – | – |" in text


def test_a_seed_in_both_banks_is_refused():
    with pytest.raises(UsageError, match="seed 901 is in the tuning bank and in the test bank"):
        bank.accuracy_from([poisoned()], [clean()], base())
    with pytest.raises(UsageError, match="no finished model"):
        bank.accuracy_from([], [clean()], base())


def test_the_command_counts_and_refuses_in_one_line(tmp_path, capsys):
    for name, seed in (("test", 901), ("tuning", 101)):
        (tmp_path / name).mkdir()
        lines = [poisoned(seed=seed).to_json(), clean(seed=seed, key="1" * 16).to_json()]
        (tmp_path / name / "outcomes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "accuracy.json"
    where = ["table", "--out", str(out), "--test", str(tmp_path / "test"), "--tuning"]
    assert bank.main([*where, str(tmp_path / "tuning")]) == 0
    assert read_table(out).models == 2
    capsys.readouterr()
    assert bank.main([*where, str(tmp_path / "test")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
