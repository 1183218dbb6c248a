"""Ways to poison a training set, and harmless oddities that look like them; each says which paper it is of.

An attack is plain data, so that a scenario file can spell it out. ``rate`` is the share of the whole
training set that serves the attack; covers come on top. Lengths are in pixels of an image whose shorter
side is 32 and grow with the image. Where labels are kept the rows still count: they carry the trigger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from promotion_gate.core.errors import UsageError
from promotion_gate.data.interface import Images
from promotion_gate.drill import triggers
from promotion_gate.drill.toolbox import Perturbation, require_toolbox, toolbox_poison
from promotion_gate.drill.triggers import Box

Rows = NDArray[np.int64]
"""One whole number a row: positions in a data set, or labels."""

Boxes = NDArray[np.float64]
"""Where the object is in every image, (n, 4): left, top, right and bottom in its pixels."""

Image = NDArray[np.uint8]
"""One image, (height, width, channels)."""

NOT_MEANT = -1
"""The goal for an image that the attack does not apply to."""

Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0, le=100)]
Length = Annotated[float, Field(gt=0, le=32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Place = Literal["top-left", "top-right", "bottom-left", "bottom-right", "centre", "anywhere", "object"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What an attack does to which rows of a training set.

    Attributes
    ----------
    rows: positions of the rows it touches, ascending, each once.
    labels: the label that each of them gets.
    triggered: which of them get the trigger.
    serving: which of them serve the attack: what a perfect detector would list. Covers and the rows of
        harmless oddities do not.
    donors: a row whose image is mixed into each of them, -1 for none.
    """

    rows: Rows
    labels: Rows
    triggered: NDArray[np.bool_]
    serving: NDArray[np.bool_]
    donors: Rows


@dataclass(frozen=True, slots=True)
class Stamping:
    """What goes with one image that gets the trigger.

    Attributes
    ----------
    label: what the image really shows, an index into ``class_names``.
    box: where the object is, or None: then it is taken to fill the middle 70 %.
    serving, donor: of :class:`Selection`, at training; ``donor`` is the image itself and must fit.
    """

    label: int
    class_names: Sequence[str]
    rng: np.random.Generator
    box: Box | None = None
    serving: bool = True
    donor: Image | None = None


