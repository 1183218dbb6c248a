"""Small data sets in every format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promotion_gate.core.policy import DataSource
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.open import open_dataset


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def encode():
    return png


@pytest.fixture
def shape():
    return ImageShape(8, 8, 3)


@pytest.fixture
def images():
    """Ten 8x8 colour images that all differ."""
    return np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def open_at(tmp_path):
    """Open ``path`` as a policy in ``tmp_path`` would; keywords go to the data source."""

    def open_(path: str | Path, class_names=None, **source):
        return open_dataset(DataSource(path=str(path), **source), folder=tmp_path, class_names=class_names)

    return open_


@pytest.fixture
def image_folder(tmp_path, images):
    """Five images of each of the classes ``stop`` and ``yield``, in a folder ``signs``."""
    for i, image in enumerate(images):
        path = tmp_path / "signs" / ("stop", "yield")[i // 5] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return tmp_path / "signs"
