import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.cli import main
from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.drill.scenario import load_scenario, make_scenario, shipped_scenarios, to_toml

CLEAN = {"name": "mine", "attack": {"kind": "clean"}}
POLICY = """
version = 1
[data]
class_names = ["a", "b"]
[data.holdout]
path = "theirs.npz"
[data.training]
path = "also-theirs.npz"
[checks.per-class.bounds]
accuracy = { min = 0.5 }
"""


def test_the_playbooks_own_are_shipped_and_gated_by_all_that_can_stop_a_model():
    assert list(shipped_scenarios()) == ["clean-control", "flips", "stop-sticker", "watermark"]
    for name in shipped_scenarios():
        scenario = load_scenario(name)
        assert scenario.name == name
        policy = scenario.policy(DataSource(path="h"), DataSource(path="t"), Path())
        assert all(check.bounds for check in policy.checks.values())
        assert "patch-transplant" in policy.checks
    assert load_scenario("flips").attack.rate == 0.001
    assert load_scenario("clean-control").attack.harmless


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack": {"kind": "hypnosis", "rate": 0.1}}, "attack: unknown kind 'hypnosis'"),
        ({"attack": {"kind": "label-flip", "source": "a", "target": "b", "rate": 0}}, "rate: "),
        ({"attack": {"kind": "label-flip", "source": "a", "target": "b", "rate": 1.5}}, "rate: "),
        ({"attack": {}}, "attack: "),
        ({"attack": 3}, "attack: "),
        ({"spam": 1}, "spam: unknown key"),
        ({"name": "../up"}, "name: "),
        ({"data": {"renderer": "signs", "training_images": 5}}, "data.training_images: "),
        ({"data": {"training": {"path": "x"}}}, "give both training and holdout"),
        ({"data": {}}, "renderer"),
        ({"training": {"command": ["train", "{name}"]}}, "no word of the training command holds {data}"),
        ({"training": {"command": ["a", "{data}", "{name}"], "from": "champion"}}, "goes with a recipe"),
        ({"training": {"timeout": 0}}, "training.timeout: "),
        ({"gate": {"policy": {"version": 1}}}, "checks: missing"),
        ({"gate": {"policy": "absent.toml"}}, "cannot read the policy"),
        ({"gate": {"policy": "a\0b"}}, "cannot read the policy"),
        ({"gate": {"policy": {"version": 1, "data": 5, "checks": {}}}}, "data is not a table"),
        ({"data": {"training": {"path": "a\0b"}, "holdout": {"path": "h"}}}, "null byte"),
        ({"champion": False, "poisoned_champion": True}, "needs champion = true"),
    ],
)
def test_a_wrong_scenario_is_one_clear_line(tmp_path, changes, said):
    with pytest.raises(UsageError) as error:
        make_scenario({**CLEAN, **changes}, tmp_path, "mine.toml")
    line = str(error.value)
    assert line.startswith("mine.toml: ") or "absent.toml" in line
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"name = ", "not valid TOML"), (b"\xff", "not UTF-8"), (None, "cannot read the scenario")],
)
def test_an_unreadable_file_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        load_scenario(str(path))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="there are clean-control, flips"):
        load_scenario("stop-stiker")


def test_changes_are_laid_over_a_scenario_and_another_attack_replaces_it(tmp_path):
    louder = load_scenario("stop-sticker", {"attack": {"rate": 0.02}, "training": {"from": "champion"}})
    assert (louder.attack.rate, louder.attack.source, louder.training.start) == (0.02, "stop", "champion")
    other = load_scenario("stop-sticker", {"attack": {"kind": "blended", "target": "stop", "rate": 0.1}})
    assert other.attack.kind == "blended"
    images = {"data": {"training_images": 500}}
    assert load_scenario("stop-sticker", images).data.renderer == "signs"
    own = {"data": {"training": {"path": "t.npz"}, "holdout": {"path": "s3://b/h.npz"}}}
    moved = load_scenario("stop-sticker", own, tmp_path)
    assert moved.data.renderer is None
    assert moved.data.training.path == str(tmp_path / "t.npz"), "a change is relative to where it stands"
    assert moved.data.holdout.path == "s3://b/h.npz"
    assert moved.folder == str(tmp_path)