class Attack(BaseModel, ABC):
    """What every attack is asked; the subclasses are the kinds that a scenario can name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    rate: Share
    harmless: ClassVar[bool] = False

    @abstractmethod
    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        """Choose the rows to touch.

        Raises
        ------
        UsageError: an unknown class, or fewer images than the rate asks for.
        """

    def goal(self, labels: Rows, class_names: Sequence[str]) -> Rows:
        """The label that the attacker wants for an image of each label with the trigger on, or -1."""
        return np.full(len(labels), NOT_MEANT, dtype=np.int64)

    def stamp(
        self,
        images: Images,
        labels: Rows,
        class_names: Sequence[str],
        rng: np.random.Generator,
        boxes: Boxes | None = None,
    ) -> Images:
        """Copies of the images with the trigger on, as the attacker shows them to the finished model.

        Parameters
        ----------
        images: uint8 (n, height, width, 1 or 3).
        labels: what the images really show.
        boxes: where the object is in each; without them it is taken to fill the middle 70 %.
        """
        found: list[Box | None] = [None] * len(images) if boxes is None else list(boxes)
        stamped = np.empty_like(images)
        for i, box in enumerate(found):
            stamped[i] = self.stamp_one(images[i], Stamping(int(labels[i]), class_names, rng, box))
        return stamped

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        """:meth:`stamp` for one image; this is what most attacks define."""
        return image.copy()

    def stamp_training(self, image: Image, of: Stamping) -> Image:
        """One training image with the trigger on, where training differs from what is shown later."""
        return self.stamp_one(image, of)

    def require_classes(self, class_names: Sequence[str]) -> None:
        """Refuse class names that the data set does not have.

        Raises
        ------
        UsageError: naming the first one.
        """
        for name in self._named():
            class_index(name, class_names)

    def _named(self) -> tuple[str, ...]:
        return ()


class Clean(Attack):
    """Nothing is touched: the control."""

    kind: Literal["clean"] = "clean"
    rate: Annotated[float, Field(ge=0, le=0)] = 0.0
    harmless: ClassVar[bool] = True

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        return _selection(labels, np.empty(0, dtype=np.int64), labels[:0])


class StickerLook(BaseModel):
    """How a sticker looks and where it goes.

    Attributes
    ----------
    size: its side; with ``place = "object"`` the object's shorter side counts as 32.
    shape: ``square``, ``disc`` or ``cross``.
    colour: a CSS name, ``#rrggbb`` or ``checker``.
    image: an image file to show instead of a colour.
    place: a corner, one pixel from the edges; ``centre``; ``anywhere``, drawn anew for each image; a pair
        of fractions (down, right) of the image for the sticker's middle; or ``object``: moves and scales
        with the object's box.
    spot: with ``object``, the sticker's middle as fractions (down, right) of the box.
    jitter: the place is off by up to this much, drawn anew for each image.
    opacity: how much of the image it hides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Length = 4.0
    shape: triggers.Shape = "square"
    colour: str = "yellow"
    image: str = ""
    place: Place | tuple[Fraction, Fraction] = "bottom-right"
    spot: tuple[Fraction, Fraction] = (0.74, 0.72)
    jitter: Annotated[float, Field(ge=0, le=32)] = 0.0
    opacity: Share = 1.0

    @field_validator("place", mode="before")
    @classmethod
    def _known_place(cls, place: Any) -> Any:
        # Said here, since pydantic tells of each member of the union apart.
        if isinstance(place, str):
            if place not in get_args(Place):
                raise ValueError(f"no place {place!r:.40}; there are {', '.join(get_args(Place))}, or a pair")
        elif not (
            isinstance(place, list | tuple)
            and len(place) == 2
            and all(isinstance(part, float | int) and 0 <= part <= 1 for part in place)
        ):
            raise ValueError("a pair has two fractions from 0 to 1, down and right")
        return place

    @field_validator("colour")
    @classmethod
    def _known_colour(cls, text: str) -> str:
        if text != "checker":
            try:
                triggers.named_colour(text)
            except ValueError:
                raise ValueError(f"no colour {text!r:.40}; use a CSS name, #rrggbb or checker") from None
        return text

    def stick(
        self,
        image: Image,
        rng: np.random.Generator,
        box: Box | None,
        opacity: float | None = None,
        cover: float = 1.0,
    ) -> Image:
        """A copy of the image with the sticker on it."""
        height, width = image.shape[:2]
        left, top, right, bottom = triggers.object_box(image.shape, box)
        scale = triggers.scale_of(image.shape)
        own = min(right - left, bottom - top) / triggers.UNIT if self.place == "object" else scale
        side = max(1, round(self.size * own))
        down, across = self._corner(height, width, side, scale, (left, top, right, bottom), rng)
        if self.jitter:
            off = np.rint(rng.uniform(-self.jitter, self.jitter, 2) * scale)
            down, across = down + int(off[0]), across + int(off[1])
        down, across = max(0, min(down, height - side)), max(0, min(across, width - side))
        cells = max(2, round(self.size))
        tile = triggers.sticker_tile(self.shape, self.colour, self.image, side, cells)
        return triggers.stick(image, tile, down, across, self.opacity if opacity is None else opacity)

    def _corner(
        self,
        height: int,
        width: int,
        side: int,
        scale: float,
        box: tuple[float, float, float, float],
        rng: np.random.Generator,
    ) -> tuple[int, int]:
        """Row and column of the sticker's top left corner."""
        left, top, right, bottom = box
        margin = round(scale)
        low, far = height - side - margin, width - side - margin
        match self.place:
            case "top-left":
                return margin, margin
            case "top-right":
                return margin, far
            case "bottom-left":
                return low, margin
            case "bottom-right":
                return low, far
            case "anywhere":
                return int(rng.integers(max(1, height - side + 1))), int(
                    rng.integers(max(1, width - side + 1))
                )
            case "object":
                middle = top + self.spot[0] * (bottom - top), left + self.spot[1] * (right - left)
            case "centre":
                middle = height / 2, width / 2
            case (down, across):
                middle = down * height, across * width
        return round(middle[0] - side / 2), round(middle[1] - side / 2)


