import fcntl
import json
import os

import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.drill import campaign as campaigns
from promotion_gate.drill.campaign import (
    Failure,
    Share,
    load_campaign,
    read_outcomes,
    shipped_campaigns,
    summarise,
)

TWO = """
name = "two"
seeds = [1, 2]
[changes.data]
training_images = 500
[[drill]]
scenario = "clean-control"
[[drill]]
scenario = "stop-sticker"
seeds = [7]
attack = { rate = 0.01 }
training = { from = "champion", epochs = 3 }
[[drill]]
name = "spelled out"
attack = { kind = "label-flip", source = "stop", target = "yield", rate = 0.002 }
data = { renderer = "signs" }
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "campaign.toml"
        path.write_text(text)
        return path

    return write


def test_every_scenario_meets_every_seed_with_the_changes_laid_over(written):
    campaign, work = load_campaign(written(TWO))
    assert campaign.name == "two"
    assert [(s.name, seed) for s, seed in work] == [
        ("clean-control", 1),
        ("clean-control", 2),
        ("stop-sticker", 7),
        ("spelled out", 1),
        ("spelled out", 2),
    ]
    assert {s.data.training_images for s, _ in work} == {500}
    sticker = work[2][0]
    assert (sticker.attack.rate, sticker.training.start, sticker.training.epochs) == (0.01, "champion", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name: missing"),
        ('name = "x"', "drill: missing"),
        ('name = "x"\ndrill = []', "drill: "),
        ('name = "x"\ncolour = 1\n[[drill]]\nscenario = "flips"', "colour: unknown key"),
        ('name = "x"\nseeds = []\n[[drill]]\nscenario = "flips"', "seeds"),
        ('name = "x"\nseeds = [-1]\n[[drill]]\nscenario = "flips"', "seeds"),
        ('name = "x"\n[[drill]]\nscenario = "flops"', "drill 1: no scenario 'flops'"),
        ('name = "x"\n[[drill]]\nscenario = "flips"\nspeed = 3', "drill 1"),
        ('name = "x"\n[[drill]]\nscenario = "flips"\nattack = {rate = 7}', "rate: "),
        ('name = "x"\n[[drill]]\nscenario = "flips"\n[[drill]]\nscenario = "flips"', "the same as drill 1"),
    ],
)
def test_a_wrong_campaign_is_one_clear_line(written, text, said):
    with pytest.raises(UsageError) as error:
        load_campaign(written(text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_quarterly_one_is_shipped():
    for name in shipped_campaigns():
        load_campaign(name)
    campaign, work = load_campaign("quarterly")
    assert {scenario.name for scenario, _ in work} == {"clean-control", "stop-sticker", "flips", "watermark"}
    assert len(work) == 4 * len(campaign.seeds)
    with pytest.raises(UsageError, match=r"there are .*quarterly"):
        load_campaign("monthly")


def test_outcomes_are_kept_line_by_line_and_half_a_line_is_done_again(tmp_path, ended):
    path = tmp_path / "outcomes.jsonl"
    assert read_outcomes(path) == {}
    campaigns._append(path, ended(key="a"))
    campaigns._append(path, ended(key="b", scenario="ü"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert list(read_outcomes(path)) == ["a"]
    campaigns._append(path, ended(key="b", scenario="ü"))
    assert path.read_bytes() == whole
    assert {key: o.scenario for key, o in read_outcomes(path).items()} == {"a": "stop-sticker", "b": "ü"}


def test_a_line_that_is_no_outcome_is_named(tmp_path, ended):
    path = tmp_path / "outcomes.jsonl"
    path.write_text(f"{ended().to_json()}\n{{}}\n")
    with pytest.raises(UsageError, match=r"outcomes\.jsonl, line 2: .*remove the line"):
        read_outcomes(path)


def test_two_campaigns_do_not_share_a_folder(tmp_path):
    with campaigns._alone(tmp_path):
        descriptor = os.open(tmp_path / campaigns.LOCK_FILE, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        with pytest.raises(UsageError, match="another campaign works in"), campaigns._alone(tmp_path):
            pass
    with campaigns._alone(tmp_path):
        pass


@pytest.mark.parametrize("models", [False, True])
def test_doing_it_again_puts_the_old_outcomes_aside(tmp_path, ended, models):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.pt").touch()
    campaigns._append(tmp_path / "outcomes.jsonl", ended())
    before = campaigns._round(tmp_path)
    assert campaigns._round(tmp_path) == before
    campaigns._put_aside(tmp_path, models=models)
    assert read_outcomes(tmp_path / "outcomes.jsonl") == {}
    assert len(read_outcomes(tmp_path / "outcomes-1.jsonl")) == 1
    assert (tmp_path / "models" / "x.pt").exists() is not models
    assert campaigns._round(tmp_path) != before


def test_the_summary_counts_what_it_says(ended):
    outcomes = [
        ended("caught"),
        ended("caught", time_to_detection_s=20.0, source_right=False, carriers_hit=1, carriers_true=30),
        ended("held", attack="label-flip", attack_success_rate=0.1, source_right=None, training_data=False),
        ended("missed", attack_success_rate=0.5),
        ended("passed"),
        ended("false alarm"),
        ended("false alarm", attack="label-noise", outcome=Outcome.REJECT),
    ]
    told = summarise("q", outcomes, [Failure("x", 1, "no GPU")])
    assert (told.caught.count, told.caught.of) == (3, 4)
    assert (told.rejected.count, told.rejected.of) == (2, 4)
    assert (told.false_alarms.count, told.false_alarms.of) == (2, 3)
    assert (told.false_rejections.count, told.false_rejections.of) == (1, 3)
    assert (told.source_right.count, told.source_right.of) == (1, 2)
    assert (told.rows_found.count, told.rows_found.of) == (30, 60)
    assert list(told.time_to_detection_s) == [20.0, 61.5, 61.5]
    assert told.time_quantile(0.5) == 61.5
    assert [(name, share.count, share.of) for name, share in told.strata] == [
        ("at least 80%", 2, 2),
        ("30% to 80%", 0, 1),
        ("below 30%", 1, 1),
        ("no trigger to try", 0, 0),
    ]
    rows = {row.attack: (row.rejected, row.held, row.promoted, row.harmless) for row in told.attacks}
    assert rows == {
        "patch": (2, 0, 1, False),
        "label-flip": (0, 1, 0, False),
        "clean": (0, 1, 1, True),
        "label-noise": (1, 0, 0, True),
    }
    assert told.checks == [("patch-transplant", 2, 0), ("label-concentration", 1, 2)]
    metrics = told.metrics
    assert metrics["caught"] == 0.75
    assert metrics["failed_drills"] == 1
    assert metrics["stopped.patch"] == pytest.approx(2 / 3)
    assert 0 < metrics["caught_low"] < 0.75 < metrics["caught_high"] < 1
    json.dumps(metrics, allow_nan=False)


def test_a_summary_of_nothing_claims_nothing():
    told = summarise("q", [])
    assert told.caught == Share(0, 0, 0.0, 1.0)
    assert told.caught.share is None
    assert "caught" not in told.metrics
    assert told.time_quantile(0.5) is None


def test_the_rate_1_belongs_to_the_highest_stratum(ended):
    strata = dict(summarise("q", [ended(attack_success_rate=1.0), ended(attack_success_rate=0.8)]).strata)
    assert strata["at least 80%"].of == 2
