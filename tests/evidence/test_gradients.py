from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import Policy
from promotion_gate.evidence.artifacts import verify
from promotion_gate.evidence.interface import NoGradients
from promotion_gate.evidence.loader import SandboxedClassifier, open_model

CLASSES = 5


def opened(folder: Path, policy: Policy) -> SandboxedClassifier:
    artifacts = verify(folder, allow_pickle=policy.unsafe_allow_pickle)
    return open_model(artifacts, policy, class_count=CLASSES, log=lambda line: None)


def noise(rows: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (rows, 16, 16, 3)).astype(np.float32)


def weighted_sum(model: SandboxedClassifier, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (model.gradients(images, weights).log_probabilities * weights).sum(axis=1)


# residual-pt2 takes one image at a time, whatever is asked; the module is answered through hooks.
@pytest.mark.parametrize("name", ["cnn-pt2", "residual-pt2", "mlp-module"])
def test_slopes_tell_how_the_answers_change(
    saved: Callable[[str], Path], policy: Callable[..., Policy], name: str
) -> None:
    images = noise(3)
    weights = np.random.default_rng(1).normal(size=(3, CLASSES)).astype(np.float32)
    with opened(saved(name), policy("unsafe_allow_pickle = true")) as model:
        told = model.gradients(images, weights)
        step = 0.5 * np.sign(told.slopes)
        rise = weighted_sum(model, images + step, weights) - weighted_sum(model, images - step, weights)
        expected = 2 * (told.slopes * step).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(rise, expected, rtol=0.15)
        assert (expected > 1e-4).all()


def test_log_probabilities_are_those_of_the_forward_pass(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> None:
    whole = noise(300).round()
    with opened(saved("cnn-pt2"), policy()) as model:
        told = model.gradients(whole, np.zeros((300, CLASSES), np.float32))
        probabilities = model.forward(whole.astype(np.uint8)).probabilities()
    np.testing.assert_allclose(np.exp(told.log_probabilities), probabilities, atol=1e-5)
    assert not told.slopes.any()


def test_a_model_that_answers_probabilities_is_taken_at_its_word(tmp_path: Path, policy) -> None:
    from torch import nn

    head = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES), nn.Softmax(1))
    images = noise(2)
    with opened(save(tmp_path, head), policy("unsafe_allow_pickle = true")) as model:
        told = model.gradients(images, np.eye(CLASSES, dtype=np.float32)[:2])
        np.testing.assert_allclose(np.exp(told.log_probabilities).sum(axis=1), 1, rtol=1e-4)
        answered = model.forward(images.astype(np.uint8)).logits
    np.testing.assert_allclose(np.exp(told.log_probabilities), answered, atol=0.02)


def test_a_model_without_slopes_says_so_and_goes_on_answering(tmp_path: Path, policy) -> None:
    from torch import nn

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(768, CLASSES)

        def forward(self, images):
            return self.head(images.detach().flatten(1)).detach()

    images = noise(2)
    with opened(save(tmp_path, Rounded()), policy("unsafe_allow_pickle = true")) as model:
        before = model.forward(images.astype(np.uint8)).logits
        with pytest.raises(NoGradients, match="cannot be differentiated"):
            model.gradients(images, np.ones((2, CLASSES), np.float32))
        np.testing.assert_array_equal(model.forward(images.astype(np.uint8)).logits, before)


def test_weights_of_another_number_of_classes_are_refused(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> None:
    with opened(saved("cnn-pt2"), policy()) as model, pytest.raises(InputError, match="weights"):
        model.gradients(noise(2), np.ones((2, CLASSES + 1), np.float32))


def save(folder: Path, module) -> Path:
    """Save a whole module as a pickle, which the policy has to allow."""
    import warnings

    import mlflow.pytorch
    from mlflow.models import infer_signature

    signature = infer_signature(np.zeros((2, 3, 16, 16), np.float32), np.zeros((2, CLASSES), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            module,
            folder / "model",
            signature=signature,
            serialization_format="pickle",
            pip_requirements=["torch"],
        )
    return folder / "model"
