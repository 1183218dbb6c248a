"""Shell, recipes, notebooks and YAML."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.provenance.scan.entry import Entry, Known, Unreadable
from promotion_gate.provenance.scan.words import simple_commands


def entries(found):
    return [e for e in found if isinstance(e, Entry)]


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("wget -q https://h/a.zip", "https://h/a.zip"),
        ("X=https://h; wget ${X}/a.zip", "https://h/a.zip"),
        ('curl -fsSLo out.npz "https://h/a.npz"', "https://h/a.npz"),
        ("a && b || sudo -u me wget https://h/a.zip", "https://h/a.zip"),
        ("x=$(curl -s https://h/a.json)", "https://h/a.json"),
        ('echo "$(wget -qO- https://h/a.csv)"', "https://h/a.csv"),
        ("bash -c 'wget https://h/a.zip'", "https://h/a.zip"),
        ("aws --profile p s3 cp s3://b/k .", "s3://b/k"),
        ("wget \\\n  https://h/a.zip", "https://h/a.zip"),
    ],
)
def test_the_address_of_a_command(line, url, entries_of):
    (entry,) = entries_of(line, "a.sh")
    assert entry.url == url


@pytest.mark.parametrize(
    "line",
    [
        "aws s3 cp a.pt s3://b/k",
        "curl -X POST https://h/a",
        "curl -sf https://h/ready",
        "curl https://h/install | sudo bash",
        "echo wget https://h/a.zip",
        "# wget https://h/a.zip",
        "cat <<EOF\nwget https://h/a.zip\nEOF",
        "command -v wget",
        "wget --version",
    ],
)
def test_what_brings_nothing(line, entries_of):
    assert entries_of(line, "a.sh") == []


def test_a_check_later_in_the_script_counts_and_one_before_does_not(entries_of):
    checked, unchecked = (
        "wget https://h/a.zip\nsha256sum -c a.sha256",
        "sha256sum -c a.sha256\nwget https://h/a.zip",
    )
    assert entries_of(checked, "a.sh")[0].hashed.known is Known.YES
    assert entries_of(unchecked, "a.sh")[0].hashed.known is Known.NO


def test_docker_keeps_lines_and_variables(entries_of):
    text = "FROM x\nARG U=https://h\nRUN a \\\n  # why\n  && wget $U/a.zip\n"
    text += "ADD --checksum=sha256:00 $U/b.tar /b\n"
    found = entries_of(text, "Dockerfile")
    assert [(e.line, e.url, e.hashed.known) for e in found] == [
        (5, "https://h/a.zip", Known.NO),
        (6, "https://h/b.tar", Known.YES),
    ]


def test_a_notebook_keeps_names_from_cell_to_cell_and_goes_on_behind_a_broken_one(entries_of):
    sources = [
        "from datasets import load_dataset as ld\n",
        "def (:\n",
        "!wget https://h/a.zip\nx = ld('a/b')\n",
    ]
    cells = [{"cell_type": "code", "source": s.splitlines(keepends=True)} for s in sources]
    text = json.dumps({"cells": cells}, indent=1)
    found = entries_of(text, "a.ipynb")
    assert [e.loader for e in entries(found)] == ["wget", "datasets.load_dataset"]
    assert [text.split("\n")[e.line - 1].strip()[:8] for e in entries(found)] == ['"!wget h', '"x = ld(']
    assert [f.reason for f in found if isinstance(f, Unreadable)] == ["cell 2 is no valid Python"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"cells": 3}',
        "not json",
        "[" * 100_000,
        '{"cells": [1, {"cell_type": "code", "source": 7}]}',
    ],
)
def test_a_notebook_that_is_none_is_told_or_empty(text, entries_of):
    found = entries_of(text, "a.ipynb")
    assert all(isinstance(f, Unreadable) for f in found)


def test_a_command_and_its_arguments_in_two_lists_are_one(entries_of):
    (entry,) = entries_of("c:\n  command: [gsutil]\n  args: [cp, 'gs://b/k', .]\n", "a.yaml")
    assert (entry.url, entry.line) == ("gs://b/k", 2)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: &x [*x, *x]",
        "a: !!python/object:os.system x",
        "%",
        "\t- a",
        "[" * 1_000_000,
        "{a: " * 300_000,
    ],
)
def test_hostile_yaml_is_no_crash(text, entries_of):
    """Quadratic in their depth, the last two would take days; the suite's own limit ends them."""
    entries_of(text, "a.yaml")


def test_a_template_is_read_as_shell(entries_of):
    found = entries_of("{{- if .Values.x }}\nrun: |\n  wget https://h/a.zip\n{{ end }}: [\n", "a.yaml")
    assert [e.url for e in entries(found)] == ["https://h/a.zip"]


@given(st.text(alphabet="ab $(){}`'\"\\\n|&;<>#-=", max_size=200))
def test_any_text_is_read_as_shell(text):
    for command in simple_commands(text):
        assert all(0 <= word.offset <= len(text) * 3 + 10 for word in command.words)


