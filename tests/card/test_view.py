from __future__ import annotations

import dataclasses
import shlex
from types import ModuleType

import numpy as np
import pytest

from promotion_gate.card import render_card
from promotion_gate.card.detail import inert, number, number_text, percent, words
from promotion_gate.card.view import view
from promotion_gate.core.types import Exhibit, Finding, Outcome, Status
from promotion_gate.detect.accuracy import CheckAccuracy


def test_rejection_names_measured_beside_bound(reports: ModuleType) -> None:
    card = view(reports.report("reject"))
    assert card.outcome is Outcome.REJECT
    assert "Production stays at version 1" in card.headline
    assert [(r.metric, r.measured, r.bound) for r in card.reasons] == [
        ("confirmed rows", "26", "at most 3"),
        ("attack success rate", "0.73", "at most 0.2"),
    ]
    trigger = card.triggers[0]
    assert (trigger.source, trigger.target, trigger.rate, trigger.interval) == (
        "stop", "speed limit 80", "73%", "64% to 81%",
    )  # fmt: skip
    assert [gallery.name for gallery in card.evidence] == ["trigger", "carriers", "transplanted"]


def test_at_most_three_reasons_and_the_rest_counted(reports: ModuleType) -> None:
    def worsen(finding: Finding) -> Finding:
        if finding.check != "per-class":
            return finding
        metrics = {"accuracy": 0.1, "worst_recall": 0.0, "regressed_classes": 4.0}
        return dataclasses.replace(finding, metrics=metrics)

    card = view(reports.report("reject", change=worsen))
    assert len(card.reasons) == 3
    assert card.more_reasons == 2


def test_a_kept_image_is_shown_among_the_flipped_ones(reports: ModuleType) -> None:
    card = view(reports.report("reject"))
    marks = [picture.mark for picture in card.evidence[-1].pictures]
    assert "flipped" in marks
    assert "kept" in marks


def test_hold_offers_approval_and_promotion_does_not(reports: ModuleType) -> None:
    assert list(view(reports.report("hold")).commands.values()) == [
        'promotion-gate approve traffic-signs/2 --reason "…"',
        'promotion-gate reject traffic-signs/2 --reason "…"',
        'promotion-gate rollback traffic-signs --reason "…"',
    ]
    assert list(view(reports.report("promote")).commands) == ["Roll production back"]


@pytest.mark.parametrize("name", ["signs; rm -rf ~", "a'b\"$(id)`id`", "-rf", "a b"])
def test_commands_are_one_shell_word_a_name(reports: ModuleType, name: str) -> None:
    command = view(reports.report("promote", name=name)).commands["Roll production back"]
    assert name in shlex.split(command)
    assert ("--" in shlex.split(command)) == name.startswith("-")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u202eb"])
def test_no_command_for_a_name_that_hides_characters(reports: ModuleType, name: str) -> None:
    assert view(reports.report("promote", name=name)).commands == {}


def test_a_promotion_says_whether_every_bound_was_applied(reports: ModuleType) -> None:
    everything = view(reports.report("promote", change=_without_inconclusive)).headline
    assert (
        everything
        == "Version 3 met every bound of the policy and may go to production, in place of version 1."
    )
    assert "that could be applied" in view(reports.report("first")).headline


def _without_inconclusive(finding: Finding) -> Finding:
    return dataclasses.replace(finding, status=Status.MEASURED)


def test_not_checked_lists_what_is_missing_inconclusive_or_not_applicable(reports: ModuleType) -> None:
    first = reports.report("first")
    without = [f for f in first.findings if f.check != "training-curves"]
    judgements = [j for j in first.verdict.judgements if j.check != "training-curves"]
    verdict = dataclasses.replace(first.verdict, judgements=judgements)
    card = view(dataclasses.replace(first, findings=without, verdict=verdict))
    kinds = {(entry.title, entry.kind) for entry in card.unchecked}
    assert ("Metrics per class: regressed classes", "not applicable") in kinds
    assert ("SHAP attribution", "not measured") in kinds
    assert ("Loss curves", "not asked for") in kinds


