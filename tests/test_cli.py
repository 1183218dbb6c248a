"""The command line: one line and the designed exit code for whatever is wrong, and a light start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from promotion_gate.cli import main
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.mlflow import MlflowRegistry

POLICY = """\
version = 1
[data.holdout]
path = "holdout.npz"
[checks.per-class.bounds]
accuracy = { min = 0.9 }
"""
NOBODY = "http://127.0.0.1:9"
HEAVY = {"torch", "shap", "umap", "sklearn", "pandas", "matplotlib"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to run in, with its own keys and no registry configured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PROMOTION_GATE_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "gate.toml").write_text(POLICY)
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return new_store(tmp_path_factory.mktemp("store"))


def new_store(folder):
    """The URI of a sqlite store with one model of two versions."""
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowRegistry(uri)._client
    experiment = client.create_experiment("gate", (folder / "gate").as_uri())
    client.rename_experiment(experiment, "promotion-gate")
    client.create_registered_model("signs")
    for version in (1, 2):
        source = folder / f"model-{version}"
        source.mkdir()
        (source / "MLmodel").write_text(f"flavors: {{}}  # {version}")
        client.create_model_version("signs", str(source), await_creation_for=0)
    return uri


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def refused(capsys, *arguments):
    """The exit code and the one line of a command that was refused."""
    code, out, err = run(capsys, *arguments)
    assert out == ""
    assert err.startswith("promotion-gate: ")
    assert err.count("\n") == 1
    return code, err


def test_no_arguments_and_unknown_ones_are_wrong_usage(capsys):
    for arguments in ((), ("fly",), ("run",), ("rollback", "signs"), ("run", "m", "--polic", "x")):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("usage: promotion-gate")


@pytest.mark.parametrize("command", ["rollback", "recover", "status", "history"])
@pytest.mark.parametrize("name", ["signs/3", "models:/signs/3"])
def test_a_version_where_a_model_is_asked_for_is_wrong_usage(capsys, command, name):
    with pytest.raises(SystemExit) as caught:
        main([command, name])
    assert caught.value.code == 2
    assert "name the model alone (rollback takes a version as --to)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("history", "signs\udcff"),
        ("status", "signs\udcff"),
        ("approve", "signs\udcff/1", "--reason", "x"),
        ("reject", "signs/1", "--reason", "\udcff"),
        ("run", "models:/signs\udcff/1"),
    ],
)
def test_bytes_that_are_no_text_are_refused(capsys, arguments):
    code, line = refused(capsys, *arguments, "--tracking-uri", NOBODY)
    assert code == 2
    assert "is not valid text" in line


@pytest.mark.parametrize("option", ["--tracking-uri", "--registry-uri"])
def test_a_uri_that_cannot_be_read_is_one_line(capsys, option):
    code, line = refused(capsys, "history", "signs", "--tracking-uri", NOBODY, option, "http://[bad")
    assert code in (2, 5)
    assert "Invalid IPv6 URL" in line or NOBODY[7:] in line


def test_a_machine_without_a_temporary_folder_is_one_line(store, capsys, monkeypatch):
    def nowhere(*args, **kwargs):
        raise FileNotFoundError(2, "No usable temporary directory\x1b[2J")

    monkeypatch.setattr("tempfile.TemporaryDirectory", nowhere)
    code, line = refused(capsys, "run", "models:/signs/1", "--quiet", "--tracking-uri", store)
    assert code == 2
    assert "this machine cannot go on" in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the policy gate.toml"),
        ("", "is empty"),
        ("colour = 1\n" + POLICY, "colour: unknown key"),
        (POLICY.replace("per-class", "vibes"), "checks.vibes: no such check"),
        (POLICY.replace("accuracy", "vibes"), "checks.per-class.bounds.vibes: no such metric"),
        (POLICY + "[checks.per-class.options]\nvibes = 1\n", "checks.per-class.options.vibes: unknown key"),
    ],
)
def test_a_wrong_policy_is_refused_before_the_registry_is_asked(place, capsys, content, said):
    path = place / "gate.toml"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    code, line = refused(capsys, "run", "models:/signs/1", "--tracking-uri", NOBODY)
    assert code == 2
    assert said in line


@pytest.mark.parametrize(
    "uri",
    [
        "signs",
        "models:/signs",
        "runs:/abc/model",
        "models:/signs/x",
        "models:/signs/Production",
        "models:/signs@",
        "",
    ],
)
def test_a_wrong_model_uri_is_wrong_usage(store, capsys, uri):
    code, _ = refused(capsys, "run", uri, "--quiet", "--tracking-uri", store)
    assert code == 2


@pytest.mark.parametrize(
    "uri", ["models:/signs/9", "models:/signs/0", "models:/signs@nobody", "models:/ghost/1"]
)
def test_a_model_that_does_not_exist_is_told(store, capsys, uri):
    code, line = refused(capsys, "run", uri, "--quiet", "--tracking-uri", store)
    assert code == 5
    assert "no such thing" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "models:/signs/1", "--quiet"],
        ["approve", "signs/1", "--reason", "looked at it"],
        ["reject", "signs/1", "--reason", "looked at it"],
        ["rollback", "signs", "--reason", "complaints"],
        ["status", "signs"],
        ["history", "signs"],
        ["card", "signs/1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unreachable_server_is_exit_code_5(capsys, arguments):
    code, line = refused(capsys, *arguments, "--tracking-uri", NOBODY)
    assert code == 5
    assert f"cannot reach {NOBODY}" in line


@pytest.mark.parametrize("option", ["--json", "--junit", "--summary", "--card"])
@pytest.mark.parametrize("path", ["absent/out", "."])
def test_a_file_that_cannot_be_written_is_told_before_the_work(capsys, option, path):
    code, line = refused(capsys, "run", "models:/signs/1", option, path, "--tracking-uri", NOBODY)
    assert code == 2
    assert "cannot write" in line


@pytest.mark.parametrize("alias", ["latest", "v7", "a b", ""])
def test_an_alias_that_mlflow_reserves_or_refuses_is_wrong_usage(store, capsys, alias):
    code, line = refused(capsys, "status", "signs", "--alias", alias, "--tracking-uri", store)
    assert code == 2
    assert "--alias" in line


def test_nothing_to_roll_back_to_moves_nothing(store, capsys):
    code, _ = refused(capsys, "rollback", "signs", "--reason", "complaints", "--tracking-uri", store)
    assert code == 5
    assert MlflowRegistry(store).model("signs").aliases == {}


def test_hostile_names_reach_the_terminal_without_their_control_characters(store, capsys):
    code, line = refused(capsys, "run", "models:/\x1b[2Jsigns/1", "--quiet", "--tracking-uri", store)
    assert code in (2, 5)
    assert "\x1b" not in line


def test_init_writes_a_policy_and_never_over_another(place, capsys):
    code, line = refused(capsys, "init")
    assert code == 2
    assert "exists already" in line
    assert (place / "gate.toml").read_text() == POLICY
    assert run(capsys, "init", "--force")[0] == 0
    assert "[checks.patch-transplant" in (place / "gate.toml").read_text()
    assert refused(capsys, "init", "absent/gate.toml")[0] == 2


def modules(*arguments, environment=None):
    """Exit code of a command in a fresh interpreter, and every module that it imported."""
    code = (
        "import sys\nfrom promotion_gate.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "print('MODULES', *sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    listed = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return done.returncode, set(listed.split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["rollback", "--help"], ["--version"]])
def test_help_waits_for_nothing_heavy(arguments):
    code, imported = modules(*arguments)
    assert code == 0
    assert not imported & (HEAVY | {"mlflow", "numpy", "pydantic", "rich"})


def promoted(store):
    """Both versions promoted, one after the other; the registry, and the folder of the second's files."""
    from promotion_gate.evidence.digest import digest_folder
    from promotion_gate.transition import Judged, promote

    registry = MlflowRegistry(store)
    for version in (1, 2):
        source = Path(registry.version(ModelRef("signs", version)).source)
        _, digest = digest_folder(source)
        judged = Judged(
            ref=ModelRef("signs", version),
            digest=digest,
            outcome=Outcome.PROMOTE,
            reason="every bound of the policy was met",
            champion=version - 1 or None,
            policy_digest="0" * 64,
        )
        promote(registry, judged)
    return registry, source