@pytest.mark.parametrize(
    "text",
    [
        "cat <<EOF\nwget https://h/a.zip\n",
        'echo "never closed\nwget https://h/a.zip\n',
        "echo 'never closed\nwget https://h/a.zip\n",
        "(( n = 1 << k\nwget https://h/a.zip\n",
    ],
)
def test_what_has_no_end_is_told_and_what_follows_is_read(text, entries_of):
    found = entries_of(text, "a.sh")
    assert [e.url for e in entries(found)] == ["https://h/a.zip"]
    assert any(isinstance(f, Unreadable) for f in found)


def test_an_indented_end_of_a_here_document_hides_nothing(entries_of):
    text = "cat <<EOF\n EOF\n'\nEOF\nwget https://h/a.zip   '\n"
    assert [e.url for e in entries(entries_of(text, "a.sh"))] == ["https://h/a.zip"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("FROM x\nRUN cat <<EOF\nwget https://h/a.zip\n", "Dockerfile"),
        ("python3 <<EOF\nimport torchvision (\nEOF\n", "a.sh"),
        ("steps:\n  - shell: python\n    run: import torchvision (\n", "a.yml"),
        ("steps:\n  - run: |\n      cat <<EOF\n      wget https://h/a.zip\n", "a.yml"),
        ("sudo " * 1000 + "wget https://h/a.zip", "a.sh"),
    ],
)
def test_what_cannot_be_read_is_told(text, name, entries_of):
    assert any(isinstance(f, Unreadable) for f in entries_of(text, name))


def test_a_changed_variable_is_not_taken_for_its_value(entries_of):
    (entry,) = entries_of("U=https://h/a.zip\nwget ${U/h/evil}\n", "a.sh")
    assert "https://h/a.zip" not in entry.url


_LARGE = 60_000
_HOSTILE = {
    "quotes": '"a"' * (_LARGE // 3),
    "escapes": 'curl "' + '\\"' * (_LARGE // 2),
    "nested quotes": '"$(curl ' * (_LARGE // 8),
    "substitutions": "$(" * (_LARGE // 2) + "wget",
    "arithmetic": "((" * (_LARGE // 2) + "wget",
    "arithmetic, spread": "$(( a " * (_LARGE // 6) + "wget",
    "braces": "${x:-" * (_LARGE // 5) + "wget",
    "backquotes": "`wget " * (_LARGE // 6),
    "checks": "wget x; " + "sha256sum " * (_LARGE // 10),
    "checks, many": "sha256sum -c x; wget https://h/a.zip\n" * (_LARGE // 80),
    "reserved words": "if " * (_LARGE // 3) + "wget",
    "carriers": "sudo " * (_LARGE // 5) + "wget",
    "pipes": "wget x|" * (_LARGE // 7),
    "documents": "".join(f"wget <<A{i}\n" for i in range(_LARGE // 12)),
    "documents, indented": "wget <<A\n" * (_LARGE // 20) + " A\n" * (_LARGE // 20),
    "variables": "a=wget\n" + "a=$a$a\n" * (_LARGE // 14) + "$a$a$a",
    "expressions": "run: wget " + "{{" * (_LARGE // 2),
    "digits": "1" * _LARGE + " wget",
}


@pytest.mark.parametrize("name", ["a.sh", "a.mk", "Dockerfile"])
@pytest.mark.parametrize("kind", _HOSTILE)
def test_hostile_shell_text_is_read_in_one_pass(kind, name, entries_of):
    """Quadratic, each of these takes minutes to hours; the suite's own limit ends it."""
    text = _HOSTILE[kind]
    entries_of({"Dockerfile": f"RUN {text}", "Jenkinsfile": f"sh '''{text}'''"}.get(name, text), name)


@pytest.mark.parametrize(
    "lines",
    [[" " * _LARGE], ["a" + " " * _LARGE], ["a, " * (_LARGE // 3)], ["x\\u0061\n"] * (_LARGE // 20)],
)
def test_a_hostile_notebook_is_read_in_one_pass(lines, entries_of):
    entries_of(json.dumps({"cells": [{"cell_type": "code", "source": lines}]}), "a.ipynb")


def test_a_long_line_of_python_is_read_in_one_pass(entries_of):
    found = entries_of("import seaborn\n'é'; " + "seaborn.load_dataset('a'); " * 4_000)
    assert len(found) == 4_000
    assert max(e.column for e in found) == 6 + 27 * 3_999


def test_many_variables_of_a_dockerfile_are_kept_once(entries_of):
    found = entries_of(
        "".join(f"ENV A{i}=https://h/{i}.zip\n" for i in range(5_000)) + "ADD $A7 /d\n", "Dockerfile"
    )
    assert [e.url for e in entries(found)] == ["https://h/7.zip"]
