"""The candidate as the peers see it: pixels between 0 and 1 in, logits out, every image counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 256


class Standardise(nn.Module):
    """The first layer: pixels between 0 and 1 become what the candidate was trained on."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # On a processor the networks are two to three times as fast with channels last.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return (pixels - self.mean) / self.std


@dataclass(slots=True)
class Effort:
    """Images passed through the model, and those of them that a gradient was taken of."""

    forwards: int = 0
    backwards: int = 0

    @property
    def equivalents(self) -> int:
        """In forward passes of one image; a backward pass counts two."""
        return self.forwards + 2 * self.backwards


class Network:
    """A sequence of layers that takes float32 (n, 3, H, W) from 0 to 1; the last one is linear."""

    def __init__(self, layers: nn.Sequential, mean: Sequence[float], std: Sequence[float]) -> None:
        self.layers = nn.Sequential(Standardise(mean, std), *layers).eval().requires_grad_(False)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.effort = Effort()
        self.layers[0].register_forward_hook(self._count)
        assert isinstance(self.layers[-1], nn.Linear)

    @property
    def before_last(self) -> nn.Sequential:
        """Everything but the last layer: what it answers are the penultimate activations."""
        return self.layers[:-1]

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)

    def slopes(self, of: Tensor, along: Sequence[Tensor], images: int) -> Sequence[Tensor]:
        """Gradients of a scalar, counted as backward passes of ``images`` images."""
        self.effort.backwards += images
        return torch.autograd.grad(of, along)

    @torch.no_grad()
    def answers(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (n, classes) and penultimate activations (n, width) of uint8 images (n, H, W, 3)."""
        logits, activations = [], []
        for batch in batches(images):
            activation = self.before_last(batch)
            activations.append(activation.numpy())
            logits.append(self.layers[-1](activation).numpy())
        return np.concatenate(logits), np.concatenate(activations)

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Softmax of the logits of float images (n, 3, H, W), in batches."""
        return torch.cat([self(part).softmax(1) for part in pixels.split(BATCH)])

    def _count(self, layer: Any, taken: tuple[Tensor, ...], given: Any) -> None:
        self.effort.forwards += len(taken[0])


def pixels_of(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, H, W, 3) as float32 (n, 3, H, W) from 0 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255


def batches(images: NDArray[np.uint8]) -> Iterator[Tensor]:
    for start in range(0, len(images), BATCH):
        yield pixels_of(images[start : start + BATCH])
