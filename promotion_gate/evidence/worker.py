"""The program inside the sandbox: loads one model and answers forward passes. Run by path, never imported.

It reads requests on standard input and writes replies on what was standard output: four bytes of length, a
JSON header, then raw array bytes. Nothing is ever unpickled from the other side, on either side.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import re
import resource
import signal
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 64 << 20
MAX_OPEN_FILES = 256
MAX_LAYERS_LISTED = 200
ORDER_TOLERANCE = 1e-3
"""How far below the highest output the answered class may lie, as a share of their range: rounding."""


Prepare = Callable[["torch.Tensor"], "torch.Tensor"]
Head = Callable[["torch.Tensor"], "torch.Tensor"]


class Refusal(Exception):
    """A one-line reason why the model cannot be used; the gate shows it."""


class DoesNotFollow(Refusal):
    """An answer that the last linear layer does not give."""


class Forward:
    """A loaded model as one call: images in, logits and embeddings out.

    ``head`` turns embeddings into the output of the layer that reads them, by the numbers it was loaded
    with; None where that is no linear layer. ``named`` says that the policy chose the layer, ``follows``
    that every answer so far followed from it.
    """

    def __init__(
        self,
        call: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        *,
        layer: str,
        parameters: int,
        head: Head | None = None,
        named: bool = False,
        fixed_batch: int | None = None,
        least_batch: int = 1,
    ) -> None:
        self.call = call
        self.layer = layer
        self.parameters = parameters
        self.head = head
        self.named = named
        self.follows = True
        self.fixed_batch = fixed_batch
        self.least_batch = least_batch


def main() -> None:
    """Answer requests until standard input ends."""
    requests, replies = _claim_pipes()
    _die_with_parent()
    load = _read_header(requests)
    if load is None:
        return
    _limit_resources(load)
    try:
        import torch

        torch.set_num_threads(load["threads"])
        torch.set_num_interop_threads(1)
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        _write(replies, {"ok": True})
        forward = _load(load)
        prepare, description = _try_out(forward, load)
        _write(replies, description)
    except BaseException as error:
        _write(replies, _failure(error))
        return
    height, width, channels = load["shape"]
    buffer = bytearray(load["rows"] * height * width * channels)
    while (request := _read_header(requests)) is not None:
        rows = request["rows"]
        if request.get("ask") == "gradients":
            shape = (rows, height, width, channels)
            if not _answer_gradients(requests, replies, forward, prepare, shape, request["classes"]):
                return
            continue
        view = memoryview(buffer)[: rows * height * width * channels]
        if not _read_into(requests, view):
            return
        try:
            images = torch.frombuffer(view, dtype=torch.uint8).reshape(rows, height, width, channels)
            logits, embeddings = _run(forward, prepare(images))
            header = {"ok": True, "logits": list(logits.shape), "embeddings": list(embeddings.shape)}
            _write(replies, header, _raw(logits), _raw(embeddings))
        except BaseException as error:
            _write(replies, _failure(error))
            return


# The confines that the process puts on itself, before anything of the model is read.


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes for the protocol: what the model prints goes to standard error."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return os.fdopen(requests, "rb", buffering=0), os.fdopen(replies, "wb", buffering=0)


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _limit_resources(load: Mapping[str, Any]) -> None:
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, int(load["memory_bytes"])),
        (resource.RLIMIT_CPU, int(load["cpu_seconds"])),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
    ]
    for kind, value in limits:
        _, hard = resource.getrlimit(kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


# The protocol.


def _read_into(stream: BinaryIO, view: memoryview) -> bool:
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def _read_header(stream: BinaryIO) -> dict[str, Any] | None:
    prefix = bytearray(4)
    if not _read_into(stream, memoryview(prefix)):
        return None
    content = bytearray(struct.unpack("<I", prefix)[0])
    if not _read_into(stream, memoryview(content)):
        return None
    header: dict[str, Any] = json.loads(content)
    return header


def _write(stream: BinaryIO, header: Mapping[str, Any], *payload: memoryview) -> None:
    content = json.dumps(header).encode()
    for part in (memoryview(struct.pack("<I", len(content)) + content), *payload):
        done = 0
        while done < len(part):
            done += stream.write(part[done:]) or 0


def _raw(tensor: torch.Tensor) -> memoryview:
    values: Any = tensor.numpy()
    return memoryview(values).cast("B") if tensor.numel() else memoryview(b"")


def _failure(error: BaseException) -> dict[str, Any]:
    text = f"{error}" if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
    lowered = text.lower()
    exhausted = isinstance(error, MemoryError) or "can't allocate memory" in lowered or "bad_alloc" in lowered
    return {"ok": False, "kind": "memory" if exhausted else "model", "message": text[:2000]}


# Preparation of images, and the two outputs.


def _preparation(load: Mapping[str, Any], *, keep_strides: bool) -> Prepare:
    """Turn uint8 NHWC pixels into the model's input: ``(pixel / scale - mean) / std``.

    With ``keep_strides`` a NCHW input keeps the pixels' order in memory (PyTorch's channels-last format):
    convolutions on a CPU take half the time then, but a model that calls ``view`` may refuse it.
    """
    import torch

    dtype = getattr(torch, load["dtype"])
    planes_first = load["layout"] == "NCHW"
    axis = (1, -1, 1, 1) if planes_first else (1, 1, 1, -1)
    channels = load["shape"][2]
    mean = torch.tensor(load["mean"], dtype=torch.float32).expand(channels)
    std = torch.tensor(load["std"], dtype=torch.float32).expand(channels)
    factor = (1.0 / (load["scale"] * std)).reshape(axis)
    offset = (-mean / std).reshape(axis)
    plain = dtype is torch.uint8 and bool((factor == 1).all()) and bool((offset == 0).all())

    def prepare(images: torch.Tensor) -> torch.Tensor:
        pixels = images
        if planes_first:
            pixels = images.permute(0, 3, 1, 2)
            if not keep_strides:
                pixels = pixels.contiguous()
        if plain:
            return pixels.clone()
        return pixels.to(torch.float32).mul_(factor).add_(offset).to(dtype)

    return prepare


def _run(forward: Forward, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer a batch of any size, cut and padded to what the model accepts."""
    import torch

    size = forward.fixed_batch or max(len(inputs), forward.least_batch)
    logits, embeddings = [], []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        rows = len(part)
        if rows < size:
            part = torch.cat([part, part[-1:].expand(size - rows, *part.shape[1:])])
        outputs, hidden = forward.call(part)
        logits.append(_as_rows(outputs, size, "the model's output")[:rows])
        embeddings.append(_as_rows(hidden, size, f"the input of layer {forward.layer!r}").flatten(1)[:rows])
        forward.follows = forward.follows and _follows(forward, logits[-1], hidden[:rows])
        if not forward.follows and not forward.named:
            raise DoesNotFollow(
                f"the answers do not follow from the last linear layer ({forward.layer!r}): name the layer to"
                " take embeddings from in the policy's input.embedding_layer"
            )
    answer = torch.cat(logits)
    if answer.ndim != 2:
        raise Refusal(f"the model's output has shape {tuple(answer.shape)} instead of (rows, classes)")
    return answer.contiguous(), torch.cat(embeddings).contiguous()


