"""Planted loaders and look-alikes: recall and precision, printed, each with a floor under what was measured.

`#>` marks a line on which data enters, `#v` the line before one that can hold no mark, `#-` a look-alike.
What lies in `heldout` was written before the scanner was first run and never used to tune it.
"""

import json
from pathlib import Path

import pytest

from promotion_gate.provenance.scan.entry import Entry

CORPUS = Path(__file__).parent / "corpus"
FLOORS = {"tuning": (0.98, 0.98), "heldout": (0.91, 0.97)}


def marked(lines, mark):
    return {number for number, line in enumerate(lines, 1) if mark in line and not line.startswith('"""')}


def measured(part, entries_of):
    found, planted, look_alikes = set(), set(), set()
    for path in sorted((CORPUS / part).iterdir()):
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        planted |= {(path.name, n) for n in marked(lines, "#>")}
        planted |= {(path.name, n + 1) for n, line in enumerate(lines, 1) if line.strip() == "#v"}
        look_alikes |= {(path.name, n) for n in marked(lines, "#-")}
        found |= {(path.name, e.line) for e in entries_of(text, path.name) if isinstance(e, Entry)}
    return found, planted, look_alikes


@pytest.mark.parametrize("part", FLOORS)
def test_recall_and_precision(part, entries_of):
    found, planted, look_alikes = measured(part, entries_of)
    recall = len(found & planted) / len(planted)
    precision = len(found & planted) / len(found)
    print(
        f"\n{part}: recall {recall:.1%} ({len(found & planted)} of {len(planted)}), precision {precision:.1%}"
        f" ({len(found & planted)} of {len(found)}), look-alikes taken for loaders"
        f" {len(found & look_alikes)} of {len(look_alikes)}"
    )
    for name, line in sorted(planted - found):
        print(f"  not found: {part}/{name}:{line}")
    least_recall, least_precision = FLOORS[part]
    assert recall >= least_recall
    assert precision >= least_precision


def test_the_corpus_is_large_enough(entries_of):
    both = [measured(part, entries_of) for part in FLOORS]
    assert sum(len(planted) for _, planted, _ in both) >= 120
    assert sum(len(look_alikes) for *_, look_alikes in both) >= 80


def test_every_family_of_the_data_file_that_has_a_planted_loader_is_found(entries_of, sources):
    families = {
        entry.family
        for part in FLOORS
        for path in (CORPUS / part).iterdir()
        for entry in entries_of(path.read_text(encoding="utf-8"), path.name)
        if isinstance(entry, Entry)
    }
    named = {
        "torchvision",
        "torchaudio",
        "torchtext",
        "keras",
        "tensorflow",
        "tensorflow_datasets",
        "datasets",
        "huggingface_hub",
        "kagglehub",
        "sklearn",
        "openml",
        "nltk",
        "seaborn",
        "torch.hub",
        "medmnist",
        "pooch",
        "gdown",
        "wget",
        "urllib",
        "requests",
        "httpx",
        "aiohttp",
        "fsspec",
        "smart_open",
        "boto3",
        "gcsfs",
        "azure",
        "minio",
        "webdataset",
        "streaming",
        "pandas",
        "polars",
        "numpy",
        "curl",
        "aria2c",
        "rclone",
        "kaggle",
        "git-lfs",
        "dvc",
        "azcopy",
    }
    assert named - families == set()
    assert {"aws s3", "gsutil"} <= families


def test_the_marks_in_the_notebook_are_on_the_lines_of_the_file(entries_of):
    path = CORPUS / "tuning" / "explore.ipynb"
    text = path.read_text(encoding="utf-8")
    assert json.loads(text)["nbformat"] == 4
    cells = [e.context for e in entries_of(text, path.name) if e.loader == "torchvision.datasets.CIFAR10"]
    assert cells == ["cell 3, line 1"]
