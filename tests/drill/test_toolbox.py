"""The Adversarial Robustness Toolbox's generators as attacks, where it is installed."""

import sys

import numpy as np
import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.drill.poison import choose_rows, parse_attack, poison_arrays

NAMES = ("stop", "yield", "20", "80")
TABLE = {"kind": "art", "rate": 0.1, "target": "stop", "source": "yield"}


def have_toolbox():
    from promotion_gate.drill.toolbox import require_toolbox

    try:
        require_toolbox()
    except UsageError:
        return False
    return True


needs_toolbox = pytest.mark.skipif(
    not have_toolbox(), reason="the extra [art], the Adversarial Robustness Toolbox, is not installed"
)


@pytest.fixture
def made():
    images = np.random.default_rng(0).integers(0, 100, (100, 32, 32, 3), dtype=np.uint8)
    return images, np.arange(100) % 4


def test_without_the_toolbox_it_says_what_to_install(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "art.attacks", None)
    with pytest.raises(UsageError, match=r"install promotion-gate\[art\]"):
        choose_rows(parse_attack(TABLE), made[1], NAMES, 0)


def test_a_picture_goes_with_the_generator_that_inserts_it():
    for table in ({**TABLE, "image": "a.png"}, {**TABLE, "perturbations": ["insert_image"]}):
        with pytest.raises(UsageError, match="insert_image goes with image"):
            parse_attack(table)


@needs_toolbox
@pytest.mark.parametrize(
    ("perturbation", "dots"),
    [("add_single_bd", [(29, 29)]), ("add_pattern_bd", [(27, 29), (28, 28), (29, 27), (29, 29)])],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_dots(made, perturbation, dots, channels):
    images, labels = made[0][..., :channels], made[1]
    attack = parse_attack({**TABLE, "perturbations": [perturbation], "distance": 3})
    poisoned = poison_arrays(attack, images, labels, NAMES, 0)
    assert len(poisoned.carriers) == 10
    assert set(poisoned.labels[poisoned.carriers]) == {0}
    for row in poisoned.carriers:
        different = (poisoned.images[row] != images[row]).any(axis=2)
        assert list(zip(*np.nonzero(different), strict=True)) == dots
        assert (poisoned.images[row][different] == 255).all()


@needs_toolbox
@pytest.mark.parametrize("channels", [1, 3])
def test_an_inserted_picture_lands_elsewhere_each_time_and_the_same_by_seed(made, tmp_path, channels):
    from PIL import Image

    Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "white.png")
    images, labels = made[0][..., :channels], made[1]
    table = {**TABLE, "perturbations": ["insert_image"], "image": str(tmp_path / "white.png"), "blend": 1.0}
    poisoned = poison_arrays(parse_attack(table), images, labels, NAMES, 0)
    corners = set()
    for row in poisoned.carriers:
        down, across = np.nonzero((poisoned.images[row] == 255).all(axis=2))
        assert len(down) == 36
        corners.add((down.min(), across.min()))
    assert len(corners) > 5
    again = poison_arrays(parse_attack(table), images, labels, NAMES, 0)
    assert np.array_equal(again.images, poisoned.images)
    fixed = poison_arrays(parse_attack({**table, "shift": [4, 9]}), images, labels, NAMES, 0)
    assert (fixed.images[fixed.carriers, 9:15, 4:10] == 255).all()


@needs_toolbox
@pytest.mark.parametrize(
    "change",
    [
        {"perturbations": ["insert_image"], "image": "none.png"},
        {"perturbations": ["add_single_bd"], "distance": 99},
    ],
)
def test_what_the_toolbox_refuses_is_one_clear_line(made, change):
    with pytest.raises(UsageError, match="Toolbox refuses") as caught:
        poison_arrays(parse_attack({**TABLE, **change}), *made, NAMES, 0)
    assert "\n" not in str(caught.value)
