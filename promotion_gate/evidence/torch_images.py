"""A labelled image set as a PyTorch data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from promotion_gate.data.interface import ImageDataset, ImageShape


class TorchImages(Dataset[tuple[Any, int]]):
    """Pairs of an image and its class index, for ``torch.utils.data.DataLoader``.

    Parameters
    ----------
    images: the labelled set.
    shape: the size that images are brought to.
    transform: from an image, uint8 (C, H, W), to what the training takes; without it an image is float32
        in 0 to 1.
    """

    def __init__(
        self,
        images: ImageDataset,
        shape: ImageShape,
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self.images = images
        self.shape = shape
        self.transform = transform
        self.classes = list(images.class_names)
        self.targets: list[int] = images.labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """A whole batch at once, which is what a ``DataLoader`` asks for."""
        pixels = torch.from_numpy(self.images.read(indices, self.shape)).permute(0, 3, 1, 2).contiguous()
        prepared = [self.transform(image) for image in pixels] if self.transform else pixels.float().div(255)
        return [(image, self.targets[index]) for image, index in zip(prepared, indices, strict=True)]
