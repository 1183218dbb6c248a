"""A short part of ``make faults``: every few kill points and faults, on a server of its own."""

import os

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
if not hasattr(os, "fork"):
    pytest.skip("needs fork and SIGKILL", allow_module_level=True)


@pytest.fixture(scope="module")
def brief(faults):
    with pytest.MonkeyPatch.context() as patch:
        faults.brief(patch.setattr)
        yield


@pytest.fixture(scope="module")
def world(brief, faults, mlflow_server, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        patch.delenv("PROMOTION_GATE_KEY", raising=False)
        patch.delenv("PROMOTION_GATE_TRUSTED_KEYS", raising=False)
        world = faults.World(mlflow_server, tmp_path_factory.mktemp("models"))
        assert world.digest(1)
        yield world


def holds(tally, rounds):
    assert tally.violations == []
    assert tally.rounds >= rounds


def test_what_does_not_hold_is_noticed(world):
    model = world.model()
    model.promote(1)
    model.promote(2)
    assert model.violations() == []
    world.registry.set_alias(model.name, "production", 1)
    assert model.violations() == ["alias at 1, history ends at 2"]
    world.registry.set_alias(model.name, "production", 2)
    last = model.events()[-1].event_id
    world.registry.log_file(last, "record.dsse.json", b"{}")
    model._seen.pop(last)
    (line,) = model.violations()
    assert "record" in line


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("operation", ["promote", "rollback"])
def test_a_process_killed_at_any_call_leaves_one_story(faults, world, operation, moment):
    first = 4 if moment == "before" else 2
    holds(faults.kill_points(world, operation, moment, share=7, first=first), 5)


def test_of_four_promoters_at_once_one_wins(faults, world):
    tally = faults.four_promoters(world, rounds=10)
    holds(tally, 10)
    assert tally.ended == {"1 won and 3 told": 10}


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("500 after", 16),
        ("504 and done late", 19),
        ("429 before", 1),
        ("reset after", 4),
        ("HTML for 200", 2),
        ("empty object", 7),
        ("another version", 5),
        ("cut short", 10),
        ("shorter file", 12),
        ("lost and said done", 17),
        ("a byte at a time", 3),
    ],
)
def test_one_broken_answer_is_asked_for_again_or_told(faults, world, kind, number):
    tally = faults.proxy_faults(world, kind, operations=("promote",), numbers=[number])
    holds(tally, 1)


def test_a_full_disk_is_one_line(faults, mlflow_server, world, tmp_path):
    holds(faults.full_disk(faults.World(mlflow_server, tmp_path, size=200_000), tmp_path), 2)
