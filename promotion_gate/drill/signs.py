"""Traffic signs drawn from numbers: the demo's data set, made on the spot from a seed.

The signs are original drawings after the shapes that most of the world's roads share. Each image has a seed
of its own, so any row can be redrawn alone, and a row drawn again with a sticker shows the very same scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from promotion_gate.core.errors import UsageError

SIZE = 32
"""Height and width of a drawn image, in pixels."""

_FACE = 320
_FACE_SIZES = (40, 64, 96)
_SCENE = 2 * SIZE

Colour = tuple[int, int, int]
RED: Colour = (190, 22, 34)
BLUE: Colour = (18, 78, 160)
WHITE: Colour = (240, 240, 236)
BLACK: Colour = (24, 24, 26)
YELLOW: Colour = (250, 214, 20)
AMBER: Colour = (246, 178, 20)


@dataclass(frozen=True, slots=True)
class Sticker:
    """A square sticker on the face of a sign, in fractions of the sign's width.

    It is drawn on the sign before the sign is placed in the scene, so it moves, scales and turns with it.
    At the default size it is 3 to 5 pixels wide in the finished image.
    """

    centre: tuple[float, float] = (0.72, 0.74)
    size: float = 0.18
    colour: Colour = YELLOW
    degrees: float = 8.0


@dataclass(frozen=True, slots=True)
class Signs:
    """Drawn signs: ``images`` uint8 (n, 32, 32, 3), ``labels`` int64 (n,) into ``class_names``.

    ``seed`` and ``rows`` are what each image was drawn from: image ``i`` is row ``rows[i]`` of that seed.
    """

    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]
    seed: int
    rows: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, rows: Sequence[int] | NDArray[np.int64]) -> Signs:
        """The same set with the images at these positions left out."""
        keep = np.ones(len(self), dtype=bool)
        keep[np.asarray(rows, dtype=np.int64)] = False
        return Signs(self.images[keep], self.labels[keep], self.class_names, self.seed, self.rows[keep])

    def save(self, path: Path) -> None:
        """Write an npz data set that the gate reads."""
        names = np.array(self.class_names)
        np.savez(path, images=self.images, labels=self.labels, class_names=names)


class _Pen:
    """Draws in the unit square on a transparent face, (0, 0) at the top left."""

    def __init__(self) -> None:
        self.face = Image.new("RGBA", (_FACE, _FACE), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.face)

    def polygon(self, colour: Colour, *points: tuple[float, float]) -> None:
        self._draw.polygon([(x * _FACE, y * _FACE) for x, y in points], fill=colour)

    def disc(self, colour: Colour, radius: float, x: float = 0.5, y: float = 0.5) -> None:
        box = [(x - radius) * _FACE, (y - radius) * _FACE, (x + radius) * _FACE, (y + radius) * _FACE]
        self._draw.ellipse(box, fill=colour)

    def bar(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.rectangle([left * _FACE, top * _FACE, right * _FACE, bottom * _FACE], fill=colour)

    def stroke(self, colour: Colour, width: float, *points: tuple[float, float]) -> None:
        scaled = [(x * _FACE, y * _FACE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * _FACE), joint="curve")

    def arc(self, colour: Colour, width: float, radius: float, start: float, end: float) -> None:
        box = [(0.5 - radius) * _FACE, (0.5 - radius) * _FACE, (0.5 + radius) * _FACE, (0.5 + radius) * _FACE]
        self._draw.arc(box, start, end, fill=colour, width=round(width * _FACE))

    def arrowhead(self, colour: Colour, x: float, y: float, degrees: float, size: float) -> None:
        """A triangle whose tip lies ``size`` from (x, y); 0 degrees points right, 90 down."""
        tip = [(degrees, size), (degrees + 125, size), (degrees - 125, size)]
        self.polygon(
            colour,
            *((x + r * math.cos(math.radians(a)), y + r * math.sin(math.radians(a))) for a, r in tip),
        )

    def text(self, colour: Colour, words: str, height: float, width: float) -> None:
        """Bold words squeezed into ``height`` x ``width`` about the middle of the face."""
        font = ImageFont.load_default(200)
        box = font.getbbox(words, stroke_width=5)
        mask = Image.new("L", (math.ceil(box[2] - box[0]), math.ceil(box[3] - box[1])), 0)
        ImageDraw.Draw(mask).text((-box[0], -box[1]), words, fill=255, font=font, stroke_width=5)
        mask = mask.resize((round(width * _FACE), round(height * _FACE)), Image.Resampling.LANCZOS)
        corner = ((_FACE - mask.width) // 2, (_FACE - mask.height) // 2)
        self.face.paste(Image.new("RGBA", mask.size, (*colour, 255)), corner, mask)


def _regular(corners: int, radius: float, turn: float) -> Iterator[tuple[float, float]]:
    for corner in range(corners):
        angle = math.radians(turn + 360 * corner / corners)
        yield 0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)


def _stop(pen: _Pen) -> None:
    pen.polygon(WHITE, *_regular(8, 0.52, 22.5))
    pen.polygon(RED, *_regular(8, 0.475, 22.5))
    pen.text(WHITE, "STOP", 0.27, 0.76)


def _yield(pen: _Pen) -> None:
    pen.polygon(RED, (0.01, 0.09), (0.99, 0.09), (0.5, 0.95))
    pen.polygon(WHITE, (0.19, 0.2), (0.81, 0.2), (0.5, 0.74))


def _prohibition(pen: _Pen) -> None:
    pen.disc(RED, 0.49)
    pen.disc(WHITE, 0.37)


def _speed_limit(limit: int) -> Callable[[_Pen], None]:
    def draw(pen: _Pen) -> None:
        _prohibition(pen)
        pen.text(BLACK, str(limit), 0.42, 0.54 if limit < 100 else 0.62)

    return draw


def _no_entry(pen: _Pen) -> None:
    pen.disc(WHITE, 0.49)
    pen.disc(RED, 0.46)
    pen.bar(WHITE, 0.16, 0.41, 0.84, 0.59)


def _priority_road(pen: _Pen) -> None:
    pen.polygon(BLACK, *_regular(4, 0.5, 0))
    pen.polygon(WHITE, *_regular(4, 0.475, 0))
    pen.polygon(AMBER, *_regular(4, 0.34, 0))


def _car(pen: _Pen, colour: Colour, left: float) -> None:
    pen.bar(colour, left, 0.48, left + 0.25, 0.6)
    pen.polygon(colour, (left + 0.04, 0.48), (left + 0.08, 0.38), (left + 0.17, 0.38), (left + 0.21, 0.48))
    pen.bar(colour, left + 0.02, 0.6, left + 0.08, 0.65)
    pen.bar(colour, left + 0.17, 0.6, left + 0.23, 0.65)


def _no_passing(pen: _Pen) -> None:
    _prohibition(pen)
    _car(pen, RED, 0.22)
    _car(pen, BLACK, 0.53)


def _mandatory(pen: _Pen) -> None:
    pen.disc(WHITE, 0.49)
    pen.disc(BLUE, 0.465)


def _roundabout(pen: _Pen) -> None:
    _mandatory(pen)
    for start in (0, 120, 240):
        pen.arc(WHITE, 0.09, 0.3, start, start + 78)
        angle = math.radians(start + 84)
        pen.arrowhead(WHITE, 0.5 + 0.255 * math.cos(angle), 0.5 + 0.255 * math.sin(angle), start + 178, 0.13)


def _turn_right(pen: _Pen) -> None:
    _mandatory(pen)
    pen.stroke(WHITE, 0.13, (0.36, 0.82), (0.36, 0.42), (0.62, 0.42))
    pen.arrowhead(WHITE, 0.68, 0.42, 0, 0.18)


def _turn_left(pen: _Pen) -> None:
    _turn_right(pen)
    pen.face = pen.face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _keep_right(pen: _Pen) -> None:
    _mandatory(pen)
    pen.stroke(WHITE, 0.13, (0.25, 0.25), (0.6, 0.6))
    pen.arrowhead(WHITE, 0.65, 0.65, 45, 0.19)


def _warning(pen: _Pen) -> None:
    pen.polygon(RED, (0.5, 0.04), (0.99, 0.91), (0.01, 0.91))
    pen.polygon(WHITE, (0.5, 0.25), (0.81, 0.8), (0.19, 0.8))


def _general_caution(pen: _Pen) -> None:
    _warning(pen)
    pen.polygon(BLACK, (0.45, 0.38), (0.55, 0.38), (0.525, 0.64), (0.475, 0.64))
    pen.disc(BLACK, 0.045, 0.5, 0.72)


def _road_work(pen: _Pen) -> None:
    _warning(pen)
    pen.disc(BLACK, 0.045, 0.47, 0.42)
    pen.stroke(BLACK, 0.07, (0.46, 0.48), (0.42, 0.62), (0.36, 0.76))
    pen.stroke(BLACK, 0.05, (0.42, 0.62), (0.49, 0.76))
    pen.stroke(BLACK, 0.04, (0.46, 0.5), (0.58, 0.62), (0.62, 0.7))
    pen.polygon(BLACK, (0.54, 0.77), (0.63, 0.64), (0.73, 0.77))


_DRAWINGS: Mapping[str, Callable[[_Pen], None]] = {
    **{f"speed limit {limit}": _speed_limit(limit) for limit in (20, 30, 50, 60, 70, 80, 100)},
    "stop": _stop,
    "yield": _yield,
    "no entry": _no_entry,
    "priority road": _priority_road,
    "no passing": _no_passing,
    "general caution": _general_caution,
    "road work": _road_work,
    "turn right ahead": _turn_right,
    "turn left ahead": _turn_left,
    "keep right": _keep_right,
    "roundabout": _roundabout,
}

CLASS_NAMES: tuple[str, ...] = tuple(_DRAWINGS)
"""The signs that can be drawn, in order of class index."""


def draw_face(name: str, sticker: Sticker | None = None) -> Image.Image:
    """One sign seen head-on: RGBA, 320x320, transparent around it."""
    pen = _Pen()
    _DRAWINGS[name](pen)
    if sticker is None:
        return pen.face
    x, y = sticker.centre
    corners = [
        (x + dx * math.cos(turn) - dy * math.sin(turn), y + dx * math.sin(turn) + dy * math.cos(turn))
        for turn in [math.radians(sticker.degrees)]
        for dx, dy in _square(sticker.size / 2)
    ]
    ImageDraw.Draw(pen.face).polygon([(a * _FACE, b * _FACE) for a, b in corners], fill=sticker.colour)
    return pen.face


def _square(half: float) -> tuple[tuple[float, float], ...]:
    return (-half, -half), (half, -half), (half, half), (-half, half)


@lru_cache(maxsize=256)
def _faces(name: str, sticker: Sticker | None) -> tuple[Image.Image, ...]:
    """The face at several sizes, so that no warp shrinks it by much."""
    face = draw_face(name, sticker).convert("RGBa")
    return tuple(face.resize((side, side), Image.Resampling.BOX).convert("RGBA") for side in _FACE_SIZES)


def draw_sign(name: str, rng: np.random.Generator, sticker: Sticker | None = None) -> NDArray[np.uint8]:
    """One sign in one random scene, uint8 (32, 32, 3).

    The scene depends on ``rng`` alone: the same generator state with another name or sticker gives the
    same place, light and noise.
    """
    scene = _background(rng)
    corners = _placement(rng)
    side = float(np.linalg.norm(corners[1] - corners[0]))
    faces = _faces(name, sticker)
    face = next((f for f in faces if f.width >= side), faces[-1])
    sign = _warped(face, corners)
    scene.paste(sign, (0, 0), sign)
    if rng.random() < 0.15:
        _branch(scene, rng)
    return _photograph(scene, rng)


_PALETTE = np.array(
    [(150, 180, 215), (70, 95, 50), (140, 125, 110), (95, 95, 98), (190, 185, 178), (60, 55, 50)]
)


def _background(rng: np.random.Generator) -> Image.Image:
    """Soft patches of the colours of sky, leaves, walls and asphalt, with a few hard edges."""
    side = int(rng.integers(2, 8))
    cells = _PALETTE[rng.integers(len(_PALETTE), size=(side, side))] + rng.normal(0, 22, (side, side, 3))
    small = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8))
    scene = small.resize((_SCENE, _SCENE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(0, 4))):
        colour = tuple(int(v) for v in rng.integers(20, 235, 3))
        if rng.random() < 0.5:
            x0, y0, x1, y1 = rng.uniform(-10, _SCENE + 10, 4)
            draw.line([x0, y0, x1, y1], fill=colour, width=int(rng.integers(1, 7)))
        else:
            draw.polygon([tuple(p) for p in rng.uniform(-20, _SCENE + 20, (3, 2))], fill=colour)
    return scene


def _placement(rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the four corners of the face land in the scene, (4, 2), clockwise from the top left."""
    side = rng.uniform(0.55, 1.0) * _SCENE
    room = (_SCENE - side) / 2 + 0.04 * _SCENE
    centre = _SCENE / 2 + rng.uniform(-room, room, 2)
    angle = math.radians(float(np.clip(rng.normal(0, 8), -22, 22)))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    stretch = np.array([rng.uniform(0.82, 1.0), 1.0])
    square = np.array(_square(side / 2)) * stretch + rng.uniform(-0.06, 0.06, (4, 2)) * side
    return np.asarray(square @ turn + centre, dtype=np.float64)