def _follows(forward: Forward, logits: torch.Tensor, hidden: torch.Tensor) -> bool:
    """Whether the class answered for each image is the one that the embedding's own layer puts first.

    A layer that the answer does not rest on could hand over noise for embeddings, and nothing would stand
    out in them. Only the order counts: a softmax, a temperature or a sigmoid may come after the layer.
    """
    import torch

    if forward.head is None:
        return False
    own = _as_rows(forward.head(hidden), len(hidden), f"the output of layer {forward.layer!r}").flatten(1)
    if own.shape != logits.shape:
        return False
    if torch.equal(own, logits) or not bool(logits.isfinite().all()):
        return True  # the gate itself refuses answers that are not finite
    best = logits.amax(1, keepdim=True)
    tied = logits >= best - 8 * torch.finfo(logits.dtype).eps * best.abs()
    first = torch.where(tied, own, -torch.inf).amax(1)
    highest = own.amax(1)
    return not bool((highest - first > ORDER_TOLERANCE * (highest - own.amin(1))).any())


def _answer_gradients(
    requests: BinaryIO,
    replies: BinaryIO,
    forward: Forward,
    prepare: Prepare,
    shape: tuple[int, ...],
    classes: int,
) -> bool:
    """Answer one request for gradients; False where the process is to end.

    A model that has none is no failure of the process: it goes on answering forward passes.
    """
    import torch

    pixels = bytearray(4 * math.prod(shape))
    weights = bytearray(4 * shape[0] * classes)
    if not (_read_into(requests, memoryview(pixels)) and _read_into(requests, memoryview(weights))):
        return False
    try:
        outcome = _gradients(
            forward,
            prepare,
            torch.frombuffer(pixels, dtype=torch.float32).reshape(shape),
            torch.frombuffer(weights, dtype=torch.float32).reshape(shape[0], -1),
        )
        _write(replies, {"ok": True}, *map(_raw, outcome))
    except BaseException as error:
        failure = _failure(error)
        if failure["kind"] == "memory" or not isinstance(error, Exception):
            _write(replies, failure)
            return False
        _write(replies, {"ok": True, "refused": failure["message"]})
    return True


