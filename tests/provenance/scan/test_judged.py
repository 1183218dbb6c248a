"""Registered or not, suppressions, the baseline, SARIF, broken files and the command."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest

from promotion_gate.cli import main
from promotion_gate.core.errors import UsageError
from promotion_gate.provenance.scan.address import within
from promotion_gate.provenance.scan.baseline import baseline_text, read_baseline
from promotion_gate.provenance.scan.entry import Known
from promotion_gate.provenance.scan.judge import UNEXPLAINED, UNREADABLE, UNREGISTERED
from promotion_gate.provenance.scan.registered import RegisteredSets, read_registered
from promotion_gate.provenance.scan.run import read_settings, scan_folder
from promotion_gate.provenance.scan.sarif import sarif_log
from promotion_gate.provenance.scan.sources import load_sources

HERE = Path(__file__).parent


@pytest.fixture
def scanned(tmp_path, sources, write_dbom):
    """Scan a folder with these files against these registered sets."""

    def scan(files, *components, **options):
        root = tmp_path / "repo"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        registered = read_registered(write_dbom(tmp_path / "dbom.json", *components))
        return scan_folder(root, sources, registered, **options)

    return scan


GTSRB = "import torchvision\ntorchvision.datasets.GTSRB('d')\n"
WEB = "import pandas\npandas.read_csv('https://h.org/data/a.csv')\n"
HUB = "import datasets\ndatasets.load_dataset('user/set')\n"
LOAD = "import promotion_gate\npromotion_gate.open_dataset('gtsrb')\n"


@pytest.mark.parametrize(
    ("code", "component", "known"),
    [
        (GTSRB, {"name": "gtsrb"}, True),
        (GTSRB, {"name": "gtsrb", "status": "quarantined"}, False),
        (GTSRB, {"name": "gtsrb-2"}, False),
        (WEB, {"name": "x", "origin": "https://h.org/data/a.csv"}, True),
        (WEB, {"name": "x", "mirror": "https://h.org/data"}, True),
        (WEB, {"name": "x", "origin": "http://h.org/data/a.csv"}, False),
        (WEB, {"name": "x", "origin": "https://h.org/"}, False),
        (WEB, {"name": "x", "origin": "https://h.org/dat"}, False),
        (HUB, {"name": "x", "origin": "https://huggingface.co/datasets/user/set"}, True),
        (HUB, {"name": "set"}, False),
        (LOAD, {"name": "gtsrb"}, True),
        (LOAD, {"name": "GTSRB"}, False),
    ],
)
def test_registered_by_name_or_address(code, component, known, scanned, write_dbom):
    (finding,) = scanned({"a.py": code}, write_dbom.component(**component)).findings
    assert (finding.registered.known is Known.YES) is known
    assert (finding.rule != UNREGISTERED) is known


@pytest.mark.parametrize(
    ("address", "place", "inside"),
    [
        ("s3://b/k/x", "s3://b/k", True),
        ("s3://b/kx", "s3://b/k", False),
        ("s3://b/k/../../c", "s3://b/k", False),
        ("https://h/a/%2e%2e/b", "https://h/a", False),
        ("https://good@evil/a/b", "https://good/a", False),
        ("https://h:443/a/b", "https://h/a", True),
        ("https://h/a?x=1", "https://h/a", False),
        ("https://h/{…}", "https://h/a", False),
        ("https://h/a/{…}", "https://h/a", True),
        ("https://{…}/a", "https://{…}/a", False),
    ],
)
def test_an_address_lies_within_a_place(address, place, inside):
    assert within(address, place) is inside


def test_the_mirror_is_told_from_the_public_net(scanned, write_dbom):
    files = {"a.sh": "wget https://m.org/v1.0/a.zip\nwget https://h.org/a.zip\n"}
    sets = write_dbom.component("a", mirror="https://m.org/v1.0/a.zip", origin="https://h.org/a.zip")
    mirrored, public = scanned(files, sets).findings
    assert (mirrored.mirror.known, public.mirror.known) == (Known.YES, Known.NO)


def test_a_suppression_needs_a_reason_and_must_be_a_comment(scanned):
    scan = scanned(
        {
            "a.py": "import seaborn\nseaborn.load_dataset('a')  # promotion-gate: allow teaching material\n"
            "# promotion-gate: allow the demo's own\nseaborn.load_dataset(\n    'b')\n"
            "seaborn.load_dataset('c')  # promotion-gate: allow\n"
            "seaborn.load_dataset('d'); '''# promotion-gate: allow in a string'''\n"
            "x = 1  # promotion-gate: allow nothing at all\n",
        }
    )
    rules = [(f.line, f.rule, f.allowed) for f in scan.findings]
    assert rules == [
        (2, UNREGISTERED, "teaching material"),
        (4, UNREGISTERED, "the demo's own"),
        (6, UNEXPLAINED, ""),
        (6, UNREGISTERED, ""),
        (7, UNREGISTERED, ""),
    ]
    assert [f.line for f in scan.failing] == [6, 6, 7]
    assert scan.idle == [("a.py", 8)]


def test_a_baseline_survives_moved_lines_and_not_a_second_call(scanned, tmp_path):
    before = scanned({"a.py": GTSRB})
    path = tmp_path / "baseline.json"
    path.write_text(baseline_text(before.findings, "was there"))
    baseline = read_baseline(path)
    moved = scanned({"a.py": "# more\n\n" + GTSRB}, baseline=baseline)
    assert [f.known for f in moved.findings] == ["was there"]
    assert not moved.failing
    twice = scanned({"a.py": GTSRB + GTSRB}, baseline=baseline)
    assert len(twice.failing) == 1
    assert scanned({"a.py": ""}, baseline=baseline).gone == 1


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "x"}', "[" * 100_000])
def test_a_malformed_baseline_is_refused(content, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(UsageError):
        read_baseline(path)


def test_a_baseline_entry_without_a_reason_is_refused(tmp_path):
    path = tmp_path / "b.json"
    schema = "promotion-gate-scan-baseline/1"
    path.write_text(json.dumps({"schema": schema, "findings": [{"fingerprint": "a", "reason": " "}]}))
    with pytest.raises(UsageError, match="no reason"):
        read_baseline(path)


def test_sarif_is_valid_by_the_standards_schema(scanned, write_dbom):
    corpus = {p.name: p.read_bytes() for p in (HERE / "corpus" / "tuning").iterdir()}
    corpus |= {"bad.py": "def (", "a b#%.py": "import seaborn\nseaborn.load_dataset('é\\ud800')\n"}
    corpus["s.py"] = "import seaborn\nseaborn.load_dataset('a')  # promotion-gate: allow it is known\n"
    log = json.loads(json.dumps(sarif_log(scanned(corpus, write_dbom.component("gtsrb")))))
    schema = json.loads((HERE / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
    jsonschema.Draft4Validator(schema).validate(log)
    results = log["runs"][0]["results"]
    prints = [r["partialFingerprints"]["promotionGate/v2"] for r in results]
    assert len(set(prints)) == len(prints) > 140
    assert {r["ruleId"] for r in results} >= {"unregistered-data", "unreadable-file", "registered-data"}
    assert any(r["suppressions"][0]["justification"] == "it is known" for r in results if "suppressions" in r)


def test_broken_files_are_one_line_each_and_fail(scanned, tmp_path):
    root = tmp_path / "repo"
    root.mkdir()
    os.mkfifo(root / "pipe.py")
    (root / "loop.py").symlink_to("loop.py")
    (root / "gone.sh").symlink_to("nowhere")
    (root / "around").symlink_to(".")
    (tmp_path / "outside.py").write_text(GTSRB)
    (root / "out.py").symlink_to("../outside.py")
    (root / "huge.py").write_bytes(b"x = 1\n" * 1_500_000)
    scan = scanned(
        {
            "syntax.py": "def (",
            "latin.sh": b"wget \xff",
            "deep.py": "(" * 5000,
            "none.ipynb": "{",
            "bad.yml": "a: [",
            "fine.py": "x = 1\n",
            ".venv/pyvenv.cfg": "home = /usr/bin\n",
            ".venv/bin/python": "",
            ".venv/lib/python3.11/site-packages/hidden.py": GTSRB,
        }
    )
    names = "bad.yml deep.py gone.sh huge.py latin.sh loop.py none.ipynb out.py pipe.py syntax.py"
    assert [f.path for f in scan.findings] == names.split()
    assert {f.rule for f in scan.findings} == {UNREADABLE}
    assert len(scan.failing) == 10
    assert ("a virtual environment" in [item.reason for item in scan.left_out]) is True


def test_a_users_file_of_sources_adds_and_goes_first(tmp_path):
    path = tmp_path / "ours.toml"
    path.write_text('[[python]]\nfamily = "ours"\nmatch = ["ours.fetch"]\nname = ["0"]\n')
    assert load_sources([path]).loader("ours.fetch").family == "ours"


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "schema = 2",
        "[[python]]\nfamily = 'a'",
        "[[python]]\nfamily='a'\nmatch=['b.c']\nnonsense=1",
        "[[python]]\nfamily='a'\nmatch=['b.c']\nversion_in_name='('",
    ],
)
def test_a_malformed_file_of_sources_is_refused(text, tmp_path):
    path = tmp_path / "ours.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"ours\.toml"):
        load_sources([path])


def test_settings_of_pyproject(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.promotion-gate.scan]\nexclude = ["x/"]\ndbom = "d.json"\n'
    )
    settings = read_settings(tmp_path)
    assert (settings.exclude, settings.dbom) == (["x/"], tmp_path / "d.json")
    (tmp_path / "pyproject.toml").write_text("[tool.promotion-gate.scan]\nexcludes = []\n")
    with pytest.raises(UsageError, match="excludes"):
        read_settings(tmp_path)


def test_what_is_excluded_is_not_scanned(scanned):
    assert scanned({"x/a.py": GTSRB, "b.py": ""}, exclude=["x/"]).findings == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bomFormat": "CycloneDX", "components": 3}'])
def test_a_bill_that_is_none_registers_nothing(content, tmp_path):
    path = tmp_path / "dbom.json"
    path.write_text(content)
    with contextlib.suppress(UsageError):
        assert read_registered(path) == RegisteredSets([])


def test_the_command_ends_with_3_then_0_by_a_baseline(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text(GTSRB)
    assert main(["scan", "--sarif", "s.sarif", "--json", "s.json"]) == 3
    assert "a.py:2:1: unregistered-data: torchvision.datasets.GTSRB" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["failing"] == 1
    assert json.loads((tmp_path / "s.sarif").read_text())["version"] == "2.1.0"
    assert main(["scan", "--write-baseline", "b.json", "--reason", "was there"]) == 0
    assert main(["scan", "--baseline", "b.json"]) == 0
    assert "1 in the baseline" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["--dbom", "nowhere"],
        ["--write-baseline", "b"],
        ["--reason", "x"],
        ["--baseline", "nowhere"],
        ["--sources", "nowhere"],
        ["--sarif", "no/such/folder"],
    ],
)
def test_wrong_use_ends_with_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["scan", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_hostile_name_cannot_steer_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\x1b[2J\n.py").write_text("import seaborn\nseaborn.load_dataset('\\x1b[2J')\n")
    assert main(["scan"]) == 3
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("load_dataset('a/b', revision='0123456789' * 4)", "load_dataset('a/b', revision='main')"),
        ("load_dataset('a/b', revision=REV)", "load_dataset('a/b')"),
        ("hf_hub_download('a/b', 'f', revision='v1')", "hf_hub_download('a/b', 'f', revision='v2')"),
    ],
)
def test_a_baseline_does_not_survive_a_changed_pin(before, after, scanned, tmp_path):
    head = "from datasets import load_dataset\nfrom huggingface_hub import hf_hub_download\nREV = 'v1'\n"
    prints = [
        scanned({"a.py": head + space + call + "\n"}).findings[-1].fingerprint
        for space, call in (("", before), ("\n\n# moved\n", before), ("", after))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_constant_that_pins_is_part_of_the_fingerprint(scanned):
    text = "import pooch\nHASH = '{}'\npooch.retrieve('https://h.org/a.zip', HASH)\n"
    one, two = (scanned({"a.py": text.format(c * 64)}).findings[0].fingerprint for c in "ab")
    assert one != two


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.sh", "hf download u/d --revision v1", "hf download u/d --revision main"),
        (
            "a.sh",
            "aria2c --checksum=sha-256=0 https://h/a.zip",
            "aria2c --checksum=sha-256=1 https://h/a.zip",
        ),
        ("Dockerfile", "ADD --checksum=sha256:00 https://h/a /a", "ADD --checksum=sha256:01 https://h/a /a"),
        ("a.py", "def (", "def ( # and more"),
        ("a.sh", "wget 'x\nwget https://h/a.zip", "wget 'x\nwget https://h/b.zip"),
    ],
)
def test_fingerprints_of_other_files_change_too(name, before, after, scanned):
    one, two = (scanned({name: text}).findings[0].fingerprint for text in (before, after))
    assert one != two


def test_a_file_too_large_to_read_is_known_by_all_of_its_bytes(scanned):
    one, two = (
        scanned({"a.py": b"x = 1\n" * 1_500_000 + end}).findings[0].fingerprint for end in (b"", b"y\n")
    )
    assert one != two


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("d.A('x'); d.B('x'); d.C('x')  # promotion-gate: allow it is old", {"A", "B"}),
        ("d.A('x'); d.B('x'); d.C('x')  # promotion-gate: allow A is old", {"B", "C"}),
        ("d.A('x'); d.B('x')  # promotion-gate: allow A and torchvision.datasets.B are old", set()),
        ("# promotion-gate: allow it is old\nd.A('x'); d.B('x')", {"B"}),
        ("f(d.A(\n  'x'),\n  d.B('x'))  # promotion-gate: allow it is old", {"A"}),
    ],
)
def test_a_suppression_covers_what_it_names_or_stands_at(line, left, scanned):
    scan = scanned({"a.py": f"import torchvision.datasets as d\n{line}\n"})
    assert {f.entry.dataset for f in scan.failing} == left


def test_a_suppression_in_a_shell_covers_one_command(scanned):
    line = "wget https://h/a.zip && curl -O https://h/b.zip # promotion-gate: allow the b set is small\n"
    assert [f.entry.url for f in scanned({"a.sh": line}).failing] == ["https://h/a.zip"]


def test_a_pyvenv_file_alone_hides_no_folder(scanned):
    files = {"src/pyvenv.cfg": "", "src/a.py": GTSRB, "b/pyvenv.cfg": "home = /usr/bin\n", "b/a.py": GTSRB}
    scan = scanned(files)
    assert [f.path for f in scan.failing] == ["b/a.py", "src/a.py"]
    assert not scan.left_out


@pytest.mark.parametrize("version", ["2", "4"])
def test_what_git_tracks_is_read_in_a_tools_folder_too(version, scanned, tmp_path):
    root = tmp_path / "repo"
    hidden = {"site-packages/a.py": GTSRB, "node_modules/b.py": GTSRB, "x/.tox/c.py": GTSRB}
    scanned(hidden)
    commands = [["init", "-q"], ["config", "index.version", version], ["add", "site-packages", "x"]]
    for command in commands:
        subprocess.run(["git", *command], cwd=root, check=True)
    scan = scanned(hidden)
    assert [f.path for f in scan.failing] == ["site-packages/a.py", "x/.tox/c.py"]
    assert "node_modules" in [item.path for item in scan.left_out]
