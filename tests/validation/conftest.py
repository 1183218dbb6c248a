"""Folders of small images that are easily told apart."""

import io

import numpy as np
import pytest
from PIL import Image

from promotion_gate.core.policy import DataSource
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.validation.survey import open_data, survey


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def scene(seed, side=32):
    """A smooth picture of its own for every seed."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


class Folder:
    """An ImageFolder that is being filled."""

    def __init__(self, path):
        self.path = path

    def add(self, name, content):
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else encoded(content))
        return self

    def fill(self, label, seeds):
        for seed in seeds:
            self.add(f"{label}/{seed}.png", scene(seed))
        return self

    def survey(self, **options):
        return survey(open_data(DataSource(path=str(self.path))), **options)


@pytest.fixture
def folder(tmp_path):
    """Ten different images of each of ``stop`` and ``yield``, under ``signs``."""
    made = Folder(tmp_path / "signs")
    return made.fill("stop", range(10)).fill("yield", range(100, 110))


@pytest.fixture
def new_folder(tmp_path):
    return lambda name: Folder(tmp_path / name)


@pytest.fixture
def picture():
    return scene


@pytest.fixture
def encode():
    return encoded


@pytest.fixture
def in_memory():
    """Survey images that lie in memory."""

    def made(images, labels, names=("stop", "yield"), looks=False, **columns):
        return survey(InMemoryDataset(images, labels, names, columns=columns), looks=looks, jobs=1)

    return made