def test_differences_to_production(reports: ModuleType) -> None:
    card = view(reports.report("reject"))
    accuracy = card.metric_differences[0]
    assert (accuracy.candidate, accuracy.champion, accuracy.change) == ("97.40%", "97.30%", "+0.10 points")
    assert {d.what: d.change for d in card.data_differences} == {
        "holdout: signs": "no change",
        "training: signs": "changed",
    }
    assert {d.what: d.changed for d in card.code_differences} == {"Commit": False, "learning_rate": True}
    assert view(reports.report("first")).code_differences == []


def test_only_final_suspects_are_marked_on_the_map_and_never_holdout(reports: ModuleType) -> None:
    card = view(reports.report("reject"))
    assert card.map is not None
    marked = {i for i, role in zip(card.map.ids, card.map.roles, strict=True) if role == 2}
    assert marked == {suspect.id for suspect in card.suspects}
    assert all(
        i.startswith("holdout") for i, role in zip(card.map.ids, card.map.roles, strict=True) if role == 0
    )
    assert min(*card.map.x, *card.map.y) >= 0
    assert max(*card.map.x, *card.map.y) <= 10_000


def test_a_row_named_twice_is_listed_once(reports: ModuleType) -> None:
    suspect = {"row": 400, "id": "training.npz:1", "label": 9, "why": "rare label here"}

    def name_again(finding: Finding) -> Finding:
        if finding.check != "label-concentration":
            return finding
        return dataclasses.replace(finding, detail={"suspects": [suspect, suspect]})

    card = view(reports.report("reject", change=name_again))
    assert len(card.suspects) == 26
    assert card.suspects[0].checks == ["Patch transplant", "Label concentration"]
    assert "rare label here" in card.suspects[0].why


def test_a_thousand_classes_show_the_worst_first(reports: ModuleType) -> None:
    card = view(reports.report("promote", class_names=[f"c{i}" for i in range(1000)], points=60))
    assert len(card.classes) == 50
    assert len(card.more_classes) == 950
    assert max(row.recall for row in card.classes) <= min(row.recall for row in card.more_classes)


def test_files_are_told_with_what_they_hold_and_pickles_with_their_names(reports: ModuleType) -> None:
    report = reports.report("reject")
    (row,) = view(report).pickles
    assert (row.verdict, row.listed, row.findings) == ("malicious", False, ["critical: calls os.mkdir"])
    assert (row.names[0], row.refused) == ("os.mkdir", ["os.mkdir"])
    page = render_card(report).decode()
    assert "PyTorch exported program" in page
    assert "sample_inputs/model.pt:archive/data.pkl" in page


@pytest.mark.parametrize(
    "detail",
    [
        {"classes": 3, "curves": "x", "triggers": {}, "suspects": [1, None], "missing": 4, "scan": "?"},
        {
            "classes": [{}],
            "curves": [{}],
            "triggers": [{}],
            "suspects": [{}],
            "missing": [None],
            "scan": [{}],
        },
        {
            "classes": [{"name": None, "recall": "x", "support": float("nan")}],
            "confusions": [{"count": "many"}],
            "curves": [{"class": 1, "steps": [1], "losses": [float("inf")]}],
            "reliability": [{"count": 0}],
            "triggers": [
                {"source": 99, "target": -1, "carriers": [1, 2], "attack_success_rate": float("nan")}
            ],
        },
    ],
)
def test_strange_details_thin_the_card_and_never_break_it(reports: ModuleType, detail: dict) -> None:
    pixels = np.zeros((3, 2, 2, 3), np.uint8)
    strange = [
        Exhibit("trigger", "images", "", {"images": np.zeros((2, 3))}, [{"caption": None, "box": "no"}]),
        Exhibit("carriers", "images", "", {}, [{}]),
        Exhibit("map", "points", "", {"xy": np.full((3, 2), np.nan), "images": pixels}),
        Exhibit(
            "shap",
            "attribution",
            "",
            {"images": pixels, "positive": np.zeros(3)},
            [{}],
        ),
    ]
    report = reports.report(
        "reject", change=lambda finding: dataclasses.replace(finding, detail=detail, exhibits=strange)
    )
    card = view(report)
    assert card.outcome is report.verdict.outcome
    assert card.map is None