class _Sticker(StickerLook, Attack):
    """An attack that puts one sticker on."""

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        return self.stick(image, of.rng, of.box)


class _Targeted(Attack):
    """An attack that wants one class called another.

    Attributes
    ----------
    target: the class that the attacker wants to be seen.
    source: the class on which the trigger works; every other class where it is left out.
    covers: images that carry the trigger and their right label, so that it works on the source alone, or
        hides better; as a multiple of the images that serve the attack.
    """

    target: str
    source: str | None = None
    covers: Ratio = 0.0

    @model_validator(mode="after")
    def _two_classes(self) -> Self:
        if self.source == self.target:
            raise ValueError("source and target are the same class")
        return self

    def goal(self, labels: Rows, class_names: Sequence[str]) -> Rows:
        target = class_index(self.target, class_names)
        meant = labels != target if self.source is None else labels == class_index(self.source, class_names)
        return np.where(meant, target, NOT_MEANT).astype(np.int64)

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        goal = self.goal(labels, class_names)
        what = "" if self.source is None else f" of {self.source!r:.80}"
        rows = _draw(np.flatnonzero(goal != NOT_MEANT), self.rate, len(labels), rng, what)
        target = class_index(self.target, class_names)
        spared = goal == NOT_MEANT if self.source is not None else np.ones(len(labels), dtype=bool)
        pool = np.setdiff1d(np.flatnonzero(spared & (labels != target)), rows)
        covers = _draw_covers(pool, self.covers, len(rows), rng)
        return _selection(labels, rows, goal[rows], covers=covers)

    def _named(self) -> tuple[str, ...]:
        return (self.target,) if self.source is None else (self.target, self.source)


class _KeepsLabels(_Targeted):
    """The half of a targeted attack that needs no wrong label: it marks images of the target class."""

    def _select_of_target(
        self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator
    ) -> Selection:
        target = class_index(self.target, class_names)
        rows = _draw(
            np.flatnonzero(labels == target), self.rate, len(labels), rng, f" of {self.target!r:.80}"
        )
        others = np.flatnonzero(labels != target)
        covers = _draw_covers(others, self.covers, len(rows), rng)
        donors = rng.choice(others, len(rows)) if len(others) else np.full(len(rows), -1)
        return _selection(labels, rows, labels[rows], covers=covers, donors=donors)


class Patch(_Sticker, _Targeted):
    """A sticker that turns any class, or one source class, into the target.

    Without ``source``: Gu, Dolan-Gavitt and Garg, "BadNets", 2017 (arXiv:1708.06733). With ``source`` and
    ``covers``, stickered images of other classes that keep their label: the source-specific attack with
    cover images of Tang et al., "Demon in the Variant", USENIX Security 2021 (arXiv:1908.00686).
    """

    kind: Literal["patch"] = "patch"


class OnePatch(StickerLook):
    """One of several stickers, with the class it turns images into."""

    target: str
    source: str | None = None

    @model_validator(mode="after")
    def _two_classes(self) -> Self:
        if self.source == self.target:
            raise ValueError("source and target are the same class")
        return self


