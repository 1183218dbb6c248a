"""The four questions, each with a repository for every answer."""

import html
import json

import pytest

from promotion_gate.card.posture import render_posture
from promotion_gate.cli import main
from promotion_gate.provenance.posture.owners import CodeOwners
from promotion_gate.provenance.register import Particulars, add_path

VALIDATE = "promotion-gate dbom verify"
TRAIN = "python train.py"


def dbom(*names, status="vetted"):
    components = [
        {
            "type": "data",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": "a" * 64}],
            "properties": [{"name": "promotion-gate:status", "value": status}],
        }
        for name in names
    ]
    return json.dumps({"bomFormat": "CycloneDX", "components": components})


def workflow(*steps):
    lines = "".join(f"      - run: {step}\n" for step in steps)
    return f"on: push\njobs:\n  train:\n    steps:\n{lines}"


def two_jobs(needs):
    first = f"  a:\n    steps:\n      - run: {VALIDATE}\n"
    return f"jobs:\n{first}  b:\n    needs: {needs}\n    steps:\n      - run: {TRAIN}\n"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The posture of a folder with these files, as JSON."""

    def ask(files, *arguments):
        for name, text in files.items():
            path = tmp_path / "repo" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.chdir(tmp_path / "repo")
        code = main(["posture", "--json", "../p.json", "--html", "../p.html", *arguments])
        document = json.loads((tmp_path / "p.json").read_text())
        return code, {a["key"]: a["answer"] for a in document["answers"]}, document

    return ask


def test_an_empty_repository_answers_nothing_with_yes(asked):
    code, answers, document = asked({"README.md": "x"})
    assert code == 0
    assert answers == {
        "public-pulls": "not to be told",
        "floating-versions": "not to be told",
        "validation": "not to be told",
        "review": "no",
    }
    assert document["checksum_coverage"]["share"] is None


def test_a_well_kept_repository(asked):
    files = {
        ".github/workflows/train.yml": workflow(VALIDATE, TRAIN),
        "train.py": "from promotion_gate import open_dataset\nopen_dataset('gtsrb')\n",
        "dbom.json": dbom("gtsrb"),
        ".github/CODEOWNERS": "* @us/all\n/dbom.json @us/data\n",
    }
    code, answers, document = asked(files, "--min-coverage", "100", "--min-validation", "100")
    assert set(answers.values()) == {"yes"}
    assert (
        document["checksum_coverage"]["text"] == document["validated_pipelines"]["text"] == "1 of 1 (100 %)"
    )
    assert code == 0


def test_a_pull_in_a_script_that_a_workflow_calls_is_found(asked):
    files = {
        ".github/workflows/ci.yml": workflow("bash scripts/get.sh", "make data"),
        "scripts/get.sh": "wget https://h.org/a.zip\n",
        "Makefile": "data:\n\tcurl -LO https://h.org/b.zip\n",
        "unused.sh": "wget https://h.org/c.zip\n",
    }
    _, answers, document = asked(files)
    assert answers["public-pulls"] == answers["floating-versions"] == "no"
    places = next(a["evidence"] for a in document["answers"] if a["key"] == "public-pulls")
    assert {(p["path"], p["line"]) for p in places} == {("scripts/get.sh", 1), ("Makefile", 2)}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (workflow(VALIDATE, TRAIN), "yes"),
        (workflow(f"{VALIDATE} && {TRAIN}"), "yes"),
        (workflow("pytest tests/data", TRAIN), "yes"),
        (workflow("python train.py --no-validate-data"), "no"),
        (workflow("python train.py --mode validate-data", "python train.py"), "no"),
        (workflow("git commit -m validate-data", TRAIN), "no"),
        (workflow(f"{VALIDATE} --help", TRAIN), "no"),
        (workflow("python -m tools.validate_data", TRAIN), "yes"),
        (workflow("bash scripts/check-data.sh", TRAIN), "yes"),
        (workflow("uv run promotion-gate validate data", TRAIN), "yes"),
        (workflow("make validate-data", TRAIN), "yes"),
        (workflow(TRAIN, VALIDATE), "no"),
        (workflow(TRAIN), "no"),
        (workflow(f"{VALIDATE} || true", TRAIN), "no"),
        (workflow(f"'# {VALIDATE}'", TRAIN), "no"),
        (workflow(f'echo "{VALIDATE}"', TRAIN), "no"),
        (workflow("make lint"), "not to be told"),
        (workflow(f"{VALIDATE}\n        continue-on-error: true", TRAIN), "no"),
        (workflow(f"{VALIDATE}\n        if: false", TRAIN), "no"),
        (two_jobs("a"), "yes"),
        (two_jobs("c"), "no"),
    ],
)
def test_validation_counts_before_the_training_alone(text, answer, asked):
    _, answers, _ = asked({".github/workflows/t.yml": text})
    assert answers["validation"] == answer


def test_other_kinds_of_pipelines(asked):
    gitlab = f"stages: [train, check]\nv:\n  stage: check\n  script: [{VALIDATE}]\n"
    gitlab += f"t:\n  stage: train\n  script: [{TRAIN}]\n"
    argo = (
        "kind: Workflow\nspec:\n  templates:\n    - name: t\n      container:\n"
        "        command: [sh, -c]\n        args: ['promotion-gate validate data && python train.py']\n"
    )
    project = "name: x\nentry_points:\n  main:\n    command: 'python src/train.py'\n"
    script = "import pandera\npandera.validate\n"
    _, answers, document = asked(
        {".gitlab-ci.yml": gitlab, "argo.yaml": argo, "MLproject": project, "src/train.py": script}
    )
    assert answers["validation"] == "no"
    assert document["validated_pipelines"]["text"] == "2 of 3 (67 %)"


@pytest.mark.parametrize(
    ("text", "path", "owners"),
    [
        ("* @a\n", "dbom.json", ("@a",)),
        ("* @a\n/dbom.json @b\n", "dbom.json", ("@b",)),
        ("/dbom.json @b\n* @a\n", "dbom.json", ("@a",)),
        ("* @a\n/dbom.json\n", "dbom.json", ()),
        ("/data/ @b\n", "data/x/y", ("@b",)),
        ("data/* @b\n", "data/x", ("@b",)),
        ("data/* @b\n", "data/x/y", None),
        ("*.json you@example.org # why\n", "a/dbom.json", ("you@example.org",)),
        ("!dbom.json @a\n", "dbom.json", None),
        ("dbom.json nobody\n", "dbom.json", None),
        ("# dbom.json @a\n", "dbom.json", None),
    ],
)
def test_the_last_pattern_that_matches_decides(text, path, owners):
    found = CodeOwners("CODEOWNERS", text).of(path)
    assert (None if found is None else found.owners) == owners


@pytest.mark.parametrize("place", [".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS"])
def test_the_three_places(place, asked):
    assert asked({place: "dbom.json @a\n", "dbom.json": dbom()})[1]["review"] == "yes"


def test_only_the_first_place_counts(asked):
    files = {".github/CODEOWNERS": "x @a\n", "CODEOWNERS": "dbom.json @a\n", "dbom.json": dbom()}
    assert asked(files)[1]["review"] == "no"


def test_quarantined_and_unregistered_sets_are_not_covered(asked):
    code = "import torchvision as t\nt.datasets.MNIST('d')\nt.datasets.SVHN('d')\n"
    files = {"a.py": code, "dbom.json": dbom("mnist", status="quarantined")}
    assert asked(files, "--min-coverage", "1")[0] == 3
    code, _, document = asked({"dbom.json": dbom("mnist")}, "--min-coverage", "50")
    assert (code, document["checksum_coverage"]["text"]) == (0, "1 of 2 (50 %)")


@pytest.mark.parametrize("arguments", [["nowhere"], ["--dbom", "nowhere"], ["--html", "no/such/folder"]])
def test_wrong_use_ends_with_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["posture", *arguments]) == 2


def test_the_page_is_inert():
    hostile = "</style><script>alert(1)</script>\u202e"
    answer = {"key": "k", "question": hostile, "answer": hostile, "because": hostile, "advice": hostile,
              "evidence": [{"path": hostile, "line": 1, "what": hostile, "good": False}]}  # fmt: skip
    share = {"text": hostile}
    table = {
        "answers": [answer],
        "checksum_coverage": share,
        "validated_pipelines": share,
        "unreadable": [hostile],
    }
    page = render_posture(table, hostile).decode()
    assert "<script" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in html.unescape(page)


def test_an_option_in_the_script_that_trains_is_no_validation(asked):
    script = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--no-validate-data')\n"
    script += "# validate_data(x)\ndef validate_data(x):\n    pass\n"
    files = {".github/workflows/t.yml": workflow(TRAIN), "train.py": script}
    assert asked(files)[1]["validation"] == "no"


@pytest.mark.parametrize("words", ["python ", "make ", "sha256sum ", "pytest -k ", "promotion-gate ", "./"])
def test_a_hostile_step_is_read_in_one_pass(words, asked):
    """Quadratic, this takes minutes; the suite's own limit ends it."""
    text = words * (100_000 // len(words))
    asked({".github/workflows/t.yml": workflow(text), "Makefile": "x:\n\ty\n"})


def test_data_that_changed_is_not_covered(asked, tmp_path):
    data = tmp_path / "repo" / "data.csv"
    data.parent.mkdir()
    data.write_text("a,b\n")
    code = "from promotion_gate import open_dataset\nopen_dataset('set')\n"
    add_path(tmp_path / "repo" / "dbom.json", data, Particulars("set", "1", license="CC0-1.0"))
    assert asked({"a.py": code})[2]["checksum_coverage"]["text"] == "1 of 1 (100 %)"
    data.write_text("changed\n")
    assert asked({})[2]["checksum_coverage"]["text"] == "0 of 1 (0 %)"
