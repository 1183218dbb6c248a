from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from promotion_gate.card import figures
from promotion_gate.card.images import atlas, data_uri, heat_uri
from promotion_gate.card.records import Curve


def _decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_pictures_keep_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(_decode(data_uri(pixels))), pixels)
    assert np.array_equal(np.asarray(_decode(data_uri(pixels[..., :1]))), pixels[..., 0])


def test_large_pictures_are_made_small() -> None:
    uri = data_uri(np.zeros((600, 300, 3), np.uint8))
    assert uri.startswith("data:image/webp;")
    assert max(_decode(uri).size) == 192


def test_heat_is_opaque_where_the_mass_is() -> None:
    mass = np.zeros((8, 8), np.float32)
    mass[2, 5] = 4.0
    alpha = np.asarray(_decode(heat_uri(mass)))[..., 3]
    assert alpha[2, 5] > 150
    assert alpha.sum() == alpha[2, 5]
    assert np.asarray(_decode(heat_uri(np.zeros((4, 4), np.float32))))[..., 3].sum() == 0


def test_atlas_cells_lie_in_rows() -> None:
    thumbnails = np.zeros((7, 32, 32, 3), np.uint8)
    for i in range(7):
        thumbnails[i] = 30 * i
    sheet = atlas(thumbnails)
    pixels = np.asarray(_decode(sheet.uri)).astype(int)
    for i in range(7):
        top, left = i // sheet.columns * sheet.side, i % sheet.columns * sheet.side
        assert abs(pixels[top + 16, left + 16].mean() - 30 * i) < 4
    assert atlas(np.zeros((3, 16, 20, 1), np.uint8)).side == 32


def test_atlas_gives_up_quality_to_stay_in_its_budget() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    assert len(atlas(noise, budget=20_000).uri) < len(atlas(noise, budget=10**9).uri)


def test_figures_fit_the_content_policy() -> None:
    curves = [Curve(f"c{i}", [0.0, 1.0], [2.0 + i, 1.0], departs=i == 0) for i in range(3)]
    drawings = [
        figures.loss_curves(curves),
        figures.loss_curves([Curve(f"c{i}", [0.0, 1.0], [1.0, 0.0], departs=False) for i in range(99)]),
        figures.reliability([(0.5, 0.4, 10), (0.9, 0.95, 100)]),
    ]
    for svg in drawings:
        root = ElementTree.fromstring(svg)
        assert not re.search(r"\sstyle=|<style|<metadata|\son\w+=", svg)
        ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        assert len(ids) == len(set(ids))
        targets = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert targets <= set(ids)
        assert "#00000" not in svg
        assert "mathdefault" not in svg
    assert drawings[0] == figures.loss_curves(curves)
    assert "stroke-s0" in drawings[0]


def test_bars_stay_inside_their_track() -> None:
    assert figures.bar(None, None, None) is None
    assert figures.bar(0.5, 1.5, 0.75, base=0.5) == (0, 200, 100)
    assert figures.bar(None, None, 0.2, base=0.5) == (0, 0, 0)
