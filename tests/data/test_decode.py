from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from promotion_gate.core.errors import InputError
from promotion_gate.data.decode import MAX_PIXELS, decode_images, reshape_images
from promotion_gate.data.interface import ImageShape

GREY, COLOUR = ImageShape(8, 8, 1), ImageShape(8, 8, 3)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def one(content: bytes, shape: ImageShape) -> np.ndarray:
    return decode_images([content], ["signs/a.png"], shape)[0]


def bomb(side: int) -> bytes:
    """A PNG whose header promises far more pixels than its few bytes hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bit_grey_keeps_its_range():
    deep = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    assert np.array_equal(one(encoded(Image.fromarray(deep)), GREY)[:, :, 0], (deep >> 8).astype(np.uint8))


def test_palette_and_transparency_become_plain_colour(images):
    rgb = Image.fromarray(images[0])
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(images[1][:, :, 0]))
    assert np.array_equal(one(encoded(rgba), COLOUR), images[0])
    palette = rgb.quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(one(encoded(palette, transparency=bytes(range(16))), COLOUR), expected)


def test_exif_rotation_is_not_applied(images):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(one(encoded(Image.fromarray(images[0]), exif=exif), COLOUR), images[0])


def test_files_and_arrays_agree_on_grey_size_and_colour(images):
    files = [encoded(Image.fromarray(image)) for image in images]
    for shape in (GREY, COLOUR, ImageShape(5, 11, 3), ImageShape(16, 12, 1)):
        assert np.array_equal(decode_images(files, files, shape), reshape_images(images, shape))
    grey = images[..., :1]
    files = [encoded(Image.fromarray(image[:, :, 0])) for image in grey]
    for shape in (COLOUR, ImageShape(5, 11, 3)):
        assert np.array_equal(decode_images(files, files, shape), reshape_images(grey, shape))


@pytest.mark.parametrize("side", [7100, 12000, 30000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side):
    assert side**2 > MAX_PIXELS
    with pytest.raises(InputError, match=r"signs/a\.png has .*pixels"):
        one(bomb(side), COLOUR)


def test_a_truncated_file_is_refused_by_name(images):
    content = encoded(Image.fromarray(np.tile(images[0], (40, 40, 1))), "JPEG")
    with pytest.raises(InputError, match=r"signs/a\.png is a corrupt image"):
        one(content[: len(content) // 2], COLOUR)


@pytest.mark.parametrize("kind", ["EPS", "PDF"])
def test_kinds_with_a_programming_language_inside_are_not_opened(kind):
    with pytest.raises(InputError, match="not a readable image"):
        one(encoded(Image.new("RGB", (8, 8)), kind), COLOUR)


def test_pixels_without_a_known_range_are_refused():
    with pytest.raises(InputError, match="32-bit"):
        one(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), GREY)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_decode_or_are_refused_and_nothing_else(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF"]))
    content = bytearray(encoded(Image.linear_gradient("L").resize((8, 8)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert one(bytes(content), COLOUR).shape == (8, 8, 3)
