"""Logging predictions from serving code: quick at the caller, bounded in memory, and never in the way.

::

    from promotion_gate.monitor import PredictionLog

    log = PredictionLog("logs/", model="traffic-signs", version=7)
    log.add("Stop", 0.97, image="s3://frames/123.jpg", embedding=vector)
    log.close()

In a torch loop, a whole batch at once::

    probability, label = model(images).softmax(1).max(1)
    log.add_batch(label, probability)  # with class_names=... given to PredictionLog, or as indices

In FastAPI::

    app = FastAPI()
    log = PredictionLog("logs/", model="traffic-signs", version=7)

    @app.post("/predict")
    async def predict(request: Request):
        name, confidence = classify(await request.body())
        log.add(name, confidence)
        return {"class": name}
"""

from __future__ import annotations

import atexit
import contextlib
import operator
import os
import re
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Self

from promotion_gate.core.errors import UsageError
from promotion_gate.core.places import expanded
from promotion_gate.monitor.log_format import MAX_IMAGE, MAX_NAME, MAX_WIDTH
from promotion_gate.monitor.log_writer import (
    WAKE_AT,
    Drops,
    Journal,
    Place,
    Queue,
    warm_up,
    write_until_closed,
)

_EMBEDDING_BYTES = 64 * 2**20
_JOURNAL_BYTES = 64 * 2**20


