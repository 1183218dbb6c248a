from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import ModelInput
from promotion_gate.data.interface import ImageShape
from promotion_gate.evidence.model_input import read_input


def manifest(shape: object = (-1, 3, 32, 24), dtype: str = "float32", **metadata: object) -> dict:
    spec = [{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}]
    return {"signature": {"inputs": json.dumps(spec)}, "metadata": metadata}


def test_reads_the_signature() -> None:
    spec = read_input(manifest(), ModelInput())
    assert (spec.shape, spec.layout, spec.dtype) == (ImageShape(32, 24, 3), "NCHW", "float32")
    spec = read_input(manifest((-1, 32, 24, 1), "float64"), ModelInput())
    assert (spec.shape, spec.layout, spec.dtype) == (ImageShape(32, 24, 1), "NHWC", "float64")


def test_says_what_it_had_to_assume() -> None:
    assert read_input(manifest(), ModelInput()).assumed == ("pixels divided by 255",)
    spec = read_input(manifest(input_scale=1), ModelInput())
    assert (spec.scale, spec.assumed) == (1.0, ())
    assert read_input(manifest(dtype="uint8"), ModelInput()).scale == 1.0


def test_the_policy_wins_over_the_metadata() -> None:
    model = manifest(input_scale=255.0, input_mean=[0.5, 0.5, 0.5], input_std=0.2)
    spec = read_input(model, ModelInput())
    assert (spec.scale, spec.mean, spec.std, spec.embedding_layer) == (255.0, (0.5, 0.5, 0.5), (0.2,), None)
    spec = read_input(model, ModelInput(scale=2.0, mean=[0.1], std=[1, 2, 3], embedding_layer="b"))
    assert (spec.scale, spec.mean, spec.std, spec.embedding_layer) == (2.0, (0.1,), (1.0, 2.0, 3.0), "b")


def test_a_preparation_is_told_in_words_and_compared_by_channel() -> None:
    one = read_input(manifest(input_scale=255, input_mean=0.5, input_std=[0.25]), ModelInput())
    assert one.preparation == "(pixel / 255 - 0.5) / 0.25"
    same = read_input(manifest(input_scale=255.0, input_mean=[0.5] * 3, input_std=[0.25] * 3), ModelInput())
    assert same.preparation == "(pixel / 255 - 0.5 0.5 0.5) / 0.25 0.25 0.25"
    assert one.prepares_like(same)
    assert same.prepares_like(one)
    for other in (
        manifest(input_scale=1, input_mean=0.5, input_std=0.25),
        manifest(input_mean=[0.5, 0.5, 0.4], input_std=0.25),
        manifest(input_mean=0.5),
    ):
        assert not one.prepares_like(read_input(other, ModelInput()))
    ours = ModelInput(scale=2, mean=[0], std=[1])
    assert read_input(manifest(input_scale=3), ours).prepares_like(read_input(manifest(input_mean=9), ours))


def test_class_names_come_along() -> None:
    assert read_input(manifest(class_names=["a", "b"]), ModelInput()).class_names == ("a", "b")
    assert read_input(manifest(), ModelInput()).class_names is None


@pytest.mark.parametrize(
    ("model", "override", "words"),
    [
        ({}, {}, "input.height"),
        ({}, {"height": 1, "width": 1, "channels": 3}, "input.layout"),
        (manifest((-1, 3, 32, 3)), {}, "input.layout"),
        (manifest((-1, 5, 32, 32)), {}, "input.layout"),
        (manifest((-1, 3, -1, 32)), {}, "input.height"),
        (manifest(), {"height": 64}, "input.height is 64, and the model's signature says 32"),
        (manifest((-1, 768)), {}, "instead of a batch of images"),
        (manifest(dtype="object"), {}, "float32"),
        (manifest(input_mean=[1, 2]), {}, "2 values for 3 channels"),
        (manifest(), {"std": [1, 2]}, "input.std has 2 values"),
        (manifest(input_std=[0, 1, 1]), {}, "input_std is not positive"),
        (manifest(input_scale=float("nan")), {}, "input_scale is not a positive number"),
        (manifest(input_layout="NCWH"), {}, "input_layout is not NCHW or NHWC"),
        (manifest(class_names=[1]), {}, "class_names is not a list of names"),
        ({"signature": {"inputs": "nonsense"}}, {}, "signature cannot be read"),
        ({"signature": {"inputs": '[{"type": "double", "name": "x"}]'}}, {}, "not one image tensor"),
    ],
)
def test_what_is_open_is_one_line_that_names_the_key(model: dict, override: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_input(model, ModelInput(**override))


def test_an_open_layout_and_open_sizes_are_filled_by_the_policy() -> None:
    spec = read_input(manifest((-1, 3, 32, 3)), ModelInput(layout="NHWC"))
    assert spec.shape == ImageShape(3, 32, 3)
    spec = read_input(manifest((-1, 3, -1, -1)), ModelInput(height=8, width=9))
    assert spec.shape == ImageShape(8, 9, 3)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_signature_or_metadata_breaks_the_reader(value: object) -> None:
    keys = ("input_layout", "input_scale", "input_mean", "input_std", "class_names", "embedding_layer")
    for model in (
        manifest(value),
        {"signature": {"inputs": json.dumps(value)}},
        *(manifest(**{k: value}) for k in keys),
    ):
        with contextlib.suppress(InputError):
            assert read_input(model, ModelInput()).shape == ImageShape(32, 24, 3)
