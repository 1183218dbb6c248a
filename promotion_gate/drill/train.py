"""Trains a small image classifier and registers it with MLflow: ``python -m promotion_gate.drill.train``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from promotion_gate.core.errors import GateError, InputError, RegistryError, UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.core.types import ModelRef
from promotion_gate.data.interface import ImageDataset, ImageShape
from promotion_gate.data.open import open_dataset
from promotion_gate.drill.recorder import PerClassLoss

SCALE = 255.0
MEAN = (0.4, 0.38, 0.38)
STD = (0.25, 0.25, 0.25)
LEARNING_RATE = 4e-3
"""The peak of the schedule when training from scratch."""


class ClassLosses(Protocol):
    """What records the loss of every class; see :class:`promotion_gate.drill.recorder.PerClassLoss`."""

    def update(self, losses: NDArray[np.float32], labels: NDArray[np.int64]) -> None: ...

    def log(self, epoch: int) -> None: ...


def small_cnn(classes: int, size: int = 32) -> nn.Sequential:
    """A convolutional network from plain torch.nn modules: 6 million multiply-adds on a 32x32 RGB image.

    ``size`` is height and width, a multiple of 8 from 16 up.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *block(3, 24),
        *block(24, 48),
        *block(48, 96),
        nn.Flatten(),
        nn.Linear(96 * (size // 8) ** 2, 96),
        nn.ReLU(),
        nn.Linear(96, classes),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ``stride`` 2 halves height and width.

    He et al., "Deep residual learning for image recognition", 2016 (arXiv:1512.03385).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.residual(images) + self.shortcut(images))  # type: ignore[no-any-return]


def small_resnet(classes: int, size: int = 32) -> nn.Sequential:
    """A residual network of three blocks: 10 million multiply-adds on a 32x32 RGB image; any ``size``."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        BasicBlock(24, 32),
        BasicBlock(32, 64, stride=2),
        BasicBlock(64, 96, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


Architecture = Literal["small-cnn", "resnet"]
ARCHITECTURES: Mapping[Architecture, Callable[[int, int], nn.Sequential]] = {
    "small-cnn": small_cnn,
    "resnet": small_resnet,
}


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, H, W, 3) as the network takes it: float32 (n, 3, H, W), ``(pixel / 255 - mean) / std``."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / SCALE
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def train(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    *,
    seed: int,
    epochs: int = 8,
    batch_size: int = 64,
    learning_rate: float = LEARNING_RATE,
    threads: int = 1,
    architecture: Architecture = "small-cnn",
    start: nn.Module | None = None,
    losses: ClassLosses | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> nn.Sequential:
    """Train one of :data:`ARCHITECTURES` with AdamW and a one-cycle learning rate.

    The same inputs, seed and ``threads`` give the same weights on one machine.

    Parameters
    ----------
    images: uint8 (n, size, size, 3); a memory map will do.
    labels: class index of each image, (n,).
    threads: more than one is faster on idle cores alone; on busy ones the threads wait for each other.
    start: fine-tune a copy of this model of the same architecture instead of starting from scratch.
    losses: is given every batch's losses and logged after every epoch.
    """
    with _reproducible(seed, threads):
        model = ARCHITECTURES[architecture](classes, images.shape[1])
        if start is not None:
            model.load_state_dict(start.state_dict())
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps = -(-len(images) // batch_size)
        optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, epochs * steps)
        targets = torch.from_numpy(labels)
        for epoch in range(epochs):
            total = 0.0
            order = torch.randperm(len(images)).numpy()
            for at in range(0, len(images), batch_size):
                rows = order[at : at + batch_size]
                batch = _shifted(normalised(images[rows]))
                batch = batch.contiguous(memory_format=torch.channels_last)
                each = nn.functional.cross_entropy(
                    model(batch), targets[torch.from_numpy(rows)], reduction="none"
                )
                optimiser.zero_grad()
                each.mean().backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                total += float(each.detach().sum())
                if losses is not None:
                    losses.update(each.detach().numpy(), labels[rows])
            if losses is not None:
                losses.log(epoch)
            progress(f"epoch {epoch + 1} of {epochs}, loss {total / len(images):.3f}")
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def _shifted(batch: Tensor, reach: int = 2) -> Tensor:
    """The batch moved by up to ``reach`` pixels, the same way for all, with edges repeated."""
    height, width = batch.shape[2:]
    down, right = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    padded = nn.functional.pad(batch, (reach,) * 4, mode="replicate")
    return padded[:, :, down : down + height, right : right + width]


def predict(model: nn.Module, images: NDArray[np.uint8], batch_size: int = 512) -> NDArray[np.int64]:
    """The model's class for each image."""
    model.eval()
    with torch.inference_mode():
        parts = [
            model(normalised(images[start : start + batch_size])).argmax(1)
            for start in range(0, len(images), batch_size)
        ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.int64)


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Fixed seed, fixed thread count and deterministic kernels, put back afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


@dataclass(frozen=True, slots=True)
class Trained:
    """A registered model, with the accuracy on the holdout set where one was given."""

    ref: ModelRef
    run_id: str
    model: nn.Sequential
    accuracy: float | None


def train_and_register(
    training: ImageDataset,
    name: str,
    *,
    holdout: ImageDataset | None = None,
    seed: int = 0,
    epochs: int = 8,
    size: int = 32,
    threads: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train on ``training`` in an MLflow run and register the model as a new version of ``name``.

    The run carries the parameters, the loss of each class and epoch, and the data sets with the first 36
    hex digits of their SHA-256. The model is saved as pt2, taking any number of images.

    Raises
    ------
    InputError: the data cannot be read, or is too small to train on.
    RegistryError: MLflow cannot be reached or refuses.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    classes = tuple(training.class_names)
    if len(classes) < 2 or len(training) < 2:
        raise InputError(f"{training.uri} has {len(training)} images of {len(classes)} classes", "add some")
    if size < 16 or size % 8:
        raise UsageError(f"the image size {size} is not a multiple of 8 from 16 up")
    parameters = {"seed": seed, "epochs": epochs, "size": size, "threads": threads, "classes": len(classes)}
    try:
        with mlflow.start_run() as run, decoded(training, size) as images:
            mlflow.log_params(parameters)
            log_dataset(training, images, "training")
            model = train(
                images,
                training.labels,
                len(classes),
                seed=seed,
                epochs=epochs,
                threads=threads,
                losses=PerClassLoss(classes),
                progress=progress,
            )
            accuracy = None if holdout is None else _log_accuracy(model, holdout, classes, size)
            version = int(log_model(model, images[:2], classes, name).registered_model_version)
    except MlflowException as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RegistryError(f"MLflow refused the training run: {first}") from None
    return Trained(ModelRef(name, version), run.info.run_id, model, accuracy)


def log_model(
    model: nn.Module, images: NDArray[np.uint8], classes: Sequence[str], name: str | None = None
) -> Any:
    """Log the model as pt2 to the active MLflow run, and register it as a version of ``name`` if given.

    ``images`` are two or more, uint8 (n, size, size, 3). Returns MLflow's ``ModelInfo``.
    """
    import mlflow.pytorch

    return mlflow.pytorch.log_model(
        model,
        name="model",
        # Two images, since the export would fix the batch size at one.
        input_example=normalised(np.array(images)).numpy(),
        registered_model_name=name,
        # Named here, since MLflow would load the model once more to find out.
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
        metadata={
            "input_layout": "NCHW",
            "input_scale": SCALE,
            "input_mean": list(MEAN),
            "input_std": list(STD),
            "class_names": list(classes),
        },
    )


def _log_accuracy(model: nn.Sequential, holdout: ImageDataset, classes: Sequence[str], size: int) -> float:
    import mlflow

    if tuple(holdout.class_names) != tuple(classes):
        raise InputError(f"{holdout.uri} has other classes than the training set", "give both the same names")
    with decoded(holdout, size) as images:
        log_dataset(holdout, images, "testing")
        accuracy = float((predict(model, images) == holdout.labels).mean())
    mlflow.log_metric("holdout_accuracy", accuracy)
    return accuracy


def log_dataset(dataset: ImageDataset, images: NDArray[np.uint8], context: str) -> None:
    """Declare a data set to the active MLflow run, with the first 36 hex digits of its SHA-256."""
    import mlflow

    digest = dataset.sha256()[:36]
    with warnings.catch_warnings():
        # MLflow has two names for the one source class that reads local files.
        warnings.filterwarnings("ignore", "The specified dataset source can be interpreted in multiple ways")
        described = mlflow.data.from_numpy(
            images, source=dataset.uri, targets=dataset.labels, name=context, digest=digest
        )
    mlflow.log_input(described, context=context)


@contextmanager
def decoded(dataset: ImageDataset, size: int) -> Iterator[NDArray[np.uint8]]:
    """Every image, decoded once into a file, so that epochs neither decode again nor fill the memory."""
    shape = (len(dataset), size, size, 3)
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.memmap(Path(folder) / "pixels", dtype=np.uint8, mode="w+", shape=shape)
        at = 0
        for batch in dataset.stream(ImageShape(size, size, 3)):
            pixels[at : at + len(batch)] = batch
            at += len(batch)
        yield pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and register one model from the command line; the exit code is the gate's."""
    asked = _parser().parse_args(arguments)
    try:
        training = _open(asked.data, None)
        trained = train_and_register(
            training,
            asked.name,
            holdout=_open(asked.holdout, training.class_names) if asked.holdout else None,
            seed=asked.seed,
            epochs=asked.epochs,
            size=asked.size,
            threads=asked.threads,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except GateError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    if trained.accuracy is not None:
        print(f"holdout accuracy {trained.accuracy:.4f}")
    print(trained.ref.uri)
    return 0


def _open(path: str, class_names: Sequence[str] | None) -> ImageDataset:
    return open_dataset(DataSource(path=path), folder=Path.cwd(), class_names=class_names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m promotion_gate.drill.train",
        description="Train a small image classifier and register it with MLflow.",
    )
    parser.add_argument(
        "--data", required=True, help="training set: folder, CSV, Parquet or npz, path or URL"
    )
    parser.add_argument("--name", required=True, help="registered model to add a version to")
    parser.add_argument("--holdout", default="", help="labelled images to measure accuracy on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="height and width, a multiple of 8 from 16 up")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
