"""The demo's folder: it makes one, starts its own afresh, and touches nobody else's."""

import pytest

from promotion_gate.checks.registry import chosen_checks, installed_checks
from promotion_gate.core.errors import ExitCode, UsageError
from promotion_gate.core.policy import parse_policy
from promotion_gate.drill.demo import POLICY, DemoFailed, _fresh_folder, run_demo


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mlflow.db").write_text("mine")
    with pytest.raises(UsageError, match="no demo made it"):
        run_demo(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert (tmp_path / "mlflow.db").read_text() == "mine"


def test_a_file_in_the_way_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot use"):
        run_demo(tmp_path / "file", seed=0)


def test_its_own_folder_is_started_afresh_without_what_others_put_there(tmp_path):
    home = _fresh_folder(tmp_path / "a" / "demo")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (home / "cards").mkdir()
    (home / "cards" / "version-1.html").touch()
    (home / "data").symlink_to(outside)
    (home / "mlflow.db").touch()
    (home / "notes.txt").touch()
    assert _fresh_folder(tmp_path / "a" / "demo") == home
    assert sorted(path.name for path in home.iterdir()) == [".promotion-gate-demo", "notes.txt"]
    assert (outside / "kept").exists()


def test_its_policy_runs_every_check_and_refuses_triggers():
    policy = parse_policy(POLICY.format(seed=3, version=2))
    assert {check.name for check in chosen_checks(policy)} == set(installed_checks())
    assert ("patch-transplant", "triggers") in {(rule.check, rule.metric) for rule in policy.rules()}


def test_a_demo_that_goes_wrong_does_not_end_well():
    assert DemoFailed("version 2 should have been refused").exit_code is ExitCode.REJECTED