def test_rollback_waits_for_nothing_heavy(place, store):
    promoted(store)
    code, imported = modules("rollback", "signs", "--reason", "complaints", "--tracking-uri", store)
    assert code == 0
    assert MlflowRegistry(store).model("signs").aliases == {"production": 1}
    assert "mlflow" in imported
    # pandas comes with MLflow's own client.
    assert not imported & (HEAVY - {"pandas"})


def test_verify_names_every_link_and_the_broken_one(place, tmp_path, capsys):
    store = new_store(tmp_path)
    registry, source = promoted(store)
    code, said, _ = run(capsys, "verify", "signs", "--tracking-uri", store)
    assert code == 0, said
    *links, last = said.splitlines()
    assert last == "signs/2 is verified"
    names = ("alias", "promotion", "record", "verdict", "policy", "bytes", "standing", "history")
    assert [line.split(":")[0] for line in links] == [f"ok {name}" for name in names]

    code, said, _ = run(capsys, "verify", "signs/2", "--policy", "gate.toml", "--tracking-uri", store)
    assert code == 3
    assert "BROKEN signs/2 was judged under policy 000000000000" in said

    file = next(path for path in source.rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes() + b" ")
    code, said, _ = run(capsys, "verify", "signs", "--json", "--tracking-uri", store)
    assert code == 3
    told = json.loads(said)
    assert (told["model"], told["verified"], told["digest"]) == ("signs/2", False, None)
    assert "have changed" in told["broken"]

    assert refused(capsys, "verify", "signs/1", "--trust", "config", "--tracking-uri", store)[0] == 2

    code, said, _ = run(capsys, "revoke", "signs/1", "--reason", "poisoned", "--tracking-uri", store)
    assert code == 0
    assert said.splitlines()[0] == "revoked signs/1; production is unchanged"
    code, line = refused(capsys, "rollback", "signs", "--reason", "odd", "--tracking-uri", store)
    assert code == 5
    assert "signs/1 passed over: signs/1 was revoked by" in line
    assert registry.model("signs").aliases == {"production": 2}


