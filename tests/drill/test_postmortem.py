"""Reports and tickets, of drills that never ran."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from promotion_gate.drill.campaign import Campaign, CampaignRun, Failure, summarise
from promotion_gate.drill.gaps import gaps_of, gathered, ticket, write_tickets
from promotion_gate.drill.postmortem import (
    DrillView,
    Seen,
    _drill_ending,
    _named,
    _page,
    _times,
    _tried,
    campaign_lines,
    campaign_markdown,
    campaign_view,
    drill_lines,
    drill_markdown,
    write_campaign_report,
)

HOSTILE = '<script>alert(1)</script>"\x1b[2J\u202e| `x` **b**'


def view_of(outcome):
    picture = np.full((32, 32, 3), 90, np.uint8)
    return DrillView(
        outcome=outcome,
        description=HOSTILE,
        ending=_drill_ending(outcome),
        tried=_tried(outcome),
        named=list(_named(outcome)),
        times=_times(outcome),
        seen=[Seen("patch-transplant", "failed", HOSTILE), Seen("per-class", "passed", "fine")],
        gaps=gaps_of(outcome),
        pictures=[(picture, picture, HOSTILE)],
    )


@pytest.fixture
def campaign_run(ended, tmp_path):
    outcomes = [
        ended("caught"),
        ended("missed", scenario="watermark", attack="blended", seed=2),
        ended("missed", scenario="watermark", attack="blended", seed=3),
        ended("passed"),
        ended("false alarm", seed=9, scenario=HOSTILE[:20]),
    ]
    failures = [Failure("team", 4, HOSTILE)]
    return CampaignRun(
        campaign=Campaign(name="quarterly", drill=({"scenario": "flips"},)),
        home=SimpleNamespace(folder=tmp_path),
        summary=summarise("quarterly", outcomes, failures),
        outcomes=outcomes,
        newly_done=0,
        before=("2026-01-02T04:17:00+00:00", {"caught": 0.25}),
    )


@pytest.mark.parametrize(
    ("kind", "changes", "kinds"),
    [
        ("caught", {}, []),
        ("passed", {}, []),
        ("missed", {}, ["got-through"]),
        ("false alarm", {}, ["false-alarm-held"]),
        ("caught", {"target_right": False, "targets_named": []}, ["target-not-named"]),
        ("caught", {"source_right": False}, ["source-not-named"]),
        ("caught", {"carriers_hit": 3}, ["rows-not-listed"]),
        ("caught", {"unmeasured": {"training-curves": "not logged"}}, ["not-measured"]),
    ],
)
def test_each_gap_is_told(ended, kind, changes, kinds):
    assert [gap.kind for gap in gaps_of(ended(kind, **changes))] == kinds


def test_advice_fits_what_the_gate_was_not_given(ended):
    advice = gaps_of(ended("missed", training_data=False, champion=False, attack_success_rate=0.1))[0]
    text = " ".join(advice.advice)
    assert "name the training data" in text
    assert "keep a trusted model in production" in text
    assert "hardly works" in text
    assert "priority-low" in advice.labels
    assert "priority-high" in gaps_of(ended("missed"))[0].labels


def test_many_drills_make_one_ticket_a_gap_the_gravest_first(ended):
    outcomes = [
        ended("missed", seed=1, attack_success_rate=0.1),
        ended("missed", seed=2),
        ended("caught", source_right=False),
        ended("false alarm"),
    ]
    gaps = gathered(outcomes)
    assert [gap.kind for gap in gaps] == ["got-through", "false-alarm-held", "source-not-named"]
    assert gaps[0].title.endswith("(2 drills)")
    assert "priority-high" in gaps[0].labels
    assert sum("seed 2" in line for line in gaps[0].lines) == 1


def test_a_ticket_carries_title_and_labels_and_no_markup_of_others(ended):
    gap = gaps_of(ended("missed", scenario=HOSTILE))[0]
    _, front, body = ticket(gap).split("---\n", 2)
    table = yaml.safe_load(front)
    assert table["title"].startswith("<script>")
    assert "\x1b" not in table["title"]
    assert table["labels"].split(", ") == ["security-drill", "detection-gap", "priority-high"]
    assert "<script>" not in body
    assert "- [ ] " in body


def test_tickets_of_an_earlier_report_are_replaced_and_names_stay_apart(ended, tmp_path):
    (tmp_path / "old.md").touch()
    gaps = [gaps_of(ended("missed", scenario=name))[0] for name in ("a b", "a-b", "../../up")]
    paths = write_tickets(gaps, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert len({path.name for path in paths}) == 3


def inert_page(page):
    """The page's text, once nothing in it can run or load."""
    text = page.decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src &#39;none&#39;" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "<script" not in text
    assert " style=" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    return text


@pytest.mark.parametrize("kind", ["caught", "held", "missed", "passed", "false alarm"])
def test_a_drills_page_shows_its_end_and_stays_inert(ended, kind):
    view = view_of(ended(kind, scenario=HOSTILE, sources_named=[HOSTILE]))
    text = inert_page(_page("drill.html.j2", view=view))
    assert view.ending.word in text
    assert f"verdict-{view.ending.tone}" in text
    assert "&lt;script&gt;" in text
    for gap in view.gaps:
        assert gap.file_name in text


def test_a_drills_markdown_keeps_foreign_markup_out(ended):
    text = drill_markdown(view_of(ended("missed", scenario=HOSTILE)))
    assert text.startswith("# GOT THROUGH: ")
    assert "<script>" not in text
    assert "## What saw it" in text
    assert "## What did not" in text
    assert "Ticket: `got-through-" in text


def test_a_campaigns_report_is_written_whole(campaign_run, tmp_path):
    page = write_campaign_report(campaign_run)
    text = inert_page(page.read_bytes())
    assert "2 GOT THROUGH" in text
    assert "25%" in text, "the figure of the campaign before"
    assert "Drills that could not be carried out" in text
    told = (tmp_path / "campaign.md").read_text()
    assert "| blended | 0 | 0 | 2 |" in told
    assert "<script>" not in told
    assert len(list((tmp_path / "tickets").iterdir())) == len(campaign_view(campaign_run).gaps) == 2


def test_the_terminal_hears_what_got_through_and_what_failed(campaign_run, ended):
    lines = list(campaign_lines(campaign_run))
    assert lines[0].startswith("2 GOT THROUGH quarterly: 1 of 3 poisoned models caught")
    assert any(
        line.startswith("poisoned models caught: 1 of 3 (33%, ") and "before 25%" in line for line in lines
    )
    assert sum(line.startswith("got through: watermark") for line in lines) == 2
    assert any(line.startswith("failed: team with seed 4") for line in lines)
    spoken = list(drill_lines(ended("caught")))
    assert spoken[0].startswith("CAUGHT drill-stop-sticker-1/2: rejected by patch-transplant, 61.5 s after")
    assert "rows: 31 listed, in truth 30 poisoned (29 of them poisoned)" in spoken


def test_nothing_new_means_nothing_is_logged_again(campaign_run):
    # The home of this run has no registry: touching it would raise.
    write_campaign_report(campaign_run)


def test_a_clean_sheet_says_so(ended, tmp_path):
    outcomes = [ended("caught"), ended("passed")]
    run = CampaignRun(
        Campaign(name="q", drill=({"scenario": "flips"},)),
        SimpleNamespace(folder=tmp_path),
        summarise("q", outcomes),
        outcomes,
        0,
    )
    text = campaign_markdown(campaign_view(run))
    assert text.startswith("# ALL CAUGHT: q")
    assert "Nothing that this showed." in text