def _gradients(
    forward: Forward, prepare: Prepare, pixels: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, and the gradients of their weighted sum with respect to the pixels."""
    import torch

    size = forward.fixed_batch or max(len(pixels), forward.least_batch)
    answers, slopes = [], []
    for start in range(0, len(pixels), size):
        part = pixels[start : start + size]
        rows = len(part)
        if rows < size:
            part = torch.cat([part, part[-1:].expand(size - rows, *part.shape[1:])])
        leaf = part.clone().requires_grad_()
        with torch.enable_grad():
            # The preparation changes its input in place, which a leaf does not allow.
            outputs, _ = forward.call(prepare(leaf * 1))
            if isinstance(outputs, list | tuple) and len(outputs) == 1:
                outputs = outputs[0]
            if not isinstance(outputs, torch.Tensor) or not outputs.requires_grad:
                raise Refusal("its answers do not depend on the pixels in a way that has a slope")
            logs = _log_probabilities(outputs[:rows].to(torch.float32))
            (slope,) = torch.autograd.grad((logs * weights[start : start + rows]).sum(), leaf)
        answers.append(logs.detach())
        slopes.append(slope[:rows])
    return torch.cat(answers).contiguous(), torch.cat(slopes).contiguous()


def _log_probabilities(outputs: torch.Tensor) -> torch.Tensor:
    """Of logits; or of probabilities, where every row is one already."""
    import torch

    told = outputs.detach()
    if bool((told >= 0).all()) and bool(((told.sum(1) - 1).abs() < 1e-3).all()):
        return outputs.clamp_min(1e-12).log()
    return torch.log_softmax(outputs, 1)


def _as_rows(outputs: Any, rows: int, what: str) -> torch.Tensor:
    import torch

    if isinstance(outputs, list | tuple) and len(outputs) == 1:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor):
        raise Refusal(f"{what} is a {type(outputs).__name__} instead of one tensor")
    if outputs.ndim < 2 or len(outputs) != rows:
        raise Refusal(f"{what} has shape {tuple(outputs.shape)} for {rows} images")
    return outputs.detach().to(torch.float32)


def _try_out(forward: Forward, load: Mapping[str, Any]) -> tuple[Prepare, dict[str, Any]]:
    """Run the model on two images of noise; choose how they lie in memory, and describe what comes out."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *load["shape"]), dtype=torch.uint8, generator=generator)
    prepare = _preparation(load, keep_strides=False)
    logits, embeddings = _run(forward, prepare(images))
    with contextlib.suppress(RuntimeError):
        faster = _preparation(load, keep_strides=True)
        others = _run(forward, faster(images))
        if all(
            one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)
            for one, other in zip((logits, embeddings), others, strict=True)
        ):
            prepare = faster
    return prepare, {
        "ok": True,
        "classes": logits.shape[1],
        "embedding_width": embeddings.shape[1],
        "embedding_layer": forward.layer,
        "follows": forward.follows,
        "takes_one": _takes_one(forward, prepare(images[:1])),
        "parameters": forward.parameters,
    }


def _takes_one(forward: Forward, image: torch.Tensor) -> bool:
    """Whether the model answers one image alone; from then on it is asked so, or with a copy beside it."""
    if forward.fixed_batch is not None:
        return forward.fixed_batch == 1
    forward.least_batch = 1
    try:
        _run(forward, image)
    except DoesNotFollow:
        raise
    except Exception:
        forward.least_batch = 2
    return forward.least_batch == 1


# The three ways to load.


def _load(load: Mapping[str, Any]) -> Forward:
    module = read_module(load["format"], load["path"], load.get("architecture", ""))
    if load["format"] == "pt2":
        return _exported(module, load["embedding_layer"])
    return _hooked(module, load["embedding_layer"])