def test_an_operators_night(tmp_path, capsys):
    """A change by hand, the plan, the way back, waiting in vain, and what history and status say of it."""
    store = new_store(tmp_path)
    registry, _ = promoted(store)
    uri = ("--tracking-uri", store)
    assert run(capsys, "recover", "signs", *uri)[:2] == (0, "nothing to recover\n")
    registry.set_alias("signs", "production", 1)
    code, line = refused(capsys, "rollback", "signs", "--reason", "odd", *uri)
    assert code == 5
    assert "'--to 2' goes back to where the gate left it" in line
    code, line = refused(capsys, "recover", "signs", *uri)
    assert code == 5
    assert "which named version 2, was moved to version 1 past the gate" in line
    code, said, _ = run(capsys, "recover", "signs", "--accept-foreign", "--reason", "bob did", *uri)
    assert (code, said.splitlines()[0]) == (0, "accepted signs/1: production stays where it was found")
    code, said, _ = run(capsys, "recover", "signs", "--accept-foreign", "--reason", "again", *uri)
    assert (code, said) == (0, "nothing to accept: production is as the gate left it\n")

    plan = ("rollback", "signs", "--to", "2", "--reason", "odd", "--dry-run", *uri)
    code, said, _ = run(capsys, *plan)
    assert code == 0
    assert "would be version 2, is 1" in said
    assert registry.model("signs").aliases == {"production": 1}
    late = ("--since", "10m", "--wait-for", f"{NOBODY}/health", "--wait-seconds", "0.1")
    code, said, error = run(capsys, "rollback", "signs", "--to", "2", "--reason", "odd", *late, *uri)
    assert code == 5
    assert said.startswith("rolled back signs: production is version 2, was 1")
    assert "IS moved to version 2" in error
    code, said, _ = run(capsys, "rollback", "signs", "--to", "1", "--reason", "odd", "--since", "1h", *uri)
    assert code == 0
    assert said.splitlines()[-1].startswith("time to recovery 1 h 0 min: alias 'production' was moved")

    told = json.loads(run(capsys, "status", "signs", "--json", *uri)[1])
    assert (told["version"], told["recoveries"], told["foreign"], told["candidate"]) == (1, 1, None, None)
    assert told["mttr_seconds"] >= 3600
    actions = [
        event["action"] for event in json.loads(run(capsys, "history", "signs", "--json", *uri)[1])["events"]
    ]
    assert actions == ["promote", "promote", "foreign", "accept", "rollback", "rollback", "restored"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("recover", "signs", "--reason", "x"),
        ("recover", "signs", "--unsafe-unsigned"),
        ("recover", "signs", "--accept-foreign"),
        ("rollback", "signs", "--reason", "x", "--wait-for", "file:///etc/passwd"),
        ("rollback", "signs", "--reason", " ", "--dry-run"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_moved(store, capsys, arguments):
    assert refused(capsys, *arguments, "--tracking-uri", store)[0] == 2


@pytest.mark.parametrize(
    "since", ["yesterday", "2999-01-01", "10", "-5m", "1e9d", "999999d" * 9, "0001-01-01"]
)
def test_a_moment_that_is_none_is_wrong_usage(capsys, since):
    code, out, err = run(capsys, "rollback", "signs", "--reason", "x", f"--since={since}", "--dry-run")
    assert (code, out) == (2, "")
    assert "--since" in err


def test_moments_are_read():
    from datetime import UTC, datetime, timedelta

    from promotion_gate.commands.arguments import moment

    assert moment("2026-01-31T03:12Z") == datetime(2026, 1, 31, 3, 12, tzinfo=UTC)
    assert moment("2026-01-31T03:12").tzinfo is not None
    before = datetime.now(UTC)
    assert before <= moment("10m") + timedelta(minutes=10) <= datetime.now(UTC)


def test_keygen_makes_a_pair_and_never_over_another(place, capsys):
    code, said, _ = run(capsys, "keygen", "ci.pem")
    assert code == 0
    assert said.splitlines()[0] == "private key: ci.pem"
    before = (place / "ci.pem").read_bytes()
    code, line = refused(capsys, "keygen", "ci.pem")
    assert code == 2
    assert "exists already" in line
    assert (place / "ci.pem").read_bytes() == before
