from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from promotion_gate.core.errors import InputError, ModelError
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import Candidate, ModelRef
from promotion_gate.data.interface import Images, ImageShape
from promotion_gate.evidence.bundle import GateEvidence
from promotion_gate.evidence.forward import spool_pass
from promotion_gate.evidence.interface import ForwardPass


class Means:
    """A model whose logits are the image's mean and its negative."""

    shape = ImageShape(4, 4, 1)
    classes = 2
    embedding_width = 3

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, images: Images) -> ForwardPass:
        self.calls += 1
        means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)
        return ForwardPass(np.stack([means, -means], 1), np.repeat(means[:, None], 3, 1))


class Numbered:
    """Images that hold their row number."""

    uri = "numbered"
    class_names: Sequence[str] = ("a", "b")

    def __init__(self, rows: int, streamed: int | None = None, error: Exception | None = None) -> None:
        self.labels = np.arange(rows, dtype=np.int64) % 2
        self.ids = [str(row) for row in range(rows)]
        self.streamed = rows if streamed is None else streamed
        self.error = error
        self.columns: dict[str, Sequence[str]] = {}
        self.shapes: list[ImageShape] = []

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        self.shapes.append(shape)
        for start in range(0, self.streamed, batch_size):
            rows = np.arange(start, min(start + batch_size, self.streamed), dtype=np.uint8)
            yield np.broadcast_to(rows[:, None, None, None], (len(rows), 4, 4, 1)).copy()
        if self.error is not None:
            raise self.error

    def read(self, rows: Sequence[int], shape: ImageShape) -> Images:
        raise AssertionError

    def sha256(self) -> str:
        return ""


def test_spools_in_row_order_to_read_only_files(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    answer = spool_pass(Means(), Numbered(100), tmp_path, lambda *now: told.append(now), batch_size=32)
    np.testing.assert_array_equal(answer.logits[:, 0], np.arange(100))
    np.testing.assert_array_equal(answer.embeddings[:, 2], np.arange(100))
    assert told == [(32, 100), (64, 100), (96, 100), (100, 100)]
    assert not answer.logits.flags.writeable
    assert {path.name for path in tmp_path.iterdir()} == {"logits.npy", "embeddings.npy"}


@pytest.mark.parametrize("streamed", [0, 5, 11])
def test_a_stream_of_another_length_is_refused(tmp_path: Path, streamed: int) -> None:
    with pytest.raises(InputError, match="labels"):
        spool_pass(Means(), Numbered(10, streamed), tmp_path, batch_size=4)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        spool_pass(Means(), Numbered(0), tmp_path)


def test_an_error_of_the_stream_arrives_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(InputError, match="corrupt"):
        spool_pass(Means(), Numbered(10, error=InputError("corrupt")), tmp_path, batch_size=4)
    assert threading.active_count() == before


def test_an_error_of_the_model_stops_the_stream(tmp_path: Path) -> None:
    class Broken(Means):
        def forward(self, images: Images) -> ForwardPass:
            raise ModelError("gone")

    before = threading.active_count()
    with pytest.raises(ModelError, match="gone"):
        spool_pass(Broken(), Numbered(100), tmp_path, batch_size=1)
    assert threading.active_count() == before


def evidence(policy: Policy, folder: Path, model: Means, champion: Means | None, training: Numbered | None):
    return GateEvidence(
        candidate=Candidate(ModelRef("signs", 2), None, ""),
        policy=policy,
        class_names=("a", "b"),
        holdout=Numbered(10),
        training=training,
        model=model,
        champion=champion,
        folder=folder,
    )


def test_a_pass_is_made_once_for_many_threads(tmp_path: Path, policy) -> None:
    model = Means()
    gathered = evidence(policy(), tmp_path, model, None, None)
    threads = [threading.Thread(target=lambda: gathered.holdout_pass) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gathered.holdout_pass is gathered.holdout_pass
    assert model.calls == 1


def test_what_is_not_there_is_none(tmp_path: Path, policy) -> None:
    gathered = evidence(policy(), tmp_path, Means(), None, None)
    assert gathered.training_pass is None
    assert gathered.champion_holdout_pass is None
    assert gathered.champion_training_pass is None
    assert gathered.anchor is None


def test_a_failed_pass_fails_again_without_another_try(tmp_path: Path, policy) -> None:
    class Broken(Means):
        def forward(self, images: Images) -> ForwardPass:
            self.calls += 1
            raise ModelError("gone")

    model = Broken()
    gathered = evidence(policy(), tmp_path, model, None, None)
    for _ in range(2):
        with pytest.raises(ModelError, match="gone"):
            _ = gathered.holdout_pass
    assert model.calls == 1


def test_the_anchor_has_one_distance_a_training_row(tmp_path: Path, policy) -> None:
    gathered = evidence(policy(), tmp_path, Means(), Means(), Numbered(20))
    assert gathered.anchor is not None
    assert gathered.anchor.shape == (20,)
    assert gathered.champion_training_pass is not gathered.training_pass
