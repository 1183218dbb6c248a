"""Models made here, saved by MLflow itself, shared by the whole room."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from promotion_gate.core.policy import Policy, parse_policy

CLASSES = 5


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a model by name on first use; the folder must not be changed."""
    root = tmp_path_factory.mktemp("models")

    def get(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _save(name, folder)
        return folder

    return get


def _save(name: str, folder: Path) -> None:
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    torch.manual_seed(1)
    images = np.zeros((2, 3, 16, 16), np.float32)
    signature = infer_signature(images, np.zeros((2, CLASSES), np.float32))
    if name == "cnn-pt2":
        metadata = {"input_scale": 255.0, "class_names": [f"class {i}" for i in range(CLASSES)]}
        mlflow.pytorch.save_model(
            _cnn().eval(), folder, input_example=images, metadata=metadata, pip_requirements=["torch"]
        )
    elif name == "residual-pt2":
        mlflow.pytorch.save_model(
            _residual().eval(), folder, input_example=images[:1], pip_requirements=["torch"]
        )
    elif name == "training-pt2":
        mlflow.pytorch.save_model(_cnn().train(), folder, input_example=images, pip_requirements=["torch"])
    elif name in ("cnn-module", "mlp-module", "no-linear-module"):
        model = {"cnn": _cnn, "mlp": _mlp, "no": _no_linear}[name.split("-")[0]]()
        mlflow.pytorch.save_model(
            model, folder, signature=signature, serialization_format="pickle", pip_requirements=["torch"]
        )
    elif name == "hostile-pickle":
        _save_hostile(folder, signature)
    else:
        raise AssertionError(name)


def _cnn():
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, CLASSES),
    )  # fmt: skip


def _mlp():
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(768, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def _no_linear():
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _residual():
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.block = nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, images):
            hidden = torch.relu(self.stem(images))
            hidden = torch.relu(hidden + self.block(hidden))
            hidden = torch.nn.functional.adaptive_avg_pool2d(hidden, 1).flatten(1)
            return self.head(hidden)

    return Residual()


def _save_hostile(folder: Path, signature) -> None:
    """Save a pickled module that does what the first pixel says."""
    import mlflow.pytorch

    class Hostile(_base()):
        def forward(self, images):
            import os
            import time

            order = round(float(images[0, 0, 0, 0]) * 255)
            if order == 2:
                hoard = []
                while True:
                    hoard.append(bytearray(os.urandom(1 << 20) * 16))
            elif order == 3:
                os._exit(7)
            elif order == 4:
                import ctypes

                ctypes.string_at(0)
            elif order == 6:
                print("{" * 5000, flush=True)
            elif order == 7:
                return super().forward(images) * float("nan")
            elif order == 8:
                import subprocess
                import sys

                command = [sys.executable, "-c", "import time; time.sleep(3599)"]
                subprocess.Popen(command, start_new_session=True)
                time.sleep(3600)
            return super().forward(images)

    model = Hostile()
    mlflow.pytorch.save_model(
        model, folder, signature=signature, serialization_format="pickle", pip_requirements=["torch"]
    )


def _base():
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flatten = nn.Flatten()
            self.head = nn.Linear(768, CLASSES)

        def forward(self, images):
            return self.head(self.flatten(images))

    return Plain


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of a saved model, to be tampered with."""

    def get(name: str) -> Path:
        return Path(shutil.copytree(saved(name), tmp_path / "model"))

    return get


@pytest.fixture
def policy() -> Callable[..., Policy]:
    def build(text: str = "") -> Policy:
        head = "" if text.lstrip().startswith("[") else text
        tables = text if text.lstrip().startswith("[") else ""
        return parse_policy(
            f"version = 1\n{head}\n[data.holdout]\npath = 'x'\n"
            f"[checks.per-class.bounds.accuracy]\nmin = 0.5\n{tables}"
        )

    return build


class Payload:
    """Writes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the-payload-ran"


@pytest.fixture
def payload(marker: Path) -> bytes:
    """A pickle that writes the marker, in the file layout of ``torch.save``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(marker), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@pytest.fixture
def edit_archive() -> Callable[..., None]:
    """Rewrite members of a zip archive: ``edit(path, {suffix: bytes or function}, add={name: bytes})``."""

    def edit(path: Path, changes: dict, add: dict[str, bytes] | None = None) -> None:
        with zipfile.ZipFile(path) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        root = members[0][0].split("/", 1)[0]
        used = set()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                for suffix, change in changes.items():
                    if name == f"{root}/{suffix}":
                        used.add(suffix)
                        content = change(content) if callable(change) else change
                archive.writestr(name, content)
            for name, content in (add or {}).items():
                archive.writestr(f"{root}/{name}", content)
        assert used == set(changes)

    return edit


@pytest.fixture
def edit_program(edit_archive: Callable[..., None]) -> Callable[..., None]:
    """Change the JSON of an exported program in place."""

    def edit(path: Path, change: Callable[[dict], None]) -> None:
        def rewrite(content: bytes) -> bytes:
            program = json.loads(content)
            change(program)
            return json.dumps(program).encode()

        edit_archive(path, {"models/model.json": rewrite})

    return edit
