"""A small world for searches: classes are colours, and a model may have a patch built in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promotion_gate.detect.differential import EVERY, Trusted

SIDE = 24
COLOURS = np.array([(60, 60, 60), (190, 60, 60), (60, 190, 60), (60, 60, 190), (180, 180, 60)], np.float32)
CLASSES = len(COLOURS)
NAMES = ("coal", "brick", "leaf", "sea", "sand")


@dataclass(frozen=True)
class Backdoor:
    """A square of one colour that sends ``source``, or every class, to ``target``."""

    source: int
    target: int
    colour: tuple[int, int, int] = (250, 20, 235)
    top: int = 5
    left: int = 14
    size: int = 5


def images_of(labels, seed: int = 0):
    rng = np.random.default_rng(seed)
    noisy = COLOURS[labels][:, None, None] + rng.normal(0, 14, (len(labels), SIDE, SIDE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


class Model:
    """Softmax over the distance of the mean colour to each class's, and a backdoor that opens softly."""

    def __init__(self, backdoor: Backdoor | None = None, sharpness: float = 1.0) -> None:
        self.backdoor = backdoor
        self.sharpness = sharpness

    def logs(self, images):
        """Log-probabilities of a torch tensor (n, H, W, C) of pixels."""
        import torch

        mean = images.mean(dim=(1, 2))
        distance = ((mean[:, None] - torch.from_numpy(COLOURS)) ** 2).sum(2)
        logits = -self.sharpness * distance / 4000
        if (b := self.backdoor) is not None:
            window = images[:, b.top : b.top + b.size, b.left : b.left + b.size]
            off = ((window - torch.tensor(b.colour, dtype=torch.float32)) ** 2).mean(dim=(1, 2, 3))
            near = torch.exp(-off / (2 * 55**2))
            share = 1 if b.source == EVERY else torch.softmax(logits, 1)[:, b.source]
            logits = logits + torch.nn.functional.one_hot(torch.tensor(b.target), CLASSES) * (
                40 * near * share
            ).unsqueeze(1)
        return torch.log_softmax(logits, 1)

    def answer(self, images):
        import torch

        with torch.no_grad():
            return self.logs(torch.from_numpy(images.astype(np.float32))).exp().numpy()

    def slopes(self, images, weights):
        import torch

        leaf = torch.from_numpy(np.array(images, np.float32)).requires_grad_()
        logs = self.logs(leaf)
        (slope,) = torch.autograd.grad((logs * torch.from_numpy(weights)).sum(), leaf)
        return logs.detach().numpy(), slope.numpy()


def holdout(per_class: int = 30):
    """Images and labels, every class alike."""
    labels = np.arange(CLASSES * per_class) % CLASSES
    return images_of(labels), labels.astype(np.int64)


def trusted(candidate: Model, reference: Model, per_class: int = 30) -> Trusted:
    images, labels = holdout(per_class)
    return Trusted(labels, candidate.answer(images), reference.answer(images), lambda rows: images[rows])
