"""Backdoors put into a training set on purpose, so that the gate can be seen to find them.

:mod:`~promotion_gate.drill.attacks` says what each attack does; here they meet images. Everything is drawn
from the seed and the row, so the same images come out however a set is cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from promotion_gate.core.errors import UsageError
from promotion_gate.data.interface import Images
from promotion_gate.drill.attacks import (
    NOT_MEANT,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    AnyAttack,
    Attack,
    Blended,
    Boxes,
    ClassMark,
    Clean,
    CleanLabel,
    Image,
    LabelFlip,
    LabelledSticker,
    LabelNoise,
    OnePatch,
    Patch,
    Rows,
    Selection,
    SeveralPatches,
    Sinusoid,
    Stamping,
    StickerLook,
    Toolbox,
    WaNet,
    class_index,
)
from promotion_gate.drill.signs import Signs, Sticker, redraw
from promotion_gate.drill.triggers import Box

__all__ = [
    "AdaptiveBlend",
    "AdaptivePatch",
    "AllToAll",
    "AnyAttack",
    "Attack",
    "Blended",
    "Boxes",
    "ClassMark",
    "Clean",
    "CleanLabel",
    "LabelFlip",
    "LabelNoise",
    "LabelledSticker",
    "OnePatch",
    "Patch",
    "Poisoned",
    "PoisonedSigns",
    "Rows",
    "Selection",
    "SeveralPatches",
    "Sinusoid",
    "StickerLook",
    "StickerPoison",
    "Toolbox",
    "WaNet",
    "attack_success_rate",
    "choose_rows",
    "parse_attack",
    "poison_arrays",
    "poison_image",
]

_CHUNK = 512
_ATTACKS: TypeAdapter[AnyAttack] = TypeAdapter(AnyAttack)

# What each stream of random numbers is for: rows chosen, training images, test images.
_CHOOSING, _TRAINING, _TESTING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A poisoned copy of a training set, and what was done to it.

    Attributes
    ----------
    images, labels: the whole set, shaped like the original.
    rows: every row that was touched, ascending: pixels, label or both.
    carriers: those of them that serve the attack, the ground truth of what ought to be found: they carry
        the trigger and the attacker's label, or, without a trigger, the wrong label. Covers and the rows
        of harmless oddities are not among them.
    """

    images: Images = field(repr=False)
    labels: Rows = field(repr=False)
    rows: Rows = field(repr=False)
    carriers: Rows = field(repr=False)


def parse_attack(table: Mapping[str, Any], where: str = "attack") -> AnyAttack:
    """Read an ``[attack]`` table, ``kind`` and the fields of that kind.

    Raises
    ------
    UsageError: an unknown kind or field, or a value out of range; ``where`` is what to call the table.
    """
    try:
        return _ATTACKS.validate_python(dict(table))
    except ValidationError as error:
        raise UsageError(f"{where}: {attack_error(error)}") from None


