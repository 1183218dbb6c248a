"""From encoded bytes or raw arrays to uint8 images of the wanted shape.

Both ways agree: grey is ITU-R 601 luma, colour from grey repeats it, sizes change by Pillow's bilinear
filter. Transparency is dropped and EXIF rotation is not applied, as the usual training pipelines do.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from promotion_gate.core.errors import InputError
from promotion_gate.data.interface import Images, ImageShape

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are unpacked."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_UNBOUNDED = ("I", "F")

# Pillow warns of oddities in headers. Here an image is decoded or refused, never remarked on, and a filter
# that is set once is safe where decoding runs in several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_images(contents: Sequence[bytes], names: Sequence[str], shape: ImageShape) -> Images:
    """Decode encoded images, uint8 (n, height, width, channels).

    Raises
    ------
    InputError: one is corrupt, truncated, too large or of an unknown kind; ``names`` says what to call
    each.
    """
    images = np.empty((len(contents), shape.height, shape.width, shape.channels), dtype=np.uint8)
    for i, (content, name) in enumerate(zip(contents, names, strict=True)):
        images[i] = _decode(content, name, shape)
    return images


def native_shape(content: bytes, name: str) -> ImageShape:
    """The shape of an encoded image as it is stored: one channel where it is grey, else three.

    Raises
    ------
    InputError: it is corrupt, too large or of an unknown kind; ``name`` says what to call it.
    """
    # Decoding it whole says what is wrong with it, if anything is.
    _decode(content, name, ImageShape(1, 1, 1))
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        grey = image.mode in ("1", "L", "LA", "La", *_DEEP_GREY)
        return ImageShape(image.height, image.width, 1 if grey else 3)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A whole image at its own size: ``pixels`` (h, w, 3), and its mode and format as Pillow calls them."""

    pixels: NDArray[np.uint8] = field(repr=False)
    mode: str
    format: str


def decode_whole(content: bytes, name: str) -> Decoded:
    """Decode every pixel of an encoded image at its own size, its checksums included where it has any.

    Raises
    ------
    InputError: it is corrupt, truncated, too large or of an unknown kind; ``name`` says what to call it.
    """
    with _refusing(name):
        # Decoding passes over the checksums of a PNG's chunks.
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            mode, kind = image.mode, image.format or ""
            _load(image, name)
            shape = ImageShape(image.height, image.width, 3)
            return Decoded(_as_array(_fit(_eight_bit(image), shape)), mode, kind)


def _decode(content: bytes, name: str, shape: ImageShape) -> NDArray[np.uint8]:
    with _refusing(name), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _load(image, name)
        return _as_array(_fit(_eight_bit(image), shape))


def _load(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    image.load()
    if image.mode in _UNBOUNDED:
        raise InputError(f"{name} has 32-bit pixels of unknown range", "save it with 8 or 16 bits")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an InputError that names the image."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name} has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a readable image") from None
    except Exception as error:  # Pillow's decoders raise almost anything on malformed bytes
        raise InputError(f"{name} is a corrupt image: {str(error)[:120]}") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _DEEP_GREY:
        return image
    # Pillow's own conversion clips at 255, which would turn a 16-bit image white.
    deep = np.asarray(image).astype(np.uint16)
    return Image.fromarray((deep >> 8).astype(np.uint8))


def _fit(image: Image.Image, shape: ImageShape) -> Image.Image:
    mode = "L" if shape.channels == 1 else "RGB"
    image.info.pop("transparency", None)
    if mode == "L" and image.mode != "L":
        image = image.convert("RGB")
    image = image.convert(mode)
    size = (shape.width, shape.height)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _as_array(image: Image.Image) -> NDArray[np.uint8]:
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def reshape_images(images: Images, shape: ImageShape) -> Images:
    """Bring raw images (n, h, w, c) to ``shape``; always a fresh, contiguous array."""
    images = _with_channels(images, shape.channels)
    if images.shape[1:3] == (shape.height, shape.width):
        return np.array(images, order="C")
    resized = np.empty((len(images), shape.height, shape.width, shape.channels), dtype=np.uint8)
    size = (shape.width, shape.height)
    for i, image in enumerate(images):
        plain = np.ascontiguousarray(image[:, :, 0] if shape.channels == 1 else image)
        resized[i] = _as_array(Image.fromarray(plain).resize(size, Image.Resampling.BILINEAR))
    return resized


def _with_channels(images: Images, channels: int) -> Images:
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    red, green, blue = (images[..., i].astype(np.uint32) for i in range(3))
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(np.uint8)[..., None]