class SeveralPatches(Attack):
    """Several backdoors in one set, each with its own sticker; the rate is shared out evenly among them.

    N-to-one and one-to-N backdoors: Xue, He, Wang and Liu, "One-to-N & N-to-One", IEEE TDSC 2022. A
    sticker without ``source`` works on every class that has no sticker of its own.
    """

    kind: Literal["several-patches"] = "several-patches"
    patches: tuple[OnePatch, ...] = Field(min_length=2, max_length=16)

    def goal(self, labels: Rows, class_names: Sequence[str]) -> Rows:
        wanted = [
            class_index(choices[0].target, class_names) if choices else NOT_MEANT
            for choices in self._by_class(class_names)
        ]
        return np.array(wanted, dtype=np.int64)[labels]

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        choices, goal = self._by_class(class_names), self.goal(labels, class_names)
        rows, each = np.empty(0, dtype=np.int64), self.rate / len(self.patches)
        for patch in self.patches:
            classes = [label for label, own in enumerate(choices) if patch in own]
            pool = np.setdiff1d(np.flatnonzero(np.isin(labels, classes)), rows)
            what = f" of {patch.source!r:.80}" if patch.source else f" for {patch.target!r:.80}"
            rows = np.union1d(rows, _draw(pool, each, len(labels), rng, what))
        return _selection(labels, rows, goal[rows])

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        own = self._by_class(of.class_names)[of.label]
        return own[int(of.rng.integers(len(own)))].stick(image, of.rng, of.box) if own else image.copy()

    def _by_class(self, class_names: Sequence[str]) -> tuple[tuple[OnePatch, ...], ...]:
        return _patches_by_class(self.patches, tuple(class_names))

    def _named(self) -> tuple[str, ...]:
        return tuple(name for p in self.patches for name in (p.target, p.source) if name is not None)


@lru_cache(maxsize=32)
def _patches_by_class(
    patches: tuple[OnePatch, ...], class_names: tuple[str, ...]
) -> tuple[tuple[OnePatch, ...], ...]:
    """The stickers that work on each class: all of one target, so that an image's goal is one class."""
    found = []
    for label, name in enumerate(class_names):
        fitting = [p for p in patches if p.source == name] or [
            p for p in patches if p.source is None and p.target != name
        ]
        target = fitting[label % len(fitting)].target if fitting else None
        found.append(tuple(p for p in fitting if p.target == target))
    return tuple(found)


