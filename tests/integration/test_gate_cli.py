"""Every command as a user types it, against a real MLflow server."""

import json
import re
from pathlib import Path

import pytest
from junitparser import Failure, JUnitXml

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_promote_approve_and_roll_back_as_far_as_it_goes(cli, production, refused, register, home):
    name = register("story", "right", "right", "right")
    files = {suffix: home / f"story.{suffix}" for suffix in ("json", "xml", "md", "html")}
    options = (
        "--json",
        "story.json",
        "--junit",
        "story.xml",
        "--summary",
        "story.md",
        "--card",
        "story.html",
    )
    said = cli("run", f"models:/{name}/1", *options)
    assert said.startswith(f"PROMOTE {name}/1: every bound of the policy was met")
    assert "production is version 1, was none" in said
    assert "version 1" in cli("status", name).splitlines()[0]

    report = json.loads(files["json"].read_text())
    assert report["schema"] == "urn:promotion-gate:report:v1"
    assert report["verdict"]["outcome"] == "PROMOTE"
    metrics = {finding["check"]: finding["metrics"] for finding in report["findings"]}
    assert metrics["per-class"]["accuracy"] == 1
    cases = [case for suite in JUnitXml.fromfile(str(files["xml"])) for case in suite]
    assert {"artifacts", "model", "inputs", "per-class"} <= {case.name.split(".")[0] for case in cases}
    assert not any(isinstance(outcome, Failure) for case in cases for outcome in case.result)
    assert "PROMOTE" in files["md"].read_text()
    page = files["html"].read_text()
    assert page.lower().startswith("<!doctype html>")
    fetched = Path(cli("card", f"models:/{name}@production", "--dir", "cards").strip())
    assert fetched.read_text() == page

    said = cli("run", f"models:/{name}/2", "--no-promote", "--quiet")
    assert f"nothing was moved; promotion-gate approve {name}/2" in said
    assert production(name) == 1
    assert f"held: {name}/2" in cli("status", name)
    said = cli("approve", f"{name}/2", "--reason", "looked at the card")
    assert "production is version 2, was 1" in said
    cli("run", f"models:/{name}/3", "--policy", "gate.toml")
    assert production(name) == 3

    said = cli("rollback", name, "--reason", "misses yields")
    assert re.search(r"rolled back story: production is version 2, was 3 in [0-9.]+ s", said)
    assert "production is version 1, was 2" in cli("rollback", name, "--reason", "so does this one")
    before = cli("history", name, "--json")
    line = refused("rollback", name, "--reason", "and this one", code=5)
    assert "nothing was moved" in line
    assert production(name) == 1
    assert cli("history", name, "--json") == before

    events = json.loads(before)["events"]
    assert [(event["action"], event["from"], event["to"]) for event in events] == [
        ("promote", None, 1),
        ("hold", None, None),
        ("approve", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]
    assert all(event["verified"] and event["state"] == "done" for event in events)
    assert events[2]["record"]["reason"] == "looked at the card"
    assert len(cli("history", name).splitlines()) == 1 + len(events)
    assert "production is version 3, was 1" in cli("rollback", name, "--to", "3", "--reason", "mended")


def test_reject_and_hold_move_nothing_and_people_rule_on_what_is_held(
    cli, production, refused, register, home
):
    name = register("ruled", "right", "wrong", "nan")
    cli("run", f"models:/{name}/1")
    said = cli("run", f"models:/{name}/2", "--junit", "ruled.xml", "--summary", "ruled.md", code=3)
    assert said.startswith(f"REJECT {name}/2: per-class: accuracy is 0, at least 0.9 allowed")
    cases = [case for suite in JUnitXml.fromfile(str(home / "ruled.xml")) for case in suite]
    assert any(isinstance(outcome, Failure) for case in cases for outcome in case.result)
    assert "REJECT" in (home / "ruled.md").read_text()
    line = refused("approve", f"{name}/2", "--reason", "I like it", code=2)
    assert f"{name}/2 is not held: it was rejected" in line

    said = cli("run", f"models:/{name}/3", code=4)
    assert said.startswith(f"HOLD {name}/3: model: the model answers with NaN logits")
    assert production(name) == 1
    assert "production is unchanged" in cli("reject", f"{name}/3", "--reason", "NaN")
    assert "it was rejected" in refused("approve", f"{name}/3", "--reason", "no", code=2)
    assert "has not been judged" in refused("approve", "logged-nan/1", "--reason", "no", code=2)
    assert production(name) == 1


def test_a_policy_fresh_from_init_holds_and_says_what_is_not_there(cli, refused, register, home):
    name = register("fresh", "right")
    cli("init", "fresh.toml")
    assert "exists already" in refused("init", "fresh.toml", code=2)
    cli("init", "fresh.toml", "--force")
    said = cli("run", f"models:/{name}/1", "--policy", "fresh.toml", code=4)
    assert "inputs: " in said
    assert str(home / "holdout") in said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "models:/nobody/1"), 5, "nobody"),
        (("run", "models:/nobody@candidate"), 5, "nobody"),
        (("run", "nonsense"), 2, "nonsense"),
        (("run", "models:/nobody/1", "--policy", "no.toml"), 2, "no.toml"),
        (("run", "models:/nobody/1", "--json", "no/such/folder.json"), 2, "no/such"),
        (("rollback", "nobody", "--reason", "x"), 5, "nobody"),
        (("rollback", "nobody", "--reason", " "), 2, "reason"),
        (("approve", "nobody", "--reason", "x"), 2, "nobody"),
        (("status", "nobody"), 5, "nobody"),
        (("card", "models:/nobody/1"), 5, "nobody"),
    ],
)
def test_what_cannot_be_done_is_one_line(refused, arguments, code, says):
    assert says in refused(*arguments, code=code)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "models:/story/1"),
        ("approve", "story/1", "--reason", "x"),
        ("reject", "story/1", "--reason", "x"),
        ("rollback", "story", "--reason", "x"),
        ("status", "story"),
        ("history", "story"),
        ("card", "story/1"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(gate_cli, home, arguments):
    done = gate_cli(*arguments, "--tracking-uri", "http://127.0.0.1:9", cwd=home)
    assert done.returncode == 5
    complaint = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(complaint) == 1, done.stderr
    assert "127.0.0.1:9" in complaint[0]
    assert done.stdout == ""
