"""The one place where a model is deserialised: verified files in, a classifier in its sandbox out."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import ArtifactError, InputError, ModelError
from promotion_gate.core.policy import Policy
from promotion_gate.data.interface import Images, ImageShape
from promotion_gate.evidence.artifacts import ModelFormat, VerifiedArtifacts
from promotion_gate.evidence.interface import Float32, ForwardPass, Gradients, NoGradients
from promotion_gate.evidence.model_input import InputSpec, read_input
from promotion_gate.evidence.sandbox import PIPE_BYTES, Confinement, Worker, plain

MAX_CLASSES = 100_000
MAX_EMBEDDING_WIDTH = 1_000_000
MAX_REPLY_BYTES = 1 << 30
START_SECONDS = 120.0
REQUEST_SECONDS = 120.0
PIXELS_A_REQUEST = 128 * 32 * 32
MAX_ROWS_A_REQUEST = 512


class SandboxedClassifier:
    """A model that answers from its sandbox; close it, or use it in a ``with`` statement.

    Get one from :func:`open_model`. Calls from several threads are answered one at a time.

    Attributes
    ----------
    shape, classes, embedding_width: what goes in and comes out.
    embedding_layer: the layer whose input is the embedding.
    parameters: how many numbers the model learned.
    input: how an image is prepared.
    class_names: the model's own names in order of logits, or None where it carries none.
    format: the file format it was loaded from.
    sandbox: in words, how its code is confined.
    """

    def __init__(
        self, worker: Worker, spec: InputSpec, model_format: ModelFormat, facts: Mapping[str, Any]
    ) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self.input = spec
        self.format = model_format
        self.sandbox = worker.confinement.words
        self.classes = _size(facts, "classes", 2, MAX_CLASSES)
        self.embedding_width = _size(facts, "embedding_width", 1, MAX_EMBEDDING_WIDTH)
        self.parameters = _size(facts, "parameters", 0, 2**62)
        self.embedding_layer = plain(facts.get("embedding_layer"), 200)
        self.rows_a_request = _rows_a_request(spec.shape)

    @property
    def shape(self) -> ImageShape:
        return self.input.shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.input.class_names

    def forward(self, images: Images) -> ForwardPass:
        """Logits and embeddings of uint8 images (n, H, W, C) of the model's own ``shape``.

        Raises
        ------
        ModelError: the model crashed, hung, ran out of memory or answered something else than finite
        numbers of the right shape.
        InputError: the images have another shape.
        """
        shape = self.shape
        if images.dtype != np.uint8 or images.shape[1:] != (shape.height, shape.width, shape.channels):
            raise InputError(
                f"the model takes uint8 images of {shape.height} x {shape.width} x {shape.channels}, "
                f"and was given {images.dtype} of {' x '.join(map(str, images.shape[1:]))}"
            )
        logits = np.empty((len(images), self.classes), np.float32)
        embeddings = np.empty((len(images), self.embedding_width), np.float32)
        step = min(
            self.rows_a_request, max(1, MAX_REPLY_BYTES // (4 * (self.classes + self.embedding_width)))
        )
        parts = [slice(start, start + step) for start in range(0, len(images), step)]
        with self._lock:
            self._ask(images, parts, logits, embeddings)
        for what, array in (("logits", logits), ("embeddings", embeddings)):
            if not np.isfinite(array).all():
                kind = "NaN" if np.isnan(array).any() else "infinite"
                raise ModelError(f"the model answers with {kind} {what}", "train and log it again")
        return ForwardPass(logits, embeddings)

    def gradients(self, images: Float32, weights: Float32) -> Gradients:
        """Log-probabilities of float images, and the slopes of their weighted sum along every pixel.

        Parameters
        ----------
        images: float32 (n, H, W, C) of the model's own ``shape``, pixel values 0 to 255.
        weights: float32 (n, classes): what each image's log-probabilities count in the sum.

        Raises
        ------
        NoGradients: the model's answers cannot be differentiated; it goes on answering :meth:`forward`.
        ModelError, InputError: as :meth:`forward`.
        """
        shape = (self.shape.height, self.shape.width, self.shape.channels)
        if images.shape[1:] != shape or weights.shape != (len(images), self.classes):
            raise InputError(
                f"the model takes images of {' x '.join(map(str, shape))} and {self.classes} weights each,"
                f" and was given {' x '.join(map(str, images.shape[1:]))} and {weights.shape[-1]}"
            )
        logs = np.empty((len(images), self.classes), np.float32)
        slopes = np.empty((len(images), *shape), np.float32)
        step = min(self.rows_a_request, max(1, MAX_REPLY_BYTES // (4 * (self.classes + math.prod(shape)))))
        with self._lock:
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                self._ask_gradients(images[part], weights[part], logs[part], slopes[part])
        if not (np.isfinite(logs).all() and np.isfinite(slopes).all()):
            raise NoGradients("the model cannot be differentiated: some of its slopes are not finite")
        return Gradients(logs, slopes)

    def _ask_gradients(self, images: Float32, weights: Float32, logs: Float32, slopes: Float32) -> None:
        request = {"ask": "gradients", "rows": len(images), "classes": self.classes}
        payload = np.concatenate([images.ravel(), weights.ravel()]).astype(np.float32, copy=False)
        self._worker.send(request, _bytes(payload), seconds=REQUEST_SECONDS)
        header = self._worker.receive(seconds=REQUEST_SECONDS)
        if "refused" in header:
            raise NoGradients(f"the model cannot be differentiated: {plain(header['refused'])}")
        self._worker.receive_into(_bytes(logs), seconds=REQUEST_SECONDS)
        self._worker.receive_into(_bytes(slopes), seconds=REQUEST_SECONDS)

    def _ask(
        self,
        images: Images,
        parts: Sequence[slice],
        logits: NDArray[np.float32],
        embeddings: NDArray[np.float32],
    ) -> None:
        """Exchange requests for answers; the worker finds the next request waiting where it fits the pipe."""
        ahead = int(images[parts[0]].nbytes <= PIPE_BYTES // 2) if parts else 0
        sent = 0
        for done, part in enumerate(parts):
            while sent <= min(done + ahead, len(parts) - 1):
                pixels = np.ascontiguousarray(images[parts[sent]])
                self._worker.send({"rows": len(pixels)}, _bytes(pixels), seconds=REQUEST_SECONDS)
                sent += 1
            self._receive(logits[part], embeddings[part])

    def _receive(self, logits: NDArray[np.float32], embeddings: NDArray[np.float32]) -> None:
        header = self._worker.receive(seconds=REQUEST_SECONDS)
        for what, array in (("logits", logits), ("embeddings", embeddings)):
            if header.get(what) != list(array.shape):
                self.close()
                said = plain(header.get(what), 60)
                raise ModelError(f"the model changed the shape of its {what} to {said} between two calls")
        self._worker.receive_into(_bytes(logits), seconds=REQUEST_SECONDS)
        self._worker.receive_into(_bytes(embeddings), seconds=REQUEST_SECONDS)

    def close(self) -> None:
        """End the worker process."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_to_serve(artifacts: VerifiedArtifacts) -> Any:
    """Load a model into this very process, to serve with it: a ``torch.nn.Module`` in evaluation mode.

    For files that a signed record vouches for. What nobody vouches for goes through :func:`open_model`.

    Raises
    ------
    ArtifactError: the files are refused, or hold something else than a model.
    """
    from promotion_gate.evidence.worker import Refusal, read_module

    _refuse_violations(artifacts)
    if artifacts.model_format == "torch-pickle" and not artifacts.allows_pickle:
        raise ArtifactError("the model is a pickle, and its verdict does not allow one", "save it as pt2")
    file = artifacts.folder / artifacts.model_file
    try:
        module = read_module(artifacts.model_format, str(file), str(file.parent / "architecture.json"))
    except Refusal as error:
        raise ArtifactError(f"the model cannot be loaded: {error}") from None
    except Exception as error:  # torch's readers have errors of their own
        what = plain(f"{type(error).__name__}: {error}", 300)
        raise ArtifactError(f"the model cannot be loaded: {what}") from None
    return _without_modes(module) if artifacts.model_format == "pt2" else module.eval()