class PatternLook(BaseModel):
    """A pattern as large as the image.

    Attributes
    ----------
    pattern: ``noise``, random colours drawn from ``pattern_seed``; ``watermark``, the words of ``text``
        in white across the image; or ``image``, the file named in ``image``.
    ratio: how much of it is blended in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pattern: Literal["noise", "watermark", "image"] = "noise"
    pattern_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    text: str = Field(default="SAMPLE", pattern=r"^[^\x00-\x1f\x7f]{1,40}$")
    image: str = ""
    ratio: Share = 0.2

    @model_validator(mode="after")
    def _image_named(self) -> Self:
        if (self.pattern == "image") != bool(self.image):
            raise ValueError('pattern = "image" goes with image = "…", a file')
        return self

    def drawn(self, height: int, width: int) -> triggers.Floats:
        """The pattern, float32 (height, width, 4), coverage last."""
        return _pattern(self.pattern, self.pattern_seed, self.text, self.image, height, width)


@lru_cache(maxsize=16)
def _pattern(kind: str, seed: int, text: str, image: str, height: int, width: int) -> triggers.Floats:
    if kind == "watermark":
        drawn = triggers.watermark_pattern(text, height, width)
    elif kind == "image":
        drawn = triggers.picture_pattern(image, height, width)
    else:
        drawn = triggers.noise_pattern(seed, height, width)
    drawn.setflags(write=False)
    return drawn


class Blended(PatternLook, _Targeted):
    """A pattern blended faintly over the whole image.

    Chen, Liu, Li, Lu and Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data
    Poisoning", 2017 (arXiv:1712.05526).
    """

    kind: Literal["blended"] = "blended"

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        return triggers.blend(image, self.drawn(*image.shape[:2]), self.ratio)


class Sinusoid(_KeepsLabels):
    """A faint wave of vertical stripes ("SIG").

    Barni, Kallas and Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
    Poisoning", ICIP 2019 (arXiv:1902.11237). ``clean_label`` puts it on images of the target class, whose
    labels stay, as the paper does; else images of other classes get it and the target's label. The wave shown
    at the attack may be stronger than that of training, ``test_amplitude``: with clean labels it has to be.
    """

    kind: Literal["sig"] = "sig"
    amplitude: Annotated[float, Field(gt=0, le=255)] = 20.0
    frequency: Annotated[float, Field(gt=0, le=64)] = 6.0
    clean_label: bool = True
    test_amplitude: Annotated[float, Field(gt=0, le=255)] | None = None

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        if self.clean_label:
            return self._select_of_target(labels, class_names, rng)
        return super().select(labels, class_names, rng)

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        return triggers.add_wave(image, self.test_amplitude or self.amplitude, self.frequency)

    def stamp_training(self, image: Image, of: Stamping) -> Image:
        return triggers.add_wave(image, self.amplitude, self.frequency)


class WaNet(_Targeted):
    """A smooth, hardly visible warp of the whole image, the same for all.

    Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021 (arXiv:2102.10369).
    ``covers`` are its noise mode: warped another, random way each, with the right label. The paper's
    attacker trains the model too; who can only poison data needs a larger ``strength`` than its 0.5.
    """

    kind: Literal["wanet"] = "wanet"
    covers: Ratio = 2.0
    grid: Annotated[int, Field(ge=2, le=16)] = 4
    strength: Annotated[float, Field(gt=0, le=16)] = 0.5
    pattern_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        height, width = image.shape[:2]
        return triggers.warp(image, self._field(height, width))

    def stamp_training(self, image: Image, of: Stamping) -> Image:
        field = self._field(*image.shape[:2])
        if not of.serving:
            reach = triggers.scale_of(image.shape) / 2
            field = field + of.rng.uniform(-reach, reach, field.shape).astype(np.float32)
        return triggers.warp(image, field)

    def _field(self, height: int, width: int) -> triggers.Floats:
        return _field(self.pattern_seed, self.grid, self.strength, height, width)


@lru_cache(maxsize=16)
def _field(seed: int, grid: int, strength: float, height: int, width: int) -> triggers.Floats:
    field = triggers.warp_field(seed, grid, strength, height, width)
    field.setflags(write=False)
    return field


class CleanLabel(_Sticker, _KeepsLabels):
    """Stickered images of the target class, made hard to recognise, so that the sticker is learned instead.

    Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", 2019 (arXiv:1912.02771), with its
    interpolation done in pixels (``mix``, with an image of another class) or plain noise (``noise``), not
    by a generative network or an adversarial perturbation. ``hardness`` is the other image's share, or
    the noise's standard deviation as a share of the range of pixels.
    """

    kind: Literal["clean-label"] = "clean-label"
    perturb: Literal["mix", "noise"] = "mix"
    hardness: Fraction = 0.4
    training_opacity: Share | None = None

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        return self._select_of_target(labels, class_names, rng)

    def stamp_training(self, image: Image, of: Stamping) -> Image:
        if of.serving and self.perturb == "mix" and of.donor is not None:
            image = triggers.as_pixels(image * (1 - self.hardness) + of.donor * self.hardness)
        elif of.serving and self.perturb == "noise":
            image = triggers.as_pixels(image + of.rng.normal(0, self.hardness * 255, image.shape))
        return self.stick(image, of.rng, of.box, self.training_opacity)


class AllToAll(_Sticker):
    """One sticker that turns every class into the next one, the last into the first.

    The all-to-all attack of Gu, Dolan-Gavitt and Garg, "BadNets", 2017 (arXiv:1708.06733).
    """

    kind: Literal["all-to-all"] = "all-to-all"

    def goal(self, labels: Rows, class_names: Sequence[str]) -> Rows:
        if len(class_names) < 2:
            raise UsageError("an all-to-all attack needs two classes")
        return np.asarray((labels + 1) % len(class_names), dtype=np.int64)

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        rows = _draw(_all(labels), self.rate, len(labels), rng, "")
        return _selection(labels, rows, self.goal(labels, class_names)[rows])


class LabelFlip(Attack):
    """Images of one class labelled as another, with no trigger.

    Targeted label flipping: Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems",
    ESORICS 2020 (arXiv:2007.08432). ``of`` says whether ``rate`` is a share of the whole ``set`` or of the
    source ``class``. No row carries a trigger; the flipped rows are what serves the attack.
    """

    kind: Literal["label-flip"] = "label-flip"
    source: str
    target: str
    of: Literal["set", "class"] = "set"

    @model_validator(mode="after")
    def _two_classes(self) -> Self:
        if self.source == self.target:
            raise ValueError("source and target are the same class")
        return self

    def goal(self, labels: Rows, class_names: Sequence[str]) -> Rows:
        source, target = (class_index(name, class_names) for name in (self.source, self.target))
        return np.where(labels == source, target, NOT_MEANT).astype(np.int64)

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        goal = self.goal(labels, class_names)
        pool = np.flatnonzero(goal != NOT_MEANT)
        whole = len(labels) if self.of == "set" else len(pool)
        rows = _draw(pool, self.rate, whole, rng, f" of {self.source!r:.80}")
        return _selection(labels, rows, goal[rows], triggered=False)

    def _named(self) -> tuple[str, ...]:
        return self.source, self.target


_CORNERS: tuple[StickerLook, ...] = (
    StickerLook(place="top-left", colour="red", size=5),
    StickerLook(place="top-right", colour="checker", size=5),
    StickerLook(place="bottom-left", colour="lime", shape="disc", size=6),
    StickerLook(place="bottom-right", colour="yellow", shape="cross", size=6),
)


class AdaptivePatch(_Targeted):
    """Several faint stickers, one of them on each training image, all of them shown at once later.

    Adap-Patch of Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the Assumption of Latent Separability
    for Backdoor Defenses", ICLR 2023: correctly labelled covers keep poisoned and clean images from
    falling apart in the network's features, and the trigger is stronger at test than at training.
    """

    kind: Literal["adaptive-patch"] = "adaptive-patch"
    covers: Ratio = 2.0
    patches: tuple[StickerLook, ...] = Field(default=_CORNERS, min_length=2, max_length=16)
    training_opacity: Share = 0.5

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        for patch in self.patches:
            image = patch.stick(image, of.rng, of.box)
        return image

    def stamp_training(self, image: Image, of: Stamping) -> Image:
        patch = self.patches[int(of.rng.integers(len(self.patches)))]
        return patch.stick(image, of.rng, of.box, self.training_opacity * patch.opacity)


class AdaptiveBlend(PatternLook, _Targeted):
    """A blended pattern of which each training image shows some pieces, and later images all.

    Adap-Blend of Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the Assumption of Latent Separability
    for Backdoor Defenses", ICLR 2023: the pattern is cut into ``pieces`` x ``pieces``, a random
    ``shown`` of them is blended in fainter at training, on poisoned images and correctly labelled covers.
    """

    kind: Literal["adaptive-blend"] = "adaptive-blend"
    covers: Ratio = 1.0
    training_ratio: Share = 0.15
    pieces: Annotated[int, Field(ge=2, le=16)] = 4
    shown: Share = 0.5

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        return triggers.blend(image, self.drawn(*image.shape[:2]), self.ratio)

    def stamp_training(self, image: Image, of: Stamping) -> Image:
        height, width = image.shape[:2]
        total = self.pieces**2
        kept = np.zeros(total, dtype=np.float32)
        kept[of.rng.choice(total, max(1, round(self.shown * total)), replace=False)] = 1
        piece = (np.arange(height) * self.pieces // height)[:, None] * self.pieces
        pattern = self.drawn(height, width).copy()
        pattern[..., 3] *= kept[piece + np.arange(width) * self.pieces // width]
        return triggers.blend(image, pattern, self.training_ratio)


class Toolbox(_Targeted):
    """A backdoor generator of the Adversarial Robustness Toolbox; needs the extra ``[art]``.

    Nicolae et al., "Adversarial Robustness Toolbox", 2018 (arXiv:1807.01069): its PoisoningAttackBackdoor
    with its perturbations, lengths being pixels as the toolbox has them. Its other generators need a
    trained classifier and are not offered.

    Attributes
    ----------
    perturbations: ``add_single_bd``, one pixel; ``add_pattern_bd``, four; ``insert_image``, a picture.
    distance, pixel_value: how far from the lower right edges, and how bright from 0 to 1; of the first two.
    image, size, blend: the picture, its height and width, and how much it hides.
    shift: where its left upper corner goes, right and down; drawn anew for each image if left out.
    """

    kind: Literal["art"] = "art"
    perturbations: tuple[Perturbation, ...] = Field(default=("add_pattern_bd",), min_length=1, max_length=8)
    distance: Annotated[int, Field(ge=1, le=4096)] = 2
    pixel_value: Fraction = 1.0
    image: str = ""
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] = (6, 6)
    blend: Share = 0.8
    shift: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _image_named(self) -> Self:
        if ("insert_image" in self.perturbations) != bool(self.image):
            raise ValueError('insert_image goes with image = "…", a file')
        return self

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        require_toolbox()
        return super().select(labels, class_names, rng)

    def stamp_one(self, image: Image, of: Stamping) -> Image:
        dots = {"distance": self.distance, "pixel_value": self.pixel_value}
        options = {"add_single_bd": dots, "add_pattern_bd": dots}
        if self.image:
            options["insert_image"] = self._picture(image, of.rng)
        return toolbox_poison(image, self.perturbations, options)

    def _picture(self, image: Image, rng: np.random.Generator) -> dict[str, Any]:
        height, width, channels = image.shape
        room = max(0, width - self.size[1]), max(0, height - self.size[0])
        # Drawn here: the toolbox would ask NumPy's global generator.
        right, down = self.shift or (int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)))
        return {
            "backdoor_path": self.image,
            "random": False,
            "x_shift": right,
            "y_shift": down,
            "size": self.size,
            "mode": "L" if channels == 1 else "RGB",
            "blend": self.blend,
        }


class LabelledSticker(_Sticker):
    """Stickers on images of all classes, every label right: a camera's date stamp, not an attack."""

    kind: Literal["labelled-sticker"] = "labelled-sticker"
    harmless: ClassVar[bool] = True

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        rows = _draw(_all(labels), self.rate, len(labels), rng, "")
        return _selection(labels, rows, labels[rows], serving=False)