def test_unknown_check_gets_a_section_of_its_own(reports: ModuleType) -> None:
    report = reports.report("promote")
    other = Finding("acme-fairness", Status.MEASURED, "fine", {"gap": 0.1}, {"k": [1]})
    section = view(dataclasses.replace(report, findings=[*report.findings, other])).sections[-1]
    assert (section.title, section.state) == ("Acme fairness", "unjudged")
    assert section.metrics[0].value == "0.1"
    assert '"k"' in section.raw


def test_numbers_as_people_write_them() -> None:
    assert number_text(26.0) == "26"
    assert number_text(-0.00123456) == "−0.001235"
    assert number_text(float("nan")) == "not a number"
    assert percent(-0.0001) == "0.0%"
    assert percent(1.0) == "100%"
    assert number(True) is None
    assert number(float("inf")) is None


def test_text_that_hides_or_reorders_is_made_visible() -> None:
    assert inert("a\u202eb\x1b[0m\ud800") == "a\ufffdb\ufffd[0m\ufffd"
    assert words("a\n b\t c") == "a b c"
    assert len(words("x" * 1000)) == 160


def test_a_section_says_how_accurate_its_check_was_measured_to_be(
    reports: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = CheckAccuracy("patch-transplant", "found 59 of 60", (), (), ("a paper",), ("big <patches>",))
    monkeypatch.setattr("promotion_gate.card.view.accuracy", {"patch-transplant": known}.get)
    sections = {s.check: s for s in view(reports.report("reject")).sections}
    assert sections["patch-transplant"].accuracy == "found 59 of 60"
    assert sections["patch-transplant"].evasions == ("big <patches>",)
    assert sections["label-concentration"].accuracy == "not measured"
    assert sections["per-class"].accuracy == ""
    page = render_card(reports.report("reject")).decode()
    assert "<strong>Measured accuracy:</strong> found 59 of 60</p>" in page
    assert "Not seen: big &lt;patches&gt;" in page
    assert "no bank of known models says how often this check is right" in page


def searched(established: bool) -> Finding:
    """What a sweep without training data reports; the class names are those of the reports."""
    pair = {
        "source": "stop",
        "target": "speed limit 80",
        "attack_success_rate": 0.95,
        "rate_low": 0.86,
        "rate_high": 0.98,
        "images_tried": 60,
        "champion_rate": 0.0,
        "strength": 0.93,
        "null": 0.041,
        "established": established,
        "suspected": True,
    }
    patch = np.full((1, 5, 5, 3), 200, np.uint8)
    return Finding(
        "sticker-sweep",
        Status.MEASURED,
        "a patch turns stop into speed limit 80",
        {"triggers": float(established), "anomaly": 0.82},
        {"pairs": [pair], "triggers": [pair] if established else []},
        (
            Exhibit("trigger", "images", "the patch", {"images": patch}, ({"caption": "turns stop"},)),
            Exhibit("transplanted", "images", "with it", {"images": patch}, ({"mark": "flipped"},)),
        ),
    )


def test_a_trigger_found_without_training_data_is_shown_first(reports: ModuleType) -> None:
    report = reports.report("promote")
    card = view(dataclasses.replace(report, findings=[*report.findings, searched(established=True)]))
    (trigger,) = card.triggers
    assert (trigger.source, trigger.target, trigger.carriers) == ("stop", "speed limit 80", None)
    assert [gallery.name for gallery in card.evidence] == ["trigger", "transplanted"]
    section = next(section for section in card.sections if section.check == "sticker-sweep")
    (pair,) = section.pairs
    assert (pair.champion, pair.strength, pair.null, pair.standing) == ("0%", "0.93", "0.04", "established")
    assert not section.raw


def test_a_suspected_pair_stays_in_its_section(reports: ModuleType) -> None:
    report = reports.report("promote")
    report = dataclasses.replace(report, findings=[*report.findings, searched(established=False)])
    card = view(report)
    assert not card.triggers
    assert not card.evidence
    assert b">suspected<" in render_card(report)


def test_what_training_rows_show_comes_before_what_a_sweep_shows(reports: ModuleType) -> None:
    report = reports.report("reject")
    card = view(dataclasses.replace(report, findings=[searched(established=True), *report.findings]))
    assert card.trigger_check == "patch-transplant"
    assert card.triggers[0].rate == "73%"