def _without_modes(program: Any) -> Any:
    """Let ``eval`` of an exported program answer: it was exported in that mode, and PyTorch's own raises."""
    import torch

    def train(mode: bool = True) -> Any:
        if mode:
            raise NotImplementedError("an exported program has no training mode")
        return program

    for part in program.modules():
        part.training = False
    program.train = train
    program.eval = lambda: program
    assert isinstance(program, torch.nn.Module)
    return program


def _refuse_violations(artifacts: VerifiedArtifacts) -> None:
    if artifacts.violations:
        more = len(artifacts.violations) - 3
        tail = f" (and {more} more)" if more > 0 else ""
        raise ArtifactError("the model's files are refused: " + "; ".join(artifacts.violations[:3]) + tail)


def open_model(
    artifacts: VerifiedArtifacts,
    policy: Policy,
    *,
    class_count: int | None,
    log: Callable[[str], None],
    confinement: Confinement | None = None,
) -> SandboxedClassifier:
    """Start a sandboxed worker, load the model in it and try it on one black image.

    ``class_count`` is how many classes the data has; ``log`` is told what was assumed and how the code is
    confined. ``confinement`` is the strongest that works unless given.

    Raises
    ------
    ArtifactError: verification found a violation; the first ones are named and nothing is loaded.
    InputError: the model's input is not known, or its number of classes is not that of the data.
    ModelError: it cannot be loaded, or fails on its first image, or passes a limit.
    """
    _refuse_violations(artifacts)
    if artifacts.model_format == "torch-pickle" and not policy.unsafe_allow_pickle:
        raise ArtifactError("the model is a pickle, and the policy does not allow one", "save it as pt2")
    spec = read_input(artifacts.manifest, policy.input)
    for assumption in spec.assumed:
        log(f"not declared by the model or the policy, so assumed: {assumption}")

    worker = Worker(artifacts.folder, policy.sandbox, confinement)
    try:
        inside = worker.confinement.inside(artifacts.folder)
        model_file = PurePosixPath(artifacts.model_file)
        shape = spec.shape
        worker.send(
            {
                **worker.limits,
                "format": artifacts.model_format,
                "path": f"{inside}/{model_file}",
                "architecture": f"{inside}/{model_file.parent / 'architecture.json'}",
                "shape": [shape.height, shape.width, shape.channels],
                "rows": _rows_a_request(shape),
                "layout": spec.layout,
                "dtype": spec.dtype,
                "scale": spec.scale,
                "mean": list(spec.mean),
                "std": list(spec.std),
                "embedding_layer": spec.embedding_layer,
            },
            seconds=START_SECONDS,
        )
        worker.receive(seconds=START_SECONDS)
        facts = worker.receive(seconds=START_SECONDS)
        model = SandboxedClassifier(worker, spec, artifacts.model_format, facts)
        if class_count is not None and model.classes != class_count:
            raise InputError(
                f"the model tells {model.classes} classes apart, and the data has {class_count}",
                "set data.class_names in the policy to the names in order of the model's logits",
            )
        if spec.class_names is not None and len(spec.class_names) != model.classes:
            raise InputError(
                f"the model carries {len(spec.class_names)} class names for {model.classes} logits",
                "log it again with the right class_names",
            )
    except BaseException:
        worker.close()
        raise
    if facts.get("follows") is not True:
        log(f"the answers do not follow from layer {model.embedding_layer!r}, which the policy names")
    if facts.get("takes_one") is not True:
        log("it takes no image alone: one image is asked about with copies of itself beside it")
    log(f"model loaded from {artifacts.model_format} under {model.sandbox}")
    return model


def _rows_a_request(shape: ImageShape) -> int:
    return max(1, min(MAX_ROWS_A_REQUEST, PIXELS_A_REQUEST // (shape.height * shape.width)))


def _size(facts: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = facts.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModelError(f"the model's {name.replace('_', ' ')} would be {plain(value, 40)}")
    return value


def _bytes(array: NDArray[Any]) -> memoryview:
    values: Any = array
    return memoryview(values).cast("B")