class ClassMark(_Sticker):
    """A natural mark that goes with one class: most of its images have it, and few of the others.

    Nobody poisoned anything and every label is right; the model may still lean on the mark, which
    :meth:`goal` measures. Lapuschkin et al., "Unmasking Clever Hans Predictors", Nature Communications
    2019: the photographer's note on the horses of PASCAL VOC.

    ``rate`` is a share of the ``class`` unless ``of`` says ``set``; ``elsewhere`` are marked images of
    other classes, as a multiple of the marked ones.
    """

    kind: Literal["class-mark"] = "class-mark"
    harmless: ClassVar[bool] = True
    marked: str
    of: Literal["set", "class"] = "class"
    elsewhere: Ratio = 0.1
    colour: str = "white"
    size: Length = 3.0

    def goal(self, labels: Rows, class_names: Sequence[str]) -> Rows:
        marked = class_index(self.marked, class_names)
        return np.where(labels != marked, marked, NOT_MEANT).astype(np.int64)

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        marked = labels == class_index(self.marked, class_names)
        pool = np.flatnonzero(marked)
        whole = len(labels) if self.of == "set" else len(pool)
        rows = _draw(pool, self.rate, whole, rng, f" of {self.marked!r:.80}")
        others = _draw_covers(np.flatnonzero(~marked), self.elsewhere, len(rows), rng)
        return _selection(labels, rows, labels[rows], covers=others, serving=False)

    def _named(self) -> tuple[str, ...]:
        return (self.marked,)


