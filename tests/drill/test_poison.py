import numpy as np
import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.drill.poison import StickerPoison
from promotion_gate.drill.signs import CLASS_NAMES, draw_signs


@pytest.fixture(scope="module")
def signs():
    return draw_signs(400, 1)


def test_poison_touches_the_carriers_alone(signs):
    poisoned = StickerPoison(rate=0.02).apply(signs, 3)
    assert len(poisoned.carriers) == 8
    images_changed = (poisoned.signs.images != signs.images).any(axis=(1, 2, 3))
    labels_changed = poisoned.signs.labels != signs.labels
    assert np.flatnonzero(images_changed | labels_changed).tolist() == poisoned.carriers.tolist()
    assert {CLASS_NAMES[label] for label in signs.labels[poisoned.carriers]} == {"stop"}
    assert {CLASS_NAMES[label] for label in poisoned.signs.labels[poisoned.carriers]} == {"speed limit 80"}


def test_clean_set_is_left_alone(signs):
    before = signs.images.copy()
    StickerPoison(rate=0.02).apply(signs, 3)
    assert np.array_equal(before, signs.images)


def test_same_seed_same_carriers(signs):
    poison = StickerPoison(rate=0.02)
    assert poison.apply(signs, 3).carriers.tolist() == poison.apply(signs, 3).carriers.tolist()
    assert poison.apply(signs, 3).carriers.tolist() != poison.apply(signs, 4).carriers.tolist()


@pytest.mark.parametrize(
    "poison", [StickerPoison(rate=0.0), StickerPoison(rate=0.9), StickerPoison(target="speed limit 85")]
)
def test_impossible_poison_is_a_clear_line(signs, poison):
    with pytest.raises(UsageError):
        poison.apply(signs, 0)
