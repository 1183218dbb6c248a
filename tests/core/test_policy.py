"""Policies: what is read, and above all what is refused."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import ExitCode, PolicyError
from promotion_gate.core.policy import MAX_POLICY_BYTES, known_names, load_policy, parse_policy

MINIMAL = """\
version = 1
[data.holdout]
path = "holdout"
[checks.per-class.bounds]
accuracy = { min = 0.9 }
"""


def refused(text):
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, name="gate.toml")
    line = str(caught.value)
    assert line.startswith("gate.toml")
    assert "\n" not in line
    assert caught.value.exit_code is ExitCode.USAGE
    return line


def test_the_smallest_policy_there_is():
    policy = parse_policy(MINIMAL)
    assert [(r.check, r.metric, r.bound, r.otherwise) for r in policy.rules()] == [
        ("per-class", "accuracy", "at least 0.9", "reject")
    ]
    assert policy.required == {"per-class"}
    assert policy.unsafe == ()
    assert policy.production.alias == "production"
    assert policy.sandbox.mode == "best"


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n"])
def test_an_empty_policy_is_refused(text):
    assert "is empty" in refused(text)


def test_a_policy_that_judges_nothing_is_refused():
    unbounded = MINIMAL.replace(".bounds]\naccuracy = { min = 0.9 }", "]\nrequired = true")
    assert "nothing could ever be refused" in refused(unbounded)
    assert "checks" in refused('version = 1\n[data.holdout]\npath = "holdout"\n')
    assert "checks" in refused('version = 1\n[data.holdout]\npath = "holdout"\n[checks]\n')


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1\n" + MINIMAL, "colour"),
        (MINIMAL + "[sandbox]\nnetwork = true\n", "sandbox.network"),
        (MINIMAL + "[data.training]\npath = 'x'\nshuffle = true\n", "data.training.shuffle"),
        (MINIMAL + "[checks.per-class]\nenabled = false\n", "checks.per-class.enabled"),
        (MINIMAL.replace("min = 0.9", "min = 0.9, mim = 1"), "checks.per-class.bounds.accuracy.mim"),
        ('digest = "0"\n' + MINIMAL, "digest"),
        ('text = "0"\n' + MINIMAL, "text"),
        ('folder = "/"\n' + MINIMAL, "folder"),
    ],
)
def test_an_unknown_key_is_named(text, named):
    line = refused(text)
    assert named in line
    assert "unknown key" in line


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MINIMAL.replace("version = 1", "version = 2"), "version"),
        (MINIMAL.replace("version = 1\n", ""), "version: missing"),
        (MINIMAL.replace('"holdout"', '""'), "data.holdout.path"),
        (MINIMAL.replace("0.9", "nan"), "accuracy"),
        (MINIMAL.replace("0.9", "inf"), "accuracy"),
        (MINIMAL.replace("{ min = 0.9 }", "{}"), "min, max or both"),
        (MINIMAL.replace("min = 0.9", "min = 0.9, max = 0.8"), "min is above max"),
        (MINIMAL.replace("min = 0.9", 'min = 0.9, otherwise = "pass"'), "otherwise"),
        (MINIMAL + "[sandbox]\nmode = 'off'\n", "sandbox.mode"),
        (MINIMAL + "[sandbox]\nmemory_gib = 0\n", "sandbox.memory_gib"),
        (MINIMAL + "[input]\nstd = [0.0]\n", "input.std"),
        (MINIMAL + "[production]\nalias = 'latest'\n", "reserves"),
        (MINIMAL + "[production]\nalias = 'v7'\n", "reserves"),
        (MINIMAL + "[production]\nalias = 'a b'\n", "production.alias"),
        (MINIMAL + "[checks.artifacts]\nrequired = false\n", "artifacts is always checked"),
        (MINIMAL + "[checks.model]\nrequired = false\n", "model is always checked"),
        (MINIMAL + "[checks.inputs]\nrequired = false\n", "inputs is always checked"),
        (MINIMAL + "[checks.champion]\nrequired = false\n", "champion is always checked"),
        (MINIMAL + "[checks.per-class\n", "not valid TOML"),
    ],
)
def test_a_wrong_value_is_named(text, named):
    assert named in refused(text)


@given(st.text() | st.text().map(lambda tail: MINIMAL + tail))
def test_any_text_is_a_policy_or_one_clear_line(text):
    try:
        policy = parse_policy(text)
    except PolicyError as error:
        said = str(error)
    else:
        said = next(policy.rules()).check
    assert said
    assert "\n" not in said


def test_the_digest_is_that_of_the_file(tmp_path):
    path = tmp_path / "gate.toml"
    content = f"# für alle\r\n{MINIMAL}".encode()
    path.write_bytes(content)
    policy = load_policy(path)
    assert policy.digest == hashlib.sha256(content).hexdigest()
    assert policy.text.encode() == content
    assert policy.folder == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read the policy"), (b"\xff\xfe", "not UTF-8"), (b"#" * (MAX_POLICY_BYTES + 1), "larger")],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content, said):
    path = tmp_path / "gate.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyError, match=said):
        load_policy(path)


def test_names_that_do_not_exist_are_refused():
    policy = parse_policy(MINIMAL)
    known_names(policy, {"per-class": {"accuracy": "share right"}})
    with pytest.raises(PolicyError, match=r"checks\.per-class: no such check; there are other"):
        known_names(policy, {"other": {}})
    with pytest.raises(PolicyError, match=r"bounds\.accuracy: no such metric; it has f1"):
        known_names(policy, {"per-class": {"f1": "mean"}})


def test_the_switch_off_is_named():
    assert parse_policy("unsafe_allow_pickle = true\n" + MINIMAL).unsafe == ("unsafe_allow_pickle",)