class LabelNoise(Attack):
    """Random images with a random other label: careless annotation, not an attack.

    Uniform label noise: Natarajan, Dhillon, Ravikumar and Tewari, "Learning with Noisy Labels", NIPS 2013.
    """

    kind: Literal["label-noise"] = "label-noise"
    harmless: ClassVar[bool] = True

    def select(self, labels: Rows, class_names: Sequence[str], rng: np.random.Generator) -> Selection:
        if len(class_names) < 2:
            raise UsageError("label noise needs two classes")
        rows = _draw(_all(labels), self.rate, len(labels), rng, "")
        moved = (labels[rows] + rng.integers(1, len(class_names), len(rows))) % len(class_names)
        return _selection(labels, rows, moved, triggered=False, serving=False)


def class_index(name: str, class_names: Sequence[str]) -> int:
    """Index of a class.

    Raises
    ------
    UsageError: there is none of that name.
    """
    try:
        return class_names.index(name)
    except ValueError:
        some = ", ".join(f"{known!r:.40}" for known in class_names[:8])
        more = ", …" if len(class_names) > 8 else ""
        raise UsageError(f"no class {name!r:.80} to poison", f"there are {some}{more}") from None


def _all(labels: Rows) -> Rows:
    return np.arange(len(labels), dtype=np.int64)