class PredictionLog:
    """Appends predictions to rotating files in ``folder``; several processes may share it.

    ``add`` puts a prediction into a queue. A thread writes the queue to a journal every second, and turns a
    full journal into Parquet. Nothing here raises or blocks once the object is made: what cannot be logged
    is counted in ``drops`` and told once, by the logger ``promotion_gate.monitor``. A process that is killed
    loses what was logged in its last second, and nothing else; one that forks goes on logging in both halves.
    A machine that loses power may also lose what its kernel had not yet written.

    Parameters
    ----------
    folder: where the files go; made if missing.
    model, version: what serves: the registered model's name, and its version (0 where it is not known).
    class_names: the model's classes in order, where predictions are logged by index; without them the index
        itself is logged, and stands for the place in the baseline's classes.
    max_pending: predictions that may wait for the writer; further ones are dropped. Embeddings that wait
        take at most 64 MiB.
    rotate_rows, rotate_seconds: when a journal becomes Parquet; one of 64 MiB does at once.

    Raises
    ------
    UsageError: the folder cannot be made or written, or a value makes no sense.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str,
        version: int = 0,
        class_names: Sequence[str] | None = None,
        max_pending: int = 65_536,
        rotate_rows: int = 1_000_000,
        rotate_seconds: float = 3600.0,
    ) -> None:
        if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**31:
            raise UsageError(
                f"not a version number: {version!r:.100}", "give the registered version, as in 7"
            )
        if max_pending < 1 or rotate_rows < 1 or not rotate_seconds > 0:
            raise UsageError("max_pending, rotate_rows and rotate_seconds must be above 0")
        place = expanded(folder).absolute()
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {place}: {error.strerror}") from None
        if not os.access(place, os.W_OK | os.X_OK):
            raise UsageError(f"cannot write to the folder {place}: no permission")
        prefix = re.sub(r"[^A-Za-z0-9._-]", "_", str(model))[:80].lstrip(".") or "model"
        names = None if class_names is None else tuple(map(str, class_names))
        files = Place(place, prefix, rotate_rows, _JOURNAL_BYTES, rotate_seconds)
        warm_up()
        self._max_pending = max_pending
        self._closed = False
        self._begin(Queue(str(model), version, names, files))
        _open_logs.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    @property
    def drops(self) -> Drops:
        """What did not get into the log, counted."""
        return self._queue.drops

    @property
    def written(self) -> int:
        """How many predictions this process has written."""
        return self._queue.written

    def add(
        self,
        predicted: str | int,
        confidence: float | None = None,
        *,
        image: str | None = None,
        embedding: Any = None,
        at: float | None = None,
    ) -> None:
        """Log one prediction.

        Parameters
        ----------
        predicted: the class's name, or its index.
        confidence: its probability, 0 to 1.
        image: a reference to the input (a path or URL), so that a drift report can show it.
        embedding: the input of the model's last linear layer, (d,); copied.
        at: seconds since the epoch; now unless given.
        """
        try:
            if type(predicted) is not str:
                predicted = _class(predicted)
            _require_short(predicted, image)
            if confidence is not None and type(confidence) is not float:
                confidence = float(_plain_array(confidence))
            if embedding is not None:
                embedding = _rows_of_numbers(embedding, 1)
            waiting = self._queue.waiting
            pending = len(waiting)
            if pending >= self._max_pending or self._closed or not self._fits(pending + 1, embedding):
                self._queue.drop("full", 1)
                return
            moment = time.time() if at is None else float(at)
            waiting.append((moment, predicted, confidence, image, embedding))
            if self._writer is None or pending == WAKE_AT:
                self._rouse()
        except Exception as error:
            self._refuse(1, error)

    def add_batch(
        self, predicted: Any, confidence: Any = None, *, images: Any = None, embeddings: Any = None
    ) -> None:
        """Log several predictions of one moment: sequences, arrays or tensors of equal length."""
        count = 1
        try:
            labels = [p if type(p) is str else _class(p) for p in _listed(predicted)]
            count = len(labels)
            if not count:
                return
            sure = [None] * count if confidence is None else _listed(confidence)
            sure = [value if value is None or type(value) is float else float(value) for value in sure]
            shown = [None] * count if images is None else _listed(images)
            for label, image in zip(labels, shown, strict=False):
                _require_short(label, image)
            vectors = [None] * count if embeddings is None else _rows_of_numbers(embeddings, 2)
            if {len(sure), len(shown), len(vectors)} != {count}:
                raise ValueError("predicted, confidence, images and embeddings differ in length")
            waiting = self._queue.waiting
            room = max(0, min(count, self._max_pending - len(waiting)))
            if self._closed or not self._fits(len(waiting) + room, vectors[0]):
                room = 0
            now = time.time()
            rows = zip(labels, sure, shown, vectors, strict=True)
            waiting.extend((now, *row) for row, _ in zip(rows, range(room), strict=False))
            if room < count:
                self._queue.drop("full", count - room)
            if self._writer is None or len(waiting) >= WAKE_AT:
                self._rouse()
        except Exception as error:
            self._refuse(count, error)

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything logged so far is in a file; False where it took longer than ``timeout``."""
        if self._writer is None or not self._writer.is_alive():
            return not self._queue.waiting
        done = threading.Event()
        self._queue.asked.append(done)
        self._queue.wake.set()
        return done.wait(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left and stop; later predictions are dropped and counted. May be called twice."""
        self._closed = True
        self._queue.stop.set()
        self._queue.wake.set()
        writer = self._writer
        if writer is not None and writer.is_alive():
            writer.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, queue: Queue) -> None:
        self._queue = queue
        self._journal = Journal(queue.place)
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()

    def _rouse(self) -> None:
        """Start the writer with the first prediction: a server that forks its workers has no thread yet."""
        if self._writer is None:
            with self._starting:
                if self._writer is None:
                    me = weakref.ref(self)
                    parts = (self._queue, self._journal, lambda: me() is not None)
                    writer = threading.Thread(
                        target=write_until_closed, args=parts, name="prediction-log", daemon=True
                    )
                    writer.start()
                    self._writer = writer
        if len(self._queue.waiting) >= WAKE_AT:
            self._queue.wake.set()

    def _fits(self, rows: int, vector: Any) -> bool:
        return vector is None or rows * int(vector.nbytes) <= _EMBEDDING_BYTES

    def _refuse(self, count: int, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._queue.drop("invalid", count, error)

    def _after_fork(self) -> None:
        """In the new process: what waits and the open journal are the parent's."""
        self._journal.forget()
        old = self._queue
        self._begin(Queue(old.model, old.version, old.names, old.place))


_open_logs: weakref.WeakSet[PredictionLog] = weakref.WeakSet()


def _require_short(predicted: str | int, image: Any) -> None:
    """Refuse at once what would be refused later: so many wait that long texts would fill the memory."""
    if type(predicted) is str and len(predicted) > MAX_NAME:
        raise ValueError("a class name is a short text")
    if image is not None and len(image) > MAX_IMAGE:
        raise ValueError("an image reference is a short text")


def _class(predicted: Any) -> str | int:
    if isinstance(predicted, str):
        return str(predicted)
    if isinstance(predicted, bool):
        raise TypeError("a class is a name or an index, not true or false")
    return operator.index(predicted)


def _plain_array(value: Any) -> Any:
    """What numpy can read, of a torch tensor too, wherever it lies."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def _rows_of_numbers(value: Any, dimensions: int) -> Any:
    import numpy as np

    rows = np.array(_plain_array(value), dtype=np.float32)
    if rows.ndim != dimensions or not 0 < rows.shape[-1] <= MAX_WIDTH:
        raise ValueError("an embedding is one row of numbers")
    return rows


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str | bytes):
        raise TypeError("add_batch takes a sequence for each column")
    value = _plain_array(value)
    return list(value.tolist() if hasattr(value, "tolist") else value)


def _close_at_exit(log: weakref.ref[PredictionLog]) -> None:
    still = log()
    if still is not None:
        still.close(timeout=5.0)


def _forked() -> None:
    for log in list(_open_logs):
        with contextlib.suppress(Exception):
            log._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
