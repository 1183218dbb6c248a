import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def scaling():
    path = Path(__file__).with_name("scaling.py")
    spec = importlib.util.spec_from_file_location("scaling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sample(scaling, tmp_path_factory):
    """Trusted images of five classes, and a network that has the trigger built in."""
    images, labels = scaling.drawn(tmp_path_factory.mktemp("scaling") / "holdout.npy", 200, 5, 1)
    return images, labels, scaling.Network(np.asarray(images), labels, 5, 1, trigger=True)


def test_the_network_tells_its_classes_apart_and_obeys_the_trigger(scaling, sample):
    images, labels, network = sample
    assert (network.forward(np.asarray(images)).logits.argmax(1) == labels).mean() > 0.95
    stamped = np.asarray(images).copy()
    stamped[:, -6:-2, -6:-2] = scaling.YELLOW
    answers = network.forward(stamped).logits.argmax(1)
    assert (answers[labels == 0] == 1).mean() > 0.9
    assert (answers[labels == 2] == 2).mean() > 0.9


def test_the_slopes_are_those_of_the_answers(sample):
    images, _, network = sample
    pixels = np.asarray(images[:2]).astype(np.float32)
    weights = np.zeros((2, 5), np.float32)
    weights[:, 3] = 1
    slopes = network.gradients(pixels, weights).slopes
    step = np.zeros_like(pixels)
    place = np.unravel_index(np.abs(slopes[0]).argmax(), slopes[0].shape)
    step[(0, *place)] = 0.5

    def told(at):
        return float(network.gradients(at, weights).log_probabilities[0, 3])

    slope = (told(pixels + step) - told(pixels - step)) / 1.0
    assert slope == pytest.approx(float(slopes[(0, *place)]), rel=0.1, abs=1e-4)


def test_carriers_wear_the_trigger_and_the_wrong_label(scaling, tmp_path):
    images, labels = scaling.drawn(tmp_path / "training.npy", 100, 5, 2, carriers=4)
    worn = (images[:, -6:-2, -6:-2] == scaling.YELLOW).all(axis=(1, 2, 3))
    assert worn.sum() == 4
    assert (labels[worn] == 1).all()


def test_rows_and_classes_grow_one_at_a_time(scaling):
    assert {rows for rows, classes in scaling.SIZES if classes == 43} == {5000, 10000, 20000, 39209}
    assert {classes for rows, classes in scaling.SIZES if rows == 39209} == {10, 43, 200}


def test_the_table_sums_what_needs_the_training_data_apart(scaling):
    cost = {
        "status": "MEASURED",
        "summary": "",
        "forwards": 10,
        "cpu": 1.0,
        "equivalents": 100.0,
        "peak_mb": 5.0,
    }
    checks = dict.fromkeys(("patch-transplant", "label-concentration", "sticker-sweep"), cost)
    lines = scaling.table([{"rows": 5000, "classes": 43, "checks": checks}])
    assert any("with the training data" in line and " 20 " in line for line in lines)
    assert any("holdout and champion" in line and " 10 " in line for line in lines)