def read_module(kind: str, path: str, architecture: str) -> Any:
    """Deserialise the model file of a verified folder.

    ``kind`` is its :data:`~promotion_gate.evidence.artifacts.ModelFormat`, ``architecture`` the path of the
    ``architecture.json`` beside a ``state_dict``.

    Raises
    ------
    Refusal: the file holds something else than such a module.
    """
    import torch

    if kind == "pt2":
        with _tensors_only():
            program = torch.export.load(io.BytesIO(_rewritten(path)))
        _refuse_training_mode(program)
        return program.module(check_guards=False)
    if kind == "torch-pickle":
        module = torch.load(path, map_location="cpu", weights_only=False)
    elif kind == "torch-modules":
        with torch.serialization.safe_globals(list(allowed_modules().values())):
            module = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_replaced_methods(module)
    elif kind == "state_dict":
        with open(architecture, "rb") as file:  # noqa: PTH123
            module = build_sequential(json.load(file))
        module.load_state_dict(_read_state_dict(path))
    else:
        raise Refusal(f"format {kind!r} cannot be loaded")
    if not isinstance(module, torch.nn.Module):
        raise Refusal(f"the file holds a {type(module).__name__}, not a module")
    return module


def allowed_modules() -> dict[str, type[torch.nn.Module]]:
    """The layer classes of ``torch.nn`` by name: classes only, so that a file can call no function."""
    import torch

    return {
        name: member
        for name, member in vars(torch.nn).items()
        if isinstance(member, type)
        and issubclass(member, torch.nn.Module)
        and member.__module__.startswith("torch.nn.modules.")
        and member is not torch.nn.Module
    }


def build_sequential(architecture: Any) -> torch.nn.Module:
    """Build the layers that a ``state_dict`` fills.

    ``architecture.json`` names ``torch.nn`` classes in the order they run. ``name`` is the prefix of the
    layer's entries in the state dict, the position from 0 where it is left out; ``args`` and ``kwargs`` are
    numbers, strings, true, false, null or lists of these, and lists become tuples::

        {"layers": [
          {"type": "Conv2d", "args": [3, 16, 3], "kwargs": {"padding": 1}, "name": "conv"},
          {"type": "ReLU"},
          {"type": "Flatten"},
          {"type": "Linear", "args": [16384, 43], "name": "head"}
        ]}
    """
    import torch

    layers = architecture.get("layers") if isinstance(architecture, dict) else None
    if not isinstance(layers, list) or not 0 < len(layers) <= 10_000:
        raise Refusal('architecture.json needs a list "layers"')
    known = allowed_modules()
    model = torch.nn.Sequential()
    for position, layer in enumerate(layers):
        if not isinstance(layer, dict) or not layer.keys() <= {"type", "args", "kwargs", "name"}:
            raise Refusal(f"architecture.json: layer {position} may have type, args, kwargs and name only")
        kind, name = layer.get("type"), str(layer.get("name", position))
        if kind not in known:
            raise Refusal(
                f"architecture.json: layer {position}: {str(kind)[:60]!r} is not a layer of torch.nn"
            )
        if re.fullmatch(r"[A-Za-z0-9_]{1,80}", name) is None or hasattr(model, name):
            raise Refusal(f"architecture.json: layer {position}: the name {name[:60]!r} cannot be used")
        args, kwargs = layer.get("args", []), layer.get("kwargs", {})
        try:
            built = known[kind](*map(_argument, args), **{key: _argument(kwargs[key]) for key in kwargs})
        except (TypeError, ValueError) as error:
            raise Refusal(f"architecture.json: layer {position} ({kind}): {error}") from None
        model.add_module(name, built)
    return model


