import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from promotion_gate.checks.embedding_map import EmbeddingMap, EmbeddingMapOptions, _stratified
from promotion_gate.checks.interface import PreparedCheck
from promotion_gate.core.types import Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.detect.projection import Projection, ProjectionProcess, project_apart
from promotion_gate.evidence.interface import ForwardPass

CLASSES = ["a", "b", "c"]


def _dataset(rows, seed, name, size=8):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    images = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    dataset = InMemoryDataset(images, labels, CLASSES, ids=[f"{name}-{i}" for i in range(rows)])
    embeddings = rng.normal(size=(rows, 6)).astype(np.float32) + 8 * np.eye(3, 6, dtype=np.float32)[labels]
    return dataset, ForwardPass(np.zeros((rows, 3), np.float32), embeddings)


def _evidence(holdout=90, training=300, size=8):
    holdout_set, holdout_pass = _dataset(holdout, 1, "holdout", size)
    evidence = SimpleNamespace(
        holdout=holdout_set,
        holdout_pass=holdout_pass,
        training=None,
        training_pass=None,
        anchor=None,
        model=SimpleNamespace(shape=ImageShape(size, size, 3)),
        seed=0,
    )
    if training:
        evidence.training, evidence.training_pass = _dataset(training, 2, "training", size)
        evidence.anchor = np.random.default_rng(3).random(training).astype(np.float32)
    return evidence


def _first_two(embeddings, seed, neighbours, *, seconds):
    return Projection(embeddings[:, :2], 0.9)


def _examine(evidence, **options):
    return EmbeddingMap(EmbeddingMapOptions(**options), _first_two).examine(evidence, {})


def test_every_suspect_is_on_the_map_and_points_are_what_they_say():
    evidence = _evidence()
    finding = _examine(evidence, points=100, suspects=30)
    assert finding.status is Status.MEASURED
    assert finding.metrics == {"points": 100.0, "trustworthiness": 0.9}
    (exhibit,) = finding.exhibits
    arrays = exhibit.arrays
    assert {key: len(value) for key, value in arrays.items()} == dict.fromkeys(arrays, 100)
    suspects = {str(i) for i, role in zip(arrays["ids"], arrays["role"], strict=True) if role == 2}
    head = np.argsort(-evidence.anchor)[:30]
    assert suspects == {f"training-{row}" for row in head}
    assert len(set(arrays["ids"].tolist())) == 100
    for place, name in enumerate(arrays["ids"].tolist()):
        kind, row = name.split("-")
        source, answers = {
            "holdout": (evidence.holdout, evidence.holdout_pass),
            "training": (evidence.training, evidence.training_pass),
        }[kind]
        row = int(row)
        assert (kind == "holdout") == (arrays["role"][place] == 0)
        assert arrays["label"][place] == source.labels[row]
        assert np.array_equal(arrays["xy"][place], answers.embeddings[row, :2])
        assert np.array_equal(arrays["images"][place], source.read([row], ImageShape(8, 8, 3))[0])


def test_without_training_data_the_holdout_alone_is_shown():
    finding = _examine(_evidence(training=0), points=60)
    assert finding.metrics["points"] == 60
    assert set(finding.exhibits[0].arrays["role"].tolist()) == {0}
    assert "training" not in finding.summary


def test_small_sets_are_shown_whole():
    finding = _examine(_evidence(holdout=30, training=60))
    assert finding.metrics["points"] == 90


def test_room_that_one_set_leaves_goes_to_the_other():
    roles = np.bincount(_examine(_evidence(holdout=9), points=100, suspects=10).exhibits[0].arrays["role"])
    assert roles.tolist() == [9, 81, 10]


def test_a_row_whose_anchor_is_not_a_number_is_a_suspect():
    evidence = _evidence()
    evidence.anchor[17] = np.nan
    arrays = _examine(evidence, points=100, suspects=5).exhibits[0].arrays
    assert "training-17" in arrays["ids"][arrays["role"] == 2].tolist()


@pytest.mark.parametrize(("size", "wanted"), [(8, 8), (32, 32), (64, 32)])
def test_thumbnails_are_at_most_32_pixels(size, wanted):
    images = _examine(_evidence(30, 30, size)).exhibits[0].arrays["images"]
    assert images.shape == (60, wanted, wanted, 3)
    assert images.dtype == np.uint8


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(0, 90), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_stratified_sample_holds_every_class_there_is_room_for(labels, count, seed):
    labels = np.array(labels)
    chosen = _stratified(labels, count, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(labels))
    present = len(set(labels.tolist()))
    assert len(set(labels[chosen].tolist())) == min(present, len(chosen))


@pytest.mark.parametrize("wrong", [{"points": 5001}, {"suspects": -1}, {"neighbours": 1}, {"pionts": 9}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        EmbeddingMapOptions(**wrong)


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(90, 60)) + 12 * np.eye(3, 60)[np.arange(90) % 3]).astype(np.float32)


def test_two_processes_draw_the_same_map_with_the_classes_apart(clouds):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda seed: project_apart(clouds, seed, neighbours=10), (7, 7))
    assert np.array_equal(one.xy, two.xy)
    assert one.trustworthiness == two.trustworthiness > 0.6
    assert one.xy.dtype == np.float32
    distances = np.linalg.norm(one.xy[:, None] - one.xy[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) % 3 == np.arange(90) % 3).all()


@pytest.mark.parametrize("embeddings", [np.ones((20, 4)), np.ones((1, 4)), np.arange(4.0)[:, None]])
def test_too_few_or_all_equal_points_still_have_a_place(embeddings):
    projection = project_apart(embeddings.astype(np.float32), 0)
    assert projection.xy.shape == (len(embeddings), 2)
    assert np.isfinite(projection.xy).all()
    assert np.isnan(projection.trustworthiness)


def test_failure_in_the_other_process_is_one_line():
    with pytest.raises(RuntimeError, match="failed with exit code 1: "):
        project_apart(np.full((40, 4), np.nan, np.float32), 0)


def test_a_map_that_takes_too_long_is_given_up(clouds):
    with pytest.raises(RuntimeError, match=r"longer than 0\.01 s"):
        project_apart(clouds, 0, seconds=0.01)


def test_the_check_does_not_import_umap_itself():
    code = "import promotion_gate.checks.embedding_map, sys; print({'umap', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "set()"


def test_a_map_prepared_beforehand_is_the_same_map():
    evidence = _evidence(holdout=30, training=60)
    check = EmbeddingMap()
    assert isinstance(check, PreparedCheck)
    with check.prepared():
        (early,) = check.examine(evidence, {}).exhibits
    (late,) = check.examine(evidence, {}).exhibits
    assert np.array_equal(early.arrays["xy"], late.arrays["xy"])


def test_a_prepared_process_that_nobody_needs_ends_at_once():
    with ProjectionProcess(warm=True) as process:
        running = process._process
        assert running.poll() is None
    assert running.returncode is not None
