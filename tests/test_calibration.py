"""The calibrate command: findings of clean models in, a policy with its comments kept out."""

import json
from pathlib import Path

import pytest

from promotion_gate.calibration import clean_refs
from promotion_gate.cli import main
from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import load_policy
from promotion_gate.core.types import ModelRef

POLICY = """\
# Our policy.
version = 1  # the format

[data.holdout]
path = "holdout"

[checks.per-class.bounds]
accuracy = { min = 0.9 }  # asked for by the product team
worst_recall = { min = 0.5, otherwise = "hold" }

# Found patches.
[checks.patch-transplant.bounds]
triggers = { max = 0 }
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.toml").write_text(POLICY)
    return tmp_path


def report(version, accuracy=0.97, recall=0.8, triggers=0.0, sha256=None, policy=POLICY):
    """What ``run --json`` writes, as far as it is read here."""

    def finding(check, metrics, status="MEASURED"):
        return {"check": check, "status": status, "summary": "", "metrics": metrics, "not_applicable": {}}

    return {
        "schema": "urn:promotion-gate:report:v1",
        "candidate": {"name": "signs", "version": version, "sha256": sha256 or f"{version:064x}"},
        "policy": policy,
        "findings": [
            finding("artifacts", {"violations": 0.0}),
            finding("model", {}),
            finding("inputs", {}),
            finding("per-class", {"accuracy": accuracy, "worst_recall": recall}),
            finding("patch-transplant", {"triggers": triggers}),
        ],
    }


def written(*reports):
    names = []
    for number, content in enumerate(reports):
        name = f"findings-{number}.json"
        Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
        names.append(name)
    return names


def fleet(count):
    return [report(v, accuracy=(950 + v) / 1000, recall=(40 + v) / 100) for v in range(1, count + 1)]


def run(capsys, *arguments):
    code = main(["calibrate", *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def refused(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert out == ""
    assert err.startswith("promotion-gate: ")
    assert err.count("\n") == 1
    return code, err


def test_it_writes_the_policy_with_its_comments_and_the_new_bounds(capsys, place):
    code, out, _ = run(capsys, "--false-alarm-rate", "0.1", "--findings", *written(*fleet(19)))
    assert code == 0
    assert (place / "gate.toml").read_text() == POLICY
    text = (place / "gate.calibrated.toml").read_text()
    assert text == POLICY.replace("min = 0.9 ", "min = 0.951 ").replace("min = 0.5,", "min = 0.41,")
    policy = load_policy(place / "gate.calibrated.toml")
    assert policy.checks["per-class"].bounds["worst_recall"].otherwise == "hold"
    assert "tightened per-class.accuracy min 0.9 -> 0.951: the smallest of 19 clean models" in out
    assert "loosened per-class.worst_recall min 0.5 -> 0.41" in out
    assert "some bounds are looser now" in out
    assert "kept patch-transplant.triggers max 0: allows none, and is never loosened" in out
    assert "promoted before: 10 of 19 of these models; with these bounds: 19" in out


def test_with_few_models_it_keeps_every_bound_and_says_what_is_missing(capsys, place):
    code, out, _ = run(capsys, "--findings", *written(*fleet(3)))
    assert code == 0
    assert (place / "gate.calibrated.toml").read_text() == POLICY
    assert "clean models that a bound needs: 39" in out
    assert out.count("kept ") == 3


def test_a_model_that_breaks_a_bound_without_tolerance_stops_it(capsys, place):
    files = written(*fleet(5), report(6, triggers=1.0))
    code, line = refused(capsys, "--findings", *files)
    assert code == 2
    assert "signs/6 cannot be called clean: patch-transplant: triggers is 1" in line
    assert not (place / "gate.calibrated.toml").exists()


def test_a_model_counts_once(capsys):
    for double in (report(1), report(2, sha256=f"{1:064x}")):
        code, line = refused(capsys, "--findings", *written(report(1), double))
        assert code == 2
        assert "findings-1.json and findings-0.json are of" in line


def test_findings_under_other_options_or_data_are_noted(capsys):
    other = POLICY.replace("triggers =", "suspected_triggers = { max = 0 }\ntriggers =")
    changed = POLICY + "[checks.patch-transplant.options]\nconsensus = 5\n"
    moved = POLICY.replace('"holdout"', '"elsewhere"')
    files = written(report(1), report(2, policy=other), report(3, policy=changed), report(4, policy=moved))
    _, out, _ = run(capsys, "--findings", *files)
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: findings-{i}.json was measured under another [{what}] than the policy's"
        for i, what in ((2, "checks.patch-transplant.options"), (3, "data"))
    ]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": "urn:other"}',
        report(1) | {"findings": [{"check": "x"}]},
        report(1) | {"candidate": 1},
        report(1) | {"policy": None},
        "[" * 100_000,
    ],
    ids=range(9),
)
def test_what_is_no_report_is_one_line(capsys, content):
    code, line = refused(capsys, "--findings", *written(content))
    assert code == 2
    assert "findings-0.json" in line


def test_a_file_that_is_not_there_is_one_line(capsys):
    code, line = refused(capsys, "--findings", "absent.json")
    assert "cannot read absent.json: No such file" in line
    assert code == 2


def test_it_replaces_no_file(capsys, place):
    (place / "gate.calibrated.toml").write_text("mine")
    code, line = refused(capsys, "--findings", *written(report(1)))
    assert code == 2
    assert "exists already" in line
    assert (place / "gate.calibrated.toml").read_text() == "mine"


def test_another_folder_is_noted_since_data_paths_are_relative(capsys, place):
    (place / "elsewhere").mkdir()
    _, out, _ = run(capsys, "--findings", *written(report(1)), "--out", "elsewhere/new.toml")
    assert f"note: relative data paths in elsewhere/new.toml are now relative to {place}/elsewhere" in out


@pytest.mark.parametrize(
    "arguments", [(), ("--clean-models", "signs/1", "--findings", "f.json"), ("--clean-models", "signs")]
)
def test_it_needs_clean_models_or_findings(capsys, arguments):
    code, line = refused(capsys, *arguments, "--tracking-uri", "http://127.0.0.1:9")
    assert code == 2
    assert "name clean models, or findings" in line or "not model versions: 'signs'" in line


@pytest.mark.parametrize("rate", ["0", "1", "-1", "nan", "often"])
def test_a_rate_that_is_no_share_is_wrong_usage(capsys, rate):
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--false-alarm-rate", rate])
    assert "not a share between 0 and 1" in capsys.readouterr().err


def test_versions_can_be_named_together():
    expected = [ModelRef("signs", v) for v in (3, 5, 8, 9)] + [ModelRef("cars", 1)]
    assert clean_refs(["models:/signs/3,5,8-9", "cars/1"]) == expected


@pytest.mark.parametrize("text", ["signs/3-1", "signs/1-2-3", "signs/", "signs/1,,2", "a/1-9999999", "s/1,1"])
def test_versions_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError):
        clean_refs([text])