def test_paths_are_relative_to_the_file_that_they_stand_in(tmp_path):
    for name in ("scenarios", "campaigns"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gate.toml").write_text(POLICY.replace("0.5", {"s": "0.6", "c": "0.7"}[name[0]]))
    (tmp_path / "scenarios" / "mine.toml").write_text(
        'name = "mine"\nattack = {kind = "clean"}\ndata = {training = {path = "t"}, holdout = {path = "h"}}\n'
        'gate = {policy = "gate.toml"}\ntraining = {command = ["t", "{data}", "{name}"]}'
    )
    plain = load_scenario("../scenarios/mine.toml", {}, tmp_path / "campaigns")
    assert plain.data.training.path == str(tmp_path / "scenarios" / "t")
    assert plain.gate.policy["checks"]["per-class"]["bounds"]["accuracy"]["min"] == 0.6
    assert plain.folder == str(tmp_path / "scenarios")
    changes = {"gate": {"policy": "gate.toml"}, "training": {"command": ["u", "{data}", "{name}"]}}
    changed = load_scenario("../scenarios/mine.toml", changes, tmp_path / "campaigns")
    assert changed.gate.policy["checks"]["per-class"]["bounds"]["accuracy"]["min"] == 0.7
    assert changed.folder == str(tmp_path / "campaigns")


def test_the_key_hangs_on_all_that_decides_and_on_nothing_else(tmp_path):
    (tmp_path / "gate.toml").write_text(POLICY)
    table = {**CLEAN, "gate": {"policy": "gate.toml"}}
    first = make_scenario(table, tmp_path, "x")
    assert first.key(1) == make_scenario({**table, "description": "other words"}, tmp_path, "x").key(1)
    keys = {first.key(1), first.key(2), make_scenario(CLEAN, tmp_path, "x").key(1)}
    keys.add(make_scenario({**table, "training": {"epochs": 3}}, tmp_path, "x").key(1))
    (tmp_path / "gate.toml").write_text(POLICY.replace("0.5", "0.6"))
    keys.add(make_scenario(table, tmp_path, "x").key(1))
    assert len(keys) == 5


def test_the_policy_is_the_teams_own_with_the_drills_data(tmp_path):
    (tmp_path / "gate.toml").write_text(POLICY)
    scenario = make_scenario({**CLEAN, "gate": {"policy": "gate.toml"}}, tmp_path, "x")
    made = scenario.policy(DataSource(path="/drill/h.npz"), None, tmp_path)
    assert made.data.holdout.path == "/drill/h.npz"
    assert made.data.training is None
    assert made.data.class_names == ["a", "b"]
    assert made.checks["per-class"].bounds["accuracy"].min == 0.5
    assert "theirs" not in made.text


def test_scenarios_share_a_champion_where_they_would_train_the_same():
    sticker, control = load_scenario("stop-sticker"), load_scenario("clean-control")
    assert sticker.champion_key == control.champion_key
    assert load_scenario("flips", {"training": {"champion_seed": 4}}).champion_key != control.champion_key
    assert load_scenario("flips", {"poisoned_champion": True}).champion_key != control.champion_key


names = st.text(min_size=1, max_size=8)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), names
)
tables = st.recursive(
    st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(scalars, inner, st.lists(inner, max_size=2)), max_size=4),
    max_leaves=12,
)


@given(tables)
def test_a_table_written_as_toml_reads_back(table):
    assert tomllib.loads(to_toml(table)) == table


def test_on_the_command_line_a_wrong_scenario_ends_with_2_before_anything_is_made(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('name = "mine"\n[attack]\nkind = "hypnosis"\nrate = 0.1\n')
    assert main(["drill", "run", "mine.toml", "--dir", "out"]) == 2
    message = capsys.readouterr().err
    assert "mine.toml: attack: unknown kind 'hypnosis'" in message
    assert message.count("\n") == 1
    assert not Path("out").exists()


def test_a_folder_of_others_is_not_drilled_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("theirs").mkdir()
    Path("theirs/thesis.txt").touch()
    assert main(["drill", "run", "flips", "--dir", "theirs"]) == 2
    assert "is not empty and no drill made it" in capsys.readouterr().err
    assert [path.name for path in Path("theirs").iterdir()] == ["thesis.txt"]


def test_without_training_data_no_check_that_needs_it_is_required():
    scenario = load_scenario("clean-control", {"training_data": False})
    checks = scenario.policy(DataSource(path="h"), None, Path()).checks
    assert "sticker-sweep" in checks
    assert not {"patch-transplant", "label-concentration", "batch-anomaly"} & set(checks)


def test_a_file_nested_without_end_is_one_line(tmp_path):
    (tmp_path / "deep.toml").write_text("x = " + "[" * 20_000)
    with pytest.raises(UsageError, match="nested too deeply"):
        load_scenario("deep.toml", folder=tmp_path)
