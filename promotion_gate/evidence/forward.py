"""One pass of a whole data set through a model, kept on disk instead of in memory."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from promotion_gate.core.errors import InputError
from promotion_gate.data.interface import ImageDataset, Images, ImageShape
from promotion_gate.evidence.interface import Classifier, ForwardPass

BATCH_ROWS = 512
BATCH_PIXELS = BATCH_ROWS * 64 * 64


class MeasuredClassifier(Classifier, Protocol):
    """A classifier that knows the width of its embeddings before the first image."""

    @property
    def embedding_width(self) -> int: ...


def spool_pass(
    model: MeasuredClassifier,
    dataset: ImageDataset,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    batch_size: int | None = None,
) -> ForwardPass:
    """Stream ``dataset`` through ``model`` into ``logits.npy`` and ``embeddings.npy`` in ``folder``.

    ``progress`` is called with rows done and rows in all after every batch. The next batch is decoded while
    the model works on this one. The answer is memory-mapped, read-only.

    Raises
    ------
    ModelError, InputError: from the model and the data set; and InputError where the data set streams another
    number of images than it has labels, or none.
    """
    rows = len(dataset)
    if rows == 0:
        raise InputError(f"{dataset.uri} has no images", "point the policy at a data set with images")
    shape = model.shape
    step = batch_size or max(1, min(BATCH_ROWS, BATCH_PIXELS // (shape.height * shape.width)))
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {
        "logits": _new_array(folder / "logits.npy", (rows, model.classes)),
        "embeddings": _new_array(folder / "embeddings.npy", (rows, model.embedding_width)),
    }
    done = 0
    for images in _decoded_ahead(dataset, shape, step):
        if done + len(images) > rows:
            raise InputError(f"{dataset.uri} streams more images than it has labels ({rows:,})")
        answer = model.forward(images)
        outputs["logits"][done : done + len(images)] = answer.logits
        outputs["embeddings"][done : done + len(images)] = answer.embeddings
        done += len(images)
        if progress is not None:
            progress(done, rows)
    if done != rows:
        raise InputError(f"{dataset.uri} streamed {done:,} images for {rows:,} labels")
    for array in outputs.values():
        array.flush()
    return ForwardPass(
        logits=np.load(folder / "logits.npy", mmap_mode="r"),
        embeddings=np.load(folder / "embeddings.npy", mmap_mode="r"),
    )


def _new_array(path: Path, shape: tuple[int, int]) -> np.memmap[tuple[int, int], np.dtype[np.float32]]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _decoded_ahead(dataset: ImageDataset, shape: ImageShape, batch_size: int) -> Iterator[Images]:
    """Read batches in a thread of their own, at most one ahead."""
    ready: queue.Queue[Images | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: Images | BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def read() -> None:
        try:
            for images in dataset.stream(shape, batch_size):
                if not put(images):
                    return
            put(None)
        except BaseException as error:  # raised again in the thread that waits
            put(error)

    reader = threading.Thread(target=read, name="decode", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()