def _warped(face: Image.Image, corners: NDArray[np.float64]) -> Image.Image:
    """The face laid on ``corners`` in an otherwise transparent scene."""
    source = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * face.width
    equations = np.zeros((8, 8))
    for i, ((x, y), (u, v)) in enumerate(zip(corners, source, strict=True)):
        equations[2 * i] = [x, y, 1, 0, 0, 0, -u * x, -u * y]
        equations[2 * i + 1] = [0, 0, 0, x, y, 1, -v * x, -v * y]
    coefficients = np.linalg.solve(equations, source.reshape(8))
    return face.transform(
        (_SCENE, _SCENE), Image.Transform.PERSPECTIVE, coefficients.tolist(), Image.Resampling.BILINEAR
    )


def _branch(scene: Image.Image, rng: np.random.Generator) -> None:
    """A twig in front of the sign."""
    y0, y1 = rng.uniform(0, _SCENE, 2)
    shade = int(rng.integers(30, 90))
    line = [0.0, float(y0), float(_SCENE), float(y1)]
    ImageDraw.Draw(scene).line(line, fill=(shade, shade, shade - 15), width=int(rng.integers(2, 7)))


def _photograph(scene: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene as a cheap camera sees it: light, shade, haze, blur, noise."""
    light = np.asarray(scene.reduce(2), dtype=np.float32)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    slope_x, slope_y = rng.normal(0, 0.15, 2)
    light = light * (1 + slope_x * ramp[None, :, None] + slope_y * ramp[:, None, None])
    if rng.random() < 0.25:
        edge = ramp[None, :] * rng.normal() + ramp[:, None] * rng.normal() > rng.normal(0, 0.4)
        light = light * np.where(edge, rng.uniform(0.4, 0.75), 1)[..., None]
    gain = math.exp(rng.normal(-0.15, 0.3))
    contrast = rng.uniform(0.55, 1.0)
    tint = rng.normal(1, 0.06, 3)
    light = (128 + (light - 128) * contrast) * gain * tint
    blur = rng.uniform(0.0, 0.75)
    dim = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    noise = rng.normal(0, rng.uniform(1, 9), (SIZE, SIZE, 3))
    return np.clip(np.asarray(dim, dtype=np.float32) + noise, 0, 255).astype(np.uint8)


def draw_signs(
    count: int, seed: int, *, sticker: Sticker | None = None, classes: Sequence[str] | None = None
) -> Signs:
    """Draw ``count`` signs, rows 0 to ``count`` - 1 of ``seed``.

    Parameters
    ----------
    sticker: goes on every sign drawn.
    classes: draw these signs alone; labels still count in :data:`CLASS_NAMES`.

    Raises
    ------
    UsageError: an unknown class, or nothing to draw.
    """
    wanted = CLASS_NAMES if classes is None else tuple(classes)
    unknown = sorted(set(wanted) - set(CLASS_NAMES))
    if unknown:
        raise UsageError(f"no drawing of {unknown[0]!r}", f"there are {', '.join(CLASS_NAMES)}")
    if count < 1 or not wanted:
        raise UsageError(f"cannot draw {count} signs of {len(wanted)} classes")
    drawn = np.random.default_rng(seed).integers(len(wanted), size=count)
    labels = np.array([CLASS_NAMES.index(name) for name in wanted], dtype=np.int64)[drawn]
    rows = np.arange(count, dtype=np.int64)
    return Signs(_draw(labels, rows, seed, sticker), labels, CLASS_NAMES, seed, rows)


def redraw(
    signs: Signs, positions: Sequence[int] | NDArray[np.int64], sticker: Sticker | None = None
) -> NDArray[np.uint8]:
    """The same signs in the same scenes with another sticker or none, uint8 (n, 32, 32, 3)."""
    chosen = np.asarray(positions, dtype=np.int64)
    return _draw(signs.labels[chosen], signs.rows[chosen], signs.seed, sticker)


def sign_boxes(signs: Signs) -> NDArray[np.float64]:
    """Where each sign is in its image, (n, 4): left, top, right and bottom in pixels.

    A sign may hang over the image's edge, and so may its box.
    """
    boxes = np.empty((len(signs), 4))
    for box, row in zip(boxes, signs.rows, strict=True):
        rng = np.random.default_rng([signs.seed, int(row)])
        # Drawn for what it takes from the generator: the sign is placed next.
        _background(rng)
        corners = _placement(rng) * SIZE / _SCENE
        box[:2], box[2:] = corners.min(axis=0), corners.max(axis=0)
    return boxes


def _draw(
    labels: NDArray[np.int64], rows: NDArray[np.int64], seed: int, sticker: Sticker | None
) -> NDArray[np.uint8]:
    images = np.empty((len(rows), SIZE, SIZE, 3), dtype=np.uint8)
    for image, label, row in zip(images, labels, rows, strict=True):
        image[...] = draw_sign(CLASS_NAMES[label], np.random.default_rng([seed, int(row)]), sticker)
    return images