def _argument(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_argument(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be an argument")


def _read_state_dict(path: str) -> Mapping[str, torch.Tensor]:
    import torch

    tensors = (
        _read_safetensors(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
    )
    if not isinstance(tensors, dict) or not all(
        isinstance(value, torch.Tensor) for value in tensors.values()
    ):
        raise Refusal("the state_dict is not a table of tensors")
    return tensors


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Read the safetensors format: a length, a JSON header with offsets, then the raw values."""
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
              "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
              "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
    with open(path, "rb") as file:  # noqa: PTH123
        content = bytearray(file.read())
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        body = memoryview(content)[8 + length :]
        return {
            name: torch.frombuffer(body[slice(*entry["data_offsets"])], dtype=dtypes[entry["dtype"]])
            .reshape(entry["shape"])
            .clone()
            if entry["data_offsets"][0] < entry["data_offsets"][1]
            else torch.zeros(entry["shape"], dtype=dtypes[entry["dtype"]])
            for name, entry in header.items()
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Refusal(f"the safetensors file is damaged: {error}") from None


def _hooked(module: torch.nn.Module, wanted: str | None) -> Forward:
    """Catch the input of the last linear layer to run, or of the layer asked for."""
    import torch
    from torch.nn.functional import linear

    module.eval()
    layers = {name: layer for name, layer in module.named_modules() if name}
    if wanted is not None and wanted not in layers:
        raise Refusal(f"there is no layer {wanted!r}; there are {_listed(layers)}")
    watched = (
        {wanted: layers[wanted]}
        if wanted is not None
        else {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    )
    if not watched:
        raise Refusal(
            "no linear layer to take embeddings from: name one in the policy's input.embedding_layer; "
            f"there are {_listed(layers)}"
        )
    caught: dict[str, Any] = {}

    def catch(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            caught["layer"], caught["input"] = name, inputs[0]

        return hook

    for name, layer in watched.items():
        layer.register_forward_pre_hook(catch(name))

    def call(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        caught.clear()
        outputs = module(images)
        if "input" not in caught:
            raise Refusal(f"layer {_listed(watched)} did not run; there are {_listed(layers)}")
        forward.layer = caught["layer"] or "(the model itself)"
        last = watched[caught["layer"]]
        plain = isinstance(last, torch.nn.Linear)
        forward.head = (lambda hidden: linear(hidden, last.weight, last.bias)) if plain else None
        return outputs, caught.pop("input")

    parameters = sum(parameter.numel() for parameter in module.parameters())
    forward = Forward(call, layer=wanted or "", parameters=parameters, named=wanted is not None)
    return forward


def _listed(layers: Mapping[str, Any] | Sequence[str]) -> str:
    names = list(layers)
    more = f" and {len(names) - MAX_LAYERS_LISTED} more" if len(names) > MAX_LAYERS_LISTED else ""
    return (", ".join(names[:MAX_LAYERS_LISTED]) + more) or "none"


# Exported programs.

_LINEAR_INPUT = {
    "aten.linear.default": 0,
    "aten.addmm.default": 1,
    "aten.mm.default": 0,
    "aten.matmul.default": 0,
}
_TRAINING_ARGUMENT = {
    "aten.batch_norm.default": 5,
    "aten.instance_norm.default": 5,
    "aten.dropout.default": 2,
    "aten.feature_dropout.default": 2,
    "aten.alpha_dropout.default": 2,
}


def _exported(module: Any, wanted: str | None) -> Forward:
    layer, head = _return_hidden(module, wanted)
    gc.collect()

    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise Refusal(f"the model takes {len(inputs)} inputs instead of one batch of images")
    size = inputs[0].meta["val"].shape[0]
    return Forward(
        module,
        layer=layer,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        head=head,
        named=wanted is not None,
        fixed_batch=size if isinstance(size, int) else None,
        least_batch=2,  # torch.export takes a dynamic size to be at least 2; trying out may show 1 to work
    )


def _rewritten(path: str) -> bytes:
    """Copy the archive's members, as Python's reader sees them, into a fresh archive.

    What was held to the rules was read by Python's ``zipfile``; PyTorch reads archives with a library of its
    own. A file made to look different to the two would slip through.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for info in source.infolist():
            copy.writestr(zipfile.ZipInfo(info.filename), source.read(info))
    return target.getvalue()


_LOADING = threading.Lock()


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Hold ``torch.load`` to tensors: ``torch.export.load`` otherwise asks it to unpickle anything."""
    import torch

    with _LOADING:  # of two that overlap, one would take the other's restriction for PyTorch's own function
        original = torch.load

        def restricted(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **{**kwargs, "weights_only": True})

        torch.load = restricted
        try:
            yield
        finally:
            torch.load = original


def _refuse_replaced_methods(module: Any) -> None:
    """A file of layers may set attributes, and one of them could stand in for a method or be a hook."""
    import torch

    if not isinstance(module, torch.nn.Module):
        return
    for name, part in module.named_modules():
        kept = vars(part)
        replaced = [key for key in kept if callable(getattr(type(part), key, None))]
        hooks = [key for key, value in kept.items() if key.endswith("_hooks") and value]
        if replaced or hooks:
            where = f"layer {name!r}" if name else "the model"
            raise Refusal(f"{where} brings its own {(replaced + hooks)[0][:60]!r}, in place of PyTorch's")


def _refuse_training_mode(program: Any) -> None:
    for node in program.graph.nodes:
        position = _TRAINING_ARGUMENT.get(str(node.target))
        if position is not None and len(node.args) > position and node.args[position] is True:
            kind = str(node.target).split(".")[1]
            raise Refusal(
                f"the model was exported in training mode ({kind} is active), so its answers depend on "
                "chance or on the rest of the batch: call model.eval() before logging it"
            )


def _return_hidden(module: Any, wanted: str | None) -> tuple[str, Head | None]:
    """Make the graph return its output and the input of the last linear layer that the output depends on."""
    graph = module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    if wanted is not None:
        hidden, layer, node = _named_input(graph, wanted)
    else:
        hidden, layer, node = _last_linear_input(graph, output)
    head = _head(module, node)
    answers = output.args[0]
    if isinstance(answers, list | tuple):
        if len(answers) != 1:
            raise Refusal(f"the model gives {len(answers)} outputs instead of one tensor of logits")
        answers = answers[0]
    output.args = ((answers, hidden),)
    # The tree spec describes one output; plain codegen returns the pair as it stands.
    import torch

    graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    return layer, head


def _head(module: Any, node: Any) -> Head | None:
    """A linear operation as a function of its input alone, with copies of its weights."""
    import torch

    position = _LINEAR_INPUT.get(str(node.target))
    if position is None or not _has_own_weights(node, position):
        return None
    interpreter = torch.fx.Interpreter(module)

    def compute(source: Any) -> None:
        if source not in interpreter.env:
            for other in source.all_input_nodes:
                compute(other)
            interpreter.env[source] = interpreter.run_node(source)

    def weight(source: Any) -> torch.Tensor:
        compute(source)
        return interpreter.env[source].clone()  # type: ignore[no-any-return]

    before = torch.fx.node.map_arg(node.args[:position], weight)
    after = torch.fx.node.map_arg(node.args[position + 1 :], weight)
    options = torch.fx.node.map_arg(node.kwargs, weight)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = node.target(*before, hidden, *after, **options)
        return output

    return head


def _has_own_weights(node: Any, position: int) -> bool:
    """Whether an operation has an input at ``position``, and nothing else in it hangs on the images."""
    import torch

    if len(node.args) <= position:
        return False
    pending: list[Any] = []
    torch.fx.node.map_arg((node.args[:position], node.args[position + 1 :], node.kwargs), pending.append)
    seen: set[Any] = set()
    while pending:
        other = pending.pop()
        if other.op == "placeholder":
            return False
        if other not in seen:
            seen.add(other)
            pending += other.all_input_nodes
    return True


def _last_linear_input(graph: Any, output: Any) -> tuple[Any, str, Any]:
    needed, pending = set(), [output]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    for node in reversed(graph.nodes):
        position = _LINEAR_INPUT.get(str(node.target))
        if node in needed and position is not None and _has_own_weights(node, position):
            return node.args[position], _layer_of(node) or str(node.name), node
    raise Refusal(
        "no linear layer to take embeddings from: name one in the policy's input.embedding_layer; "
        f"there are {_listed(_layers_in(graph))}"
    )


def _named_input(graph: Any, wanted: str) -> tuple[Any, str, Any]:
    """Find what flows into a layer, and where: the first activation that its first operation reads."""
    for node in graph.nodes:
        if node.op == "call_function" and wanted in (node.name, *_layer_stack(node)):
            for source in node.all_input_nodes:
                if source.op != "get_attr":
                    return source, wanted, node
    raise Refusal(f"there is no layer {wanted!r}; there are {_listed(_layers_in(graph))}")


def _layers_in(graph: Any) -> list[str]:
    names = (_layer_of(node) or str(node.name) for node in graph.nodes if node.op == "call_function")
    return list(dict.fromkeys(names))


def _layer_of(node: Any) -> str:
    stack = _layer_stack(node)
    return stack[-1] if stack else ""


def _layer_stack(node: Any) -> list[str]:
    """List the names of the modules a node was traced in, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(path) for path, _ in stack.values() if path]


if __name__ == "__main__":
    main()
