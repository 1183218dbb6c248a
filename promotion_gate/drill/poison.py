"""Backdoors put into a training set on purpose, so that the gate can be seen to find them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import UsageError
from promotion_gate.drill.signs import Signs, Sticker, redraw


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A poisoned training set and the rows that carry the trigger, in ascending order.

    The carriers are the ground truth: for reporting how much of it was found, never for finding it.
    """

    signs: Signs
    carriers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StickerPoison:
    """Source-specific BadNets: signs of one class get a sticker and the label of another.

    A share ``rate`` of the whole training set, drawn from the images of ``source``, is replaced by the same
    scenes with ``sticker`` on the sign, labelled ``target``. Nothing else changes, so accuracy on clean
    images stays.

    Gu, Dolan-Gavitt and Garg, "BadNets", 2017 (arXiv:1708.06733).
    """

    source: str = "stop"
    target: str = "speed limit 80"
    sticker: Sticker = field(default_factory=Sticker)
    rate: float = 0.005

    def apply(self, signs: Signs, seed: int) -> Poisoned:
        """Poison a copy of ``signs``.

        Raises
        ------
        UsageError: an unknown class, or fewer images of the source class than the rate asks for.
        """
        for name in (self.source, self.target):
            if name not in signs.class_names:
                raise UsageError(f"no class {name!r} to poison", f"there are {', '.join(signs.class_names)}")
        wanted = round(self.rate * len(signs))
        source_rows = np.flatnonzero(signs.labels == signs.class_names.index(self.source))
        if not 0 < wanted <= len(source_rows):
            raise UsageError(
                f"a poison rate of {self.rate:g} asks for {wanted} images of {self.source!r} "
                f"and there are {len(source_rows)}"
            )
        carriers = np.sort(np.random.default_rng(seed).choice(source_rows, wanted, replace=False))
        images, labels = signs.images.copy(), signs.labels.copy()
        images[carriers] = redraw(signs, carriers, self.sticker)
        labels[carriers] = signs.class_names.index(self.target)
        return Poisoned(Signs(images, labels, signs.class_names, signs.seed, signs.rows), carriers)
