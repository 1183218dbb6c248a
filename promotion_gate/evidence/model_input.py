"""What a model takes for input, read from ``MLmodel`` as data and overridden by the policy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import ModelInput
from promotion_gate.data.interface import ImageShape

Layout = Literal["NCHW", "NHWC"]

DTYPES = ("float32", "float64", "float16", "uint8")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an image goes in: ``(pixel / scale - mean) / std``, in ``layout``, as ``dtype``.

    ``mean`` and ``std`` hold one value or one a channel. ``assumed`` names what neither the model nor the
    policy says, with the value taken. ``class_names`` are the model's own, in order of its logits.
    """

    shape: ImageShape
    layout: Layout
    dtype: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embedding_layer: str | None = None
    class_names: tuple[str, ...] | None = None
    assumed: tuple[str, ...] = ()

    @property
    def preparation(self) -> str:
        """How pixel values become the model's, in words."""
        mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"(pixel / {self.scale:g} - {mean}) / {std}"

    def prepares_like(self, other: InputSpec) -> bool:
        """Whether the other model is given the same values for the same pixels."""
        channels = self.shape.channels

        def numbers(spec: InputSpec) -> list[float]:
            return [spec.scale, *_one_a_channel(spec.mean, channels), *_one_a_channel(spec.std, channels)]

        mine, others = numbers(self), numbers(other)
        return len(mine) == len(others) and all(map(partial(math.isclose, rel_tol=1e-6), mine, others))


def _one_a_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def read_input(manifest: Mapping[str, Any], override: ModelInput) -> InputSpec:
    """Work out a model's input.

    Layout and size come from the signature's one tensor, such as ``(-1, 3, 32, 32)``. What a signature cannot
    say is read from the ``metadata`` that was passed when the model was logged::

        mlflow.pytorch.log_model(..., metadata={
            "input_layout": "NCHW",              # or NHWC, where the shape leaves it open
            "input_scale": 255.0,                # pixels are divided by it first
            "input_mean": [0.485, 0.456, 0.406], # then this is taken off
            "input_std": [0.229, 0.224, 0.225],  # and this divided by
            "class_names": ["stop", "yield"],    # in order of the logits
        })

    The policy's ``[input]`` table wins over both. It alone names another embedding layer: a candidate that
    chose its own could show the checks a layer where its poison does not stand out.

    Raises
    ------
    InputError: something is missing or can be read two ways; the message names the policy key to set.
    """
    metadata = manifest.get("metadata") or {}
    dims, dtype = _signature(manifest)
    assumed: list[str] = []
    layout = override.layout or _one_of(metadata, "input_layout", ("NCHW", "NHWC"))
    if layout is None and dims is not None:
        layout = _layout(dims)
    shape = _shape(dims, layout, override)
    if layout is None:
        raise InputError("the model does not say its input layout", "set input.layout in the policy")

    scale = override.scale or _number(metadata, "input_scale")
    if scale is None:
        scale = 1.0 if dtype == "uint8" else 255.0
        assumed.append(f"pixels divided by {scale:g}")
    mean = _per_channel("mean", override.mean, metadata, shape.channels) or (0.0,)
    std = _per_channel("std", override.std, metadata, shape.channels) or (1.0,)
    if any(value <= 0 for value in std):
        raise InputError("the model's metadata key input_std is not positive", "set input.std in the policy")

    return InputSpec(
        shape=shape,
        layout="NCHW" if layout == "NCHW" else "NHWC",
        dtype=dtype,
        scale=scale,
        mean=mean,
        std=std,
        embedding_layer=override.embedding_layer,
        class_names=_names(metadata),
        assumed=tuple(assumed),
    )


def _signature(manifest: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, str]:
    """The shape without the batch dimension, unknown sizes as -1, and the dtype."""
    signature = manifest.get("signature") or {}
    text = signature.get("inputs")
    if text is None:
        return None, "float32"
    try:
        columns = json.loads(text)
        kinds = [column["type"] for column in columns]
        specs = [column.get("tensor-spec") for column in columns]
        if kinds != ["tensor"]:
            raise InputError(
                f"the model's signature has {len(kinds)} inputs of type {kinds[0]!r}, not one image tensor",
                "log the model with a tensor input_example",
            )
        dims = tuple(specs[0]["shape"])
        dtype = str(specs[0]["dtype"])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise InputError("the model's signature cannot be read", "log the model again") from None
    if dtype not in DTYPES:
        raise InputError(f"the model takes {dtype[:20]!r} values", f"it must be one of {', '.join(DTYPES)}")
    if len(dims) != 4 or not all(isinstance(size, int) and -1 <= size <= 4096 and size for size in dims[1:]):
        raise InputError(
            f"the model's signature has shape {str(dims)[:60]} instead of a batch of images",
            "log it with an input such as (-1, 3, 32, 32)",
        )
    return dims[1:], dtype


def _layout(dims: Sequence[int]) -> Layout:
    first, last = dims[0] in (1, 3), dims[2] in (1, 3)
    if first == last:
        raise InputError(
            f"the model's input shape {tuple(dims)} does not tell channels from height and width",
            "set input.layout in the policy",
        )
    return "NCHW" if first else "NHWC"


def _shape(dims: Sequence[int] | None, layout: str | None, override: ModelInput) -> ImageShape:
    named: dict[str, int] = {}
    if dims is not None:
        order = ("channels", "height", "width") if layout == "NCHW" else ("height", "width", "channels")
        named = dict(zip(order, dims, strict=True))
    sizes = {}
    for name in ("height", "width", "channels"):
        said, wanted = named.get(name, -1), getattr(override, name)
        if said != -1 and wanted is not None and wanted != said:
            raise InputError(
                f"the policy's input.{name} is {wanted}, and the model's signature says {said}",
                "take it out of the policy, or log the model with the right signature",
            )
        size = wanted or said
        if size == -1:
            raise InputError(f"the model does not say its input {name}", f"set input.{name} in the policy")
        sizes[name] = size
    if sizes["channels"] not in (1, 3):
        raise InputError(
            f"the model takes {sizes['channels']} channels, and images have 1 or 3",
            "set input.layout in the policy if the layout was read wrongly",
        )
    return ImageShape(**sizes)


def _wrong(key: str, wanted: str) -> InputError:
    return InputError(
        f"the model's metadata key {key} is not {wanted}", "log it again or override it in [input]"
    )


def _one_of(metadata: Mapping[str, Any], key: str, allowed: Sequence[str]) -> str | None:
    value = metadata.get(key)
    if value is not None and value not in allowed:
        raise _wrong(key, " or ".join(allowed))
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not _finite(value) or value <= 0:
        raise _wrong(key, "a positive number")
    return float(value)


def _per_channel(
    name: str, override: Sequence[float] | None, metadata: Mapping[str, Any], channels: int
) -> tuple[float, ...]:
    key = f"input_{name}"
    values = override if override is not None else metadata.get(key)
    if values is None:
        return ()
    if _finite(values):
        values = [values]
    if not isinstance(values, list) or not all(_finite(value) for value in values):
        raise _wrong(key, "a list of numbers")
    if len(values) not in (1, channels):
        where = f"the policy's input.{name}" if override is not None else f"the model's metadata key {key}"
        raise InputError(f"{where} has {len(values)} values for {channels} channels", "give one a channel")
    return tuple(float(value) for value in values)


def _names(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = metadata.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _wrong("class_names", "a list of names")
    return tuple(names)