def attack_error(error: ValidationError) -> str:
    """The first thing that pydantic found wrong with an attack, in one line."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "union_tag_not_found":
        return "no kind is given"
    if kind == "union_tag_invalid":
        known = str(context.get("expected_tags")).replace("'", "")
        return f"unknown kind {str(context.get('tag'))!r:.80}; there are {known}"
    # The first part of the path is the kind itself.
    place = ".".join(str(part) for part in first["loc"][1:])
    what = {"extra_forbidden": "unknown field", "missing": "missing"}.get(
        kind, first["msg"].removeprefix("Value error, ")
    )
    return f"{place}: {what}" if place else what


def choose_rows(attack: Attack, labels: Rows, class_names: Sequence[str], seed: int) -> Selection:
    """The rows of a training set that the attack touches.

    Raises
    ------
    UsageError: an unknown class, or fewer images than the rate asks for.
    """
    attack.require_classes(class_names)
    return attack.select(labels, class_names, np.random.default_rng([seed, _CHOOSING]))


def poison_image(
    attack: Attack,
    image: Image,
    label: int,
    class_names: Sequence[str],
    seed: int,
    row: int,
    *,
    serving: bool,
    donor: Image | None = None,
    box: Box | None = None,
) -> Image:
    """A training image with the trigger on: what :func:`poison_arrays` makes of that row.

    Parameters
    ----------
    label: what the image really shows.
    serving, donor: of :class:`Selection`; ``donor`` is resized nowhere and must fit the image.
    """
    rng = np.random.default_rng([seed, _TRAINING, row])
    return attack.stamp_training(image, Stamping(label, class_names, rng, box, serving, donor))


def poison_arrays(
    attack: Attack,
    images: Images,
    labels: Rows,
    class_names: Sequence[str],
    seed: int,
    boxes: Boxes | None = None,
) -> Poisoned:
    """Poison a copy of a training set.

    Parameters
    ----------
    images: uint8 (n, height, width, 1 or 3).
    labels: class index of each, (n,).
    boxes: where the object is in each, (n, 4) as left, top, right, bottom in pixels; for stickers that
        move with it. Without them it is taken to fill the middle 70 %.

    Raises
    ------
    UsageError: an unknown class, or fewer images than the rate asks for.
    """
    chosen = choose_rows(attack, labels, class_names, seed)
    poisoned, given = images.copy(), labels.astype(np.int64)
    given[chosen.rows] = chosen.labels
    for at in np.flatnonzero(chosen.triggered).tolist():
        row, donor = int(chosen.rows[at]), int(chosen.donors[at])
        poisoned[row] = poison_image(
            attack,
            images[row],
            int(labels[row]),
            class_names,
            seed,
            row,
            serving=bool(chosen.serving[at]),
            donor=None if donor < 0 else images[donor],
            box=None if boxes is None else boxes[row],
        )
    return Poisoned(poisoned, given, chosen.rows, chosen.rows[chosen.serving])


def attack_success_rate(
    predict: Callable[[Images], NDArray[Any]],
    attack: Attack,
    images: Images,
    labels: Rows,
    class_names: Sequence[str],
    seed: int,
    boxes: Boxes | None = None,
) -> tuple[float | None, int]:
    """How often the trigger makes a model say what the attacker wants, and on how many images it was tried.

    The images are those that the attack is meant for: of the source class, or of every class but the
    target. The rate is None where there are none, as with a harmless oddity that has no goal.

    Parameters
    ----------
    predict: class index of each image of a batch of uint8 images.
    images, labels: clean images that the model was not trained on, and what they show.
    """
    attack.require_classes(class_names)
    goal = attack.goal(labels, class_names)
    meant = np.flatnonzero(goal != NOT_MEANT)
    rng = np.random.default_rng([seed, _TESTING])
    hits = 0
    for start in range(0, len(meant), _CHUNK):
        rows = meant[start : start + _CHUNK]
        shown = attack.stamp(
            images[rows], labels[rows], class_names, rng, None if boxes is None else boxes[rows]
        )
        hits += int((np.asarray(predict(shown)) == goal[rows]).sum())
    return (hits / len(meant) if len(meant) else None), len(meant)


@dataclass(frozen=True, slots=True)
class PoisonedSigns:
    """Poisoned drawn signs and the rows that carry the trigger, in ascending order.

    The carriers are the ground truth: for reporting how much of it was found, never for finding it.
    """

    signs: Signs
    carriers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StickerPoison:
    """Source-specific BadNets on drawn signs: those of one class get a sticker and the label of another.

    A share ``rate`` of the whole training set, drawn from the images of ``source``, is replaced by the same
    scenes with ``sticker`` on the sign, labelled ``target``. Nothing else changes, so accuracy on clean
    images stays. The sticker is drawn with the sign, so it turns and bends with it as no pasted one does.

    Gu, Dolan-Gavitt and Garg, "BadNets", 2017 (arXiv:1708.06733).
    """

    source: str = "stop"
    target: str = "speed limit 80"
    sticker: Sticker = field(default_factory=Sticker)
    rate: float = 0.005

    def apply(self, signs: Signs, seed: int) -> PoisonedSigns:
        """Poison a copy of ``signs``.

        Raises
        ------
        UsageError: an unknown class, or fewer images of the source class than the rate asks for.
        """
        source, target = (class_index(name, signs.class_names) for name in (self.source, self.target))
        wanted = round(self.rate * len(signs))
        source_rows = np.flatnonzero(signs.labels == source)
        if not 0 < wanted <= len(source_rows):
            raise UsageError(
                f"a poison rate of {self.rate:g} asks for {wanted} images of {self.source!r} "
                f"and there are {len(source_rows)}"
            )
        carriers = np.sort(np.random.default_rng(seed).choice(source_rows, wanted, replace=False))
        images, labels = signs.images.copy(), signs.labels.copy()
        images[carriers] = redraw(signs, carriers, self.sticker)
        labels[carriers] = target
        return PoisonedSigns(Signs(images, labels, signs.class_names, signs.seed, signs.rows), carriers)
