import json
from importlib.resources import files

import jsonschema
import pytest
from junitparser import JUnitXml

from promotion_gate.cli import main
from promotion_gate.validation.expectations import parse_expectations
from promotion_gate.validation.page import validation_page
from promotion_gate.validation.report import validation_json, validation_junit
from promotion_gate.validation.run import validate

TEXT = """version = 1
[labels]
exact = ["stop"]
[duplicates]
max_exact = 0
[leakage]
"""


@pytest.fixture
def found(folder, picture):
    folder.add("stop/<b>again.png", picture(0)).add("stop/bad\x07.png", b"bad")
    return validate(str(folder.path), parse_expectations(TEXT))


def test_json_fits_its_schema(found):
    schema = json.loads(files("promotion_gate.validation").joinpath("validation.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    report = json.loads(validation_json(found))
    jsonschema.validate(report, schema)
    assert report["expectations_sha256"] == found.expectations.digest
    del report["met"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, schema)


def test_junit_has_a_case_an_expectation(found, tmp_path):
    path = tmp_path / "v.xml"
    path.write_bytes(validation_junit(found))
    (suite,) = JUnitXml.fromfile(str(path))
    cases = {case.name: [type(one).__name__ for one in case.result] for case in suite}
    assert cases["labels.exact"] == ["Failure"]
    assert cases["leakage.max_near"] == ["Error"]
    assert cases["duplicates.max_across_labels"] == []
    assert (suite.tests, suite.failures, suite.errors) == (len(found.judged), 3, 2)


def test_the_page_shows_pictures_and_runs_nothing(found):
    page = validation_page(found).decode()
    assert "<script" not in page
    assert "<b>again" not in page
    assert "&lt;b&gt;again.png" in page
    assert "\x07" not in page
    assert page.count("data:image/png;base64,") >= 12
    assert "cannot be shown" in page
    assert page.index("labels.exact") < page.index("leakage.max_exact") < page.index("max_across_labels")


def run(*arguments):
    return main([str(one) for one in arguments])


def test_the_command_from_profile_to_verdict(folder, tmp_path, capsys):
    expect = tmp_path / "expect.toml"
    assert run("validate", folder.path, "--profile", "--expect-out", expect, "--quiet") == 0
    assert run("validate", folder.path, "--profile", "--expect-out", expect, "--quiet") == 2
    assert run("validate", folder.path, "--profile", "--expect-out", expect, "--force", "--quiet") == 0
    assert run("validate", folder.path, "--expect", expect, "--quiet") == 0
    folder.add("stop/\x1b[2Jbad.png", b"bad")
    names = ["--html", "v.html", "--json", "v.json", "--junit", "v.xml", "--metadata", "v.parquet"]
    written = [name if name.startswith("--") else tmp_path / name for name in names]
    capsys.readouterr()
    assert run("validate", folder.path, "--expect", expect, "--quiet", *written) == 3
    out = capsys.readouterr().out
    assert "NOT MET files.max_unreadable: 1 of 21 images cannot be read whole" in out
    assert "\x1b" not in out
    assert all(path.stat().st_size for path in written[1::2])
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--expect", "none.toml"],
        ["--profile", "--junit", "x.xml"],
        ["--expect-out", "x.toml"],
        ["--expect", "e.toml", "--html", "no/such/folder.html"],
        ["--expect", "e.toml", "--holdout", "nothing"],
        ["--expect", "e.toml", "--gx-suite", "nothing"],
        ["--expect", "e.toml", "--pandera", "schema.py"],
    ],
)
def test_wrong_usage(folder, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.toml").write_text("version = 1\n[files]\n")
    assert run("validate", folder.path, "--quiet", *options) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_sheet_and_its_marks_by_command(folder, tmp_path, capsys):
    out, marks = tmp_path / "sheet.html", tmp_path / "marks.json"
    assert run("audit-sample", folder.path, "-n", 8, "--out", out, "--quiet") == 0
    made = out.stat().st_mtime_ns
    assert run("audit-sample", folder.path, "-n", 8, "--out", out, "--quiet") == 2
    assert out.stat().st_mtime_ns == made, "a person may have put marks on it"
    assert run("audit-sample", folder.path, "-n", 8, "--out", out, "--force", "--quiet") == 0
    text = out.read_text().split('id="sheet">')[1].split("</script>")[0]
    marked = json.loads(text)
    marked["images"][0]["wrong"] = True
    marks.write_text(json.dumps(marked))
    capsys.readouterr()
    assert run("audit-sample", "--marks", marks, folder.path, "--quarantine", tmp_path / "q.json") == 0
    assert "1 of 4 labels marked wrong" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "q.json").read_text())["rows"]) == 1
    assert run("audit-sample", "--marks", tmp_path / "none.json", folder.path) == 2
    assert run("audit-sample", folder.path, "-n", 1, "--out", out) == 2
    assert run("audit-sample", folder.path, "--quarantine", tmp_path / "q.json") == 2