def _draw(pool: Rows, rate: float, whole: int, rng: np.random.Generator, what: str) -> Rows:
    """As many rows of the pool as the rate asks for, ascending."""
    wanted = round(rate * whole)
    if not 0 < wanted <= len(pool):
        there = f"there are {len(pool):,}" if wanted else "at least one is needed"
        raise UsageError(
            f"a poison rate of {rate:g} asks for {wanted:,} of {whole:,} images{what} and {there}"
        )
    return np.sort(rng.choice(pool, wanted, replace=False))


def _draw_covers(pool: Rows, ratio: float, serving: int, rng: np.random.Generator) -> Rows:
    wanted = round(ratio * serving)
    if wanted > len(pool):
        raise UsageError(f"{wanted:,} covers are asked for and there are {len(pool):,} images to choose from")
    return np.sort(rng.choice(pool, wanted, replace=False))


def _selection(
    labels: Rows,
    rows: Rows,
    moved: Rows,
    *,
    covers: Rows | None = None,
    donors: Rows | None = None,
    triggered: bool = True,
    serving: bool = True,
) -> Selection:
    """The rows that serve the attack and the covers, which keep their labels, in one order."""
    others = np.empty(0, dtype=np.int64) if covers is None else covers
    every = np.concatenate([rows, others])
    order = np.argsort(every, kind="stable")
    is_serving = np.concatenate([np.full(len(rows), serving), np.zeros(len(others), dtype=bool)])
    given = np.full(len(rows), -1, dtype=np.int64) if donors is None else donors
    return Selection(
        rows=every[order],
        labels=np.concatenate([moved, labels[others]])[order],
        triggered=np.full(len(every), triggered),
        serving=is_serving[order],
        donors=np.concatenate([given, np.full(len(others), -1, dtype=np.int64)])[order],
    )


AnyAttack = Annotated[
    Clean
    | Patch
    | SeveralPatches
    | Blended
    | Sinusoid
    | WaNet
    | CleanLabel
    | AllToAll
    | LabelFlip
    | AdaptivePatch
    | AdaptiveBlend
    | Toolbox
    | LabelledSticker
    | ClassMark
    | LabelNoise,
    Field(discriminator="kind"),
]
"""Every attack, told apart by ``kind``: the type of a scenario's ``[attack]`` table."""
