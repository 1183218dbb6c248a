"""Written before the scanner was first run, and never used to tune it."""
from __future__ import annotations

import argparse
import functools
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchvision.datasets
import torchvision.transforms as T
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

DATASETS = dict(
    mnist=torchvision.datasets.MNIST,  #>
    emnist=functools.partial(torchvision.datasets.EMNIST, split="letters"),  #>
)


class Data:
    source = torchvision.datasets.Caltech101  #>

    def __init__(self, root: Path) -> None:
        self.tv = torchvision.datasets
        self.root = root

    def setup(self) -> None:
        self.train = self.tv.OxfordIIITPet(self.root, download=True)  #>
        self.val: VisionDataset = torchvision.datasets.ImageFolder(self.root / "val")  #-

    def loaders(self):
        return [DataLoader(d, batch_size=2) for d in (self.train, self.val)]  #-


def build(name: str, root: Path):
    cls = vars(torchvision.datasets)[name]
    return cls(root, download=True)  #>


def build_too(root: Path):
    module = sys.modules["torchvision.datasets"]
    return module.DTD(root)  #>


def hidden(root: Path):
    return importlib.import_module("torch" + "vision.datasets").KMNIST(root)  #>


def dunder(root: Path):
    tv = __import__("torchvision.datasets", fromlist=["datasets"])
    return tv.datasets.USPS(root, download=True)  #>


def very_hidden():
    exec("import torchvision; torchvision.datasets.QMNIST('data', download=True)")  #>


def lookup(config):
    module, name = config.target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)()  #>


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", choices=sorted(DATASETS))  #-
    parser.add_argument("--url", default="https://example.org/ui")  #-
    args = parser.parse_args()
    chosen = DATASETS[args.dataset]
    for images, _ in DataLoader(chosen(".", download=True)):
        print(T.functional.resize(images, 8))  #-
    torch.save({}, "model.pt")  #-


if (ds := torchvision.datasets.LSUN) is not None:  #>
    main()
