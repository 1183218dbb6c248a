from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from promotion_gate.core.errors import ArtifactError, InputError, ModelError
from promotion_gate.core.policy import Policy
from promotion_gate.evidence import loader, sandbox, worker
from promotion_gate.evidence.artifacts import verify
from promotion_gate.evidence.loader import SandboxedClassifier, open_model
from promotion_gate.evidence.sandbox import Confinement

CLASSES = 5
BUBBLEWRAP = pytest.mark.skipif(
    not sandbox._works(Confinement("bubblewrap")), reason="bubblewrap does not work on this host"
)


def silent(line: str) -> None:
    pass


def noise(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def opened(saved: Callable[[str], Path]) -> Iterator[Callable[[str], SandboxedClassifier]]:
    """Open a model once for all tests that do it no harm; in a thread that is gone before the first call."""
    from promotion_gate.core.policy import parse_policy

    plain = parse_policy("version = 1\n[data.holdout]\npath = 'x'\n[checks.c.bounds.m]\nmin = 0\n")
    models: dict[str, SandboxedClassifier] = {}

    def start(name: str) -> None:
        artifacts = verify(saved(name), allow_pickle=False)
        models[name] = open_model(artifacts, plain, class_count=CLASSES, log=silent)

    def get(name: str) -> SandboxedClassifier:
        if name not in models:
            thread = threading.Thread(target=start, args=(name,))
            thread.start()
            thread.join()
        return models[name]

    yield get
    for model in models.values():
        model.close()


def in_process(folder: Path, images: np.ndarray) -> np.ndarray:
    """What the model answers when it is run the ordinary way, on pixels divided by 255."""
    import torch

    planes = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))
    with torch.no_grad():
        if (folder / "data/model.pt2").exists():
            module = torch.export.load(folder / "data/model.pt2").module()
            step = 1 if "residual" in folder.name else len(images)
            return torch.cat([module(planes[i : i + step]) for i in range(0, len(images), step)]).numpy()
        module = torch.load(folder / "data/model.pth", weights_only=False)
        return module.eval()(planes).numpy()


def load_here(folder: Path, model_format: str, layer: str | None = None) -> worker.Forward:
    """Load with the worker's own code, in this process."""
    name = "model.pt2" if model_format == "pt2" else "model.pth"
    return worker._load(
        {"path": str(folder / "data" / name), "format": model_format, "embedding_layer": layer}
    )


def answer_here(model: worker.Forward, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    load = {"dtype": "float32", "layout": "NCHW", "shape": [16, 16, 3], "scale": 255, "mean": [0], "std": [1]}
    with torch.no_grad():
        prepared = worker._preparation(load, keep_strides=False)(torch.from_numpy(images))
        logits, embeddings = worker._run(model, prepared)
    return logits.numpy(), embeddings.numpy()


@pytest.mark.parametrize(
    ("name", "layer", "width", "parameters"),
    [
        ("cnn-pt2", "8", 12, 8 * 27 + 8 + 16 + 32 * 12 + 12 + 12 * 5 + 5),
        ("residual-pt2", "head", 6, 3 * 6 * 9 + 6 + 36 * 9 + 6 + 6 * 5 + 5),
        ("cnn-module", "8", 12, 8 * 27 + 8 + 16 + 32 * 12 + 12 + 12 * 5 + 5),
        ("mlp-module", "3", 7, 768 * 7 + 7 + 7 * 5 + 5),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_finds_the_penultimate_layer_and_takes_any_number_of_images(
    saved: Callable[[str], Path], name: str, layer: str, width: int, parameters: int, rows: int
) -> None:
    model = load_here(saved(name), "pt2" if name.endswith("pt2") else "torch-modules")
    logits, embeddings = answer_here(model, noise(9)[:rows])
    assert (model.layer, model.parameters) == (layer, parameters)
    np.testing.assert_allclose(logits, in_process(saved(name), noise(9))[:rows], rtol=1e-4, atol=1e-5)
    assert embeddings.shape == (rows, width)
    assert np.unique(embeddings, axis=0).shape[0] == rows


@pytest.mark.parametrize("name", ["cnn-pt2", "cnn-module"])
def test_answers_from_the_sandbox_as_the_model_does(
    saved: Callable[[str], Path], opened: Callable[[str], SandboxedClassifier], name: str
) -> None:
    model = opened(name)
    images = noise(300)
    answer = model.forward(images)
    assert (model.classes, model.embedding_width, model.embedding_layer) == (CLASSES, 12, "8")
    np.testing.assert_allclose(answer.logits, in_process(saved(name), images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.forward(images[:1]).logits, answer.logits[:1], rtol=1e-4, atol=1e-5)
    assert model.forward(images[:0]).logits.shape == (0, CLASSES)


def test_the_embedding_is_the_input_of_the_last_linear_layer(
    saved: Callable[[str], Path], opened: Callable[[str], SandboxedClassifier]
) -> None:
    import torch

    head = torch.load(saved("cnn-module") / "data/model.pth", weights_only=False)[8]
    answer = opened("cnn-module").forward(noise(4))
    with torch.no_grad():
        logits = head(torch.from_numpy(answer.embeddings)).numpy()
    np.testing.assert_allclose(answer.logits, logits, rtol=1e-4, atol=1e-5)


def test_threads_share_one_worker_without_mixing_answers(
    opened: Callable[[str], SandboxedClassifier],
) -> None:
    model = opened("cnn-module")
    batches = [noise(700, seed) for seed in range(4)]
    alone = [model.forward(batch).logits for batch in batches]
    together: list[np.ndarray | None] = [None] * 4

    def ask(position: int) -> None:
        together[position] = model.forward(batches[position]).logits

    threads = [threading.Thread(target=ask, args=(position,)) for position in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("images", [noise(2)[:, :8], noise(2)[..., :1], noise(2).astype(np.float32)])
def test_images_of_another_shape_are_refused(
    opened: Callable[[str], SandboxedClassifier], images: np.ndarray
) -> None:
    with pytest.raises(InputError, match="the model takes uint8 images of 16 x 16 x 3"):
        opened("cnn-module").forward(images)


def test_another_number_of_classes_is_refused(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> None:
    artifacts = verify(saved("mlp-module"), allow_pickle=False)
    with pytest.raises(InputError, match="5 classes apart, and the data has 43"):
        open_model(artifacts, policy(), class_count=43, log=silent)


def test_a_model_without_a_linear_layer_needs_one_named(saved: Callable[[str], Path]) -> None:
    folder = saved("no-linear-module")
    with pytest.raises(worker.Refusal, match=r"input\.embedding_layer; there are 0, 1, 2"):
        load_here(folder, "torch-modules")
    logits, embeddings = answer_here(load_here(folder, "torch-modules", "2"), noise(3))
    np.testing.assert_allclose(embeddings, logits)
    with pytest.raises(worker.Refusal, match="no layer 'nope'; there are 0, 1, 2"):
        load_here(folder, "torch-modules", "nope")


def test_a_named_layer_of_an_exported_program(saved: Callable[[str], Path]) -> None:
    folder = saved("residual-pt2")
    _, embeddings = answer_here(load_here(folder, "pt2", "block"), noise(3))
    assert embeddings.shape == (3, 6 * 16 * 16)
    with pytest.raises(worker.Refusal, match=r"no layer 'nope'; there are stem, .*block, .*head"):
        load_here(folder, "pt2", "nope")


# The layer that embeddings are taken from.


def network(end: Callable) -> object:
    """A small network whose hidden features and first layer of logits go through ``end``."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.body = nn.Linear(768, 16)
            self.head = nn.Linear(16, CLASSES)
            self.other = nn.Linear(768, CLASSES)

        def forward(self, images):
            pixels = images.flatten(1)
            hidden = torch.relu(self.body(pixels))
            return end(self, pixels, hidden)

    return Network()


def load_exported(model: object, folder: Path, layer: str | None = None) -> worker.Forward:
    import torch

    (folder / "data").mkdir(exist_ok=True)
    images = torch.zeros(2, 3, 16, 16)
    program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, folder / "data/model.pt2")
    return load_here(folder, "pt2", layer)


def overwritten(model, pixels, hidden):
    logits = model.head(hidden)
    return model.other((1e4 * pixels).sin()).mul_(0).add_(logits)


def attended(model, pixels, hidden):
    import torch

    logits = model.head(hidden)
    return torch.matmul(torch.ones(len(pixels), 1), logits[:1]) * 0 + logits


def as_a_bias(model, pixels, hidden):
    import torch

    return torch.addmm(model.head(hidden), (1e4 * pixels).sin(), torch.zeros(768, CLASSES))


def normalised(model, pixels, hidden):
    import torch

    head = model.head
    return torch.nn.functional.linear(hidden, head.weight / head.weight.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    "end",
    [
        lambda model, pixels, hidden: model.head(hidden),
        lambda model, pixels, hidden: model.head(hidden).softmax(1),
        lambda model, pixels, hidden: model.head(hidden).log_softmax(1),
        lambda model, pixels, hidden: model.head(50 * hidden).sigmoid(),
        lambda model, pixels, hidden: (model.head(hidden) / 0.07 + 3).tanh(),
        lambda model, pixels, hidden: model.head(hidden).double(),
        attended,
        as_a_bias,
        normalised,
    ],
)
def test_the_layer_is_found_whatever_a_real_model_does_after_it(tmp_path: Path, end: Callable) -> None:
    model = load_exported(network(end), tmp_path)
    _, embeddings = answer_here(model, noise(60))
    assert embeddings.shape == (60, 16)
    assert model.follows


@pytest.mark.parametrize(
    "end",
    [
        lambda model, pixels, hidden: model.head(hidden) + 1e-9 * model.other((1e4 * pixels).sin()),
        lambda model, pixels, hidden: model.head(hidden) + model.other(pixels),
        lambda model, pixels, hidden: model.head(hidden) + 1e-9 * model.body(pixels)[:, :CLASSES],
        lambda model, pixels, hidden: -model.head(hidden),
        overwritten,
    ],
)
def test_a_layer_that_the_answers_do_not_follow_from_is_no_embedding(tmp_path: Path, end: Callable) -> None:
    with pytest.raises(worker.Refusal, match=r"do not follow from .*name the layer.*input\.embedding_layer"):
        answer_here(load_exported(network(end), tmp_path), noise(9))
    named = load_exported(network(end), tmp_path, "body")
    _, embeddings = answer_here(named, noise(9))
    assert embeddings.shape == (9, 768)
    assert not named.follows


def test_one_image_that_does_not_follow_is_enough(tmp_path: Path) -> None:
    def end(model, pixels, hidden):
        import torch

        logits = model.head(hidden)
        return logits + 1e6 * (pixels[:, :1] > 0.999) * torch.eye(CLASSES)[0]

    model = load_exported(network(end), tmp_path)
    images = noise(40)
    images[:, 0, 0, 0] = 7
    logits, _ = answer_here(model, images)
    last = int(np.flatnonzero(logits.argmax(1) != 0)[0])
    images[last, 0, 0, 0] = 255
    with pytest.raises(worker.Refusal, match="do not follow"):
        answer_here(model, images)


def test_a_decoy_layer_in_a_sandboxed_model_is_one_line(
    tmp_path: Path, policy: Callable[..., Policy]
) -> None:
    model = network(lambda model, pixels, hidden: model.head(hidden) + 1e-9 * model.other(pixels))
    load_exported(model, tmp_path)
    artifacts = verify(save_with_mlflow(model, tmp_path / "model"), allow_pickle=False)
    with pytest.raises(ModelError, match="the answers do not follow from the last linear layer"):
        open_model(artifacts, policy(), class_count=CLASSES, log=silent)
    told: list[str] = []
    named = policy("[input]\nembedding_layer = 'body'\n")
    with open_model(artifacts, named, class_count=CLASSES, log=told.append) as opened:
        assert opened.embedding_width == 768
    assert "the answers do not follow from layer 'body', which the policy names" in told


def save_with_mlflow(model: object, folder: Path, rows: int = 2) -> Path:
    import warnings

    import mlflow.pytorch

    images = np.zeros((rows, 3, 16, 16), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(model.eval(), folder, input_example=images, pip_requirements=["torch"])
    return folder


# One image alone.


def test_one_image_is_passed_alone_where_the_model_takes_it(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    load = {"dtype": "float32", "layout": "NCHW", "shape": [16, 16, 3], "scale": 255, "mean": [0], "std": [1]}
    model = load_here(saved("cnn-pt2"), "pt2")
    sizes: list[int] = []
    call = model.call
    model.call = lambda images: (sizes.append(len(images)), call(images))[1]  # type: ignore[assignment]
    _, facts = worker._try_out(model, load)
    assert facts["takes_one"] is True
    sizes.clear()
    answer_here(model, noise(1))
    assert sizes == [1]

    def alone_turned(model, pixels, hidden):
        return model.head(hidden) * (pixels[:, 0].mul(0).add(1).sum() - 1.5).sign()

    other_alone = network(alone_turned)
    with pytest.raises(worker.Refusal, match="do not follow"):
        worker._try_out(load_exported(other_alone, tmp_path), load)

    squeezed = load_exported(network(lambda model, pixels, hidden: model.head(hidden).squeeze()), tmp_path)
    _, facts = worker._try_out(squeezed, load)
    assert facts["takes_one"] is False
    assert answer_here(squeezed, noise(1))[0].shape == (1, CLASSES)


def test_a_model_for_larger_batches_alone_says_so(tmp_path: Path, policy: Callable[..., Policy]) -> None:
    model = network(lambda model, pixels, hidden: model.head(hidden).squeeze())
    artifacts = verify(save_with_mlflow(model, tmp_path / "model"), allow_pickle=False)
    told: list[str] = []
    with open_model(artifacts, policy(), class_count=CLASSES, log=told.append) as opened:
        assert opened.forward(noise(1)).logits.shape == (1, CLASSES)
    assert [line for line in told if line.startswith("it takes no image alone")]


def test_a_model_exported_in_training_mode_is_refused(saved: Callable[[str], Path]) -> None:
    with pytest.raises(worker.Refusal, match=r"training mode.*model\.eval\(\)"):
        load_here(saved("training-pt2"), "pt2")


# State dicts.

ARCHITECTURE = {
    "layers": [
        {"type": "Conv2d", "args": [3, 4, 3], "kwargs": {"padding": [1, 1]}, "name": "conv"},
        {"type": "ReLU"},
        {"type": "AdaptiveAvgPool2d", "args": [1]},
        {"type": "Flatten"},
        {"type": "Linear", "args": [4, CLASSES], "name": "head"},
    ]
}
INPUT = "[input]\nlayout = 'NCHW'\nheight = 16\nwidth = 16\nchannels = 3\n"


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "head.weight": (5, 4), "head.bias": (5,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save_state_dict(folder: Path, suffix: str, architecture: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "architecture.json").write_text(json.dumps(architecture))
    if suffix == "pth":
        import torch

        torch.save({k: torch.from_numpy(v) for k, v in tensors().items()}, folder / "state_dict.pth")
        return
    header, body = {}, b""
    for name, values in tensors().items():
        end = len(body) + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(body), end]}
        body += values.tobytes()
    text = json.dumps(header).encode()
    (folder / "state_dict.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_state_dict_is_filled_into_the_layers_that_a_json_file_lists(
    tmp_path: Path, policy: Callable[..., Policy], suffix: str
) -> None:
    import torch

    save_state_dict(tmp_path, suffix, ARCHITECTURE)
    artifacts = verify(tmp_path, allow_pickle=False)
    assert (artifacts.violations, artifacts.model_format) == ((), "state_dict")
    if suffix == "pth":
        path, architecture = tmp_path / artifacts.model_file, tmp_path / "architecture.json"
        load = {"path": str(path), "architecture": str(architecture), "embedding_layer": None}
        model = worker._load({**load, "format": "state_dict"})
        logits, embeddings = answer_here(model, noise(3))
    else:
        with open_model(artifacts, policy(INPUT), class_count=CLASSES, log=silent) as sandboxed:
            answer = sandboxed.forward(noise(3))
        logits, embeddings = answer.logits, answer.embeddings
        assert sandboxed.embedding_layer == "head"
    values = tensors()
    expected = embeddings @ values["head.weight"].T + values["head.bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    planes = torch.from_numpy(noise(3).transpose(0, 3, 1, 2) / np.float32(255))
    hidden = torch.nn.functional.conv2d(
        planes, torch.from_numpy(values["conv.weight"]), torch.from_numpy(values["conv.bias"]), padding=1
    )
    np.testing.assert_allclose(embeddings, hidden.relu().mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"type": "Module"}, "not a layer of torch.nn"),
        ({"type": "os.system", "args": ["true"]}, "not a layer of torch.nn"),
        ({"type": "ReLU", "hook": "x"}, "may have type, args, kwargs and name only"),
        ({"type": "Linear", "args": [{"a": 1}, 2]}, "a dict cannot be an argument"),
        ({"type": "ReLU", "name": "forward"}, "cannot be used"),
        ({"type": "ReLU", "name": "a.b"}, "cannot be used"),
        ({"type": "Linear", "args": ["3", 4]}, "Linear"),
    ],
)
def test_an_architecture_builds_listed_layers_alone(layer: dict, words: str) -> None:
    from promotion_gate.evidence.worker import Refusal, build_sequential

    with pytest.raises(Refusal, match=words):
        build_sequential({"layers": [layer]})


def test_no_function_can_be_named_as_a_layer() -> None:
    import torch

    from promotion_gate.evidence.worker import allowed_modules

    layers = allowed_modules()
    assert {"Conv2d", "Linear", "Sequential", "TransformerEncoder"} <= layers.keys()
    assert all(isinstance(layer, type) and issubclass(layer, torch.nn.Module) for layer in layers.values())


# The second wall: what would happen to a file that slipped past verification.


def test_the_loader_itself_unpickles_no_payload(
    copied: Callable[[str], Path], payload: bytes, marker: Path
) -> None:
    folder = copied("mlp-module")
    (folder / "data/model.pth").write_bytes(payload)
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        load_here(folder, "torch-modules")
    assert not marker.exists()


def test_the_loader_itself_unpickles_no_sample_inputs(
    copied: Callable[[str], Path], payload: bytes, marker: Path, edit_archive: Callable[..., None]
) -> None:
    folder = copied("cnn-pt2")
    edit_archive(folder / "data/model.pt2", {"data/sample_inputs/model.pt": payload})
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        load_here(folder, "pt2")
    assert not marker.exists()


# The third wall: a model that runs any code it likes.


@pytest.fixture
def hostile(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> Callable[..., SandboxedClassifier]:
    def get(confinement: str = "", text: str = "") -> SandboxedClassifier:
        artifacts = verify(saved("hostile-pickle"), allow_pickle=True)
        return open_model(
            artifacts,
            policy("unsafe_allow_pickle = true\n" + text),
            class_count=None,
            log=silent,
            confinement=Confinement(confinement) if confinement else None,  # type: ignore[arg-type]
        )

    return get


def order(number: int) -> np.ndarray:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[0, 0, 0, 0] = number
    return images


def test_a_pickle_is_not_opened_where_the_policy_does_not_allow_it(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> None:
    with pytest.raises(ArtifactError, match="the policy does not allow"):
        open_model(verify(saved("hostile-pickle"), allow_pickle=True), policy(), class_count=None, log=silent)


@pytest.mark.parametrize("confinement", ["", "limits"])
def test_a_forward_that_hangs_is_ended_with_all_it_started(
    hostile: Callable[..., SandboxedClassifier], monkeypatch: pytest.MonkeyPatch, confinement: str
) -> None:
    with hostile(confinement) as model:
        assert model.forward(order(0)).logits.shape == (2, CLASSES)
        monkeypatch.setattr(loader, "REQUEST_SECONDS", 3.0)
        started = threading.Timer(1.5, lambda: seen.extend(pid for pid in everything() if sleeping(pid)))
        seen: list[int] = []
        started.start()
        with pytest.raises(ModelError, match=r"did not answer in time.*sandbox\.seconds = 900"):
            model.forward(order(8))
        started.join()
        assert seen
        with pytest.raises(ModelError, match="did not answer in time"):
            model.forward(order(0))
    assert not any(sleeping(pid) for pid in everything())


def test_a_crash_is_one_clear_line(hostile: Callable[..., SandboxedClassifier]) -> None:
    with hostile() as model, pytest.raises(ModelError, match=r"^the model's process was ended by SIGSEGV$"):
        model.forward(order(4))


def test_noise_on_standard_output_nan_and_a_sudden_exit(hostile: Callable[..., SandboxedClassifier]) -> None:
    with hostile() as model:
        plain = model.forward(order(0)).logits
        np.testing.assert_allclose(model.forward(order(6)).logits[1], plain[1])
        with pytest.raises(ModelError, match="NaN logits"):
            model.forward(order(7))
        np.testing.assert_array_equal(model.forward(order(0)).logits, plain)
        with pytest.raises(ModelError, match="ended itself with exit code 7") as caught:
            model.forward(order(3))
        assert str(caught.value).isprintable()
        with pytest.raises(ModelError, match="ended itself with exit code 7"):
            model.forward(order(0))


def everything() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def sleeping(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"-c\0import time; time.sleep(3599)\0")
    except OSError:
        return False


@pytest.mark.parametrize("confinement", ["", "limits"])
def test_a_memory_eater_is_stopped_at_its_limit(
    hostile: Callable[..., SandboxedClassifier], confinement: str
) -> None:
    with (
        hostile(confinement, "[sandbox]\nmemory_gib = 1.0\n") as model,
        pytest.raises(ModelError, match=r"more memory.*sandbox\.memory_gib = 1$"),
    ):
        model.forward(order(2))


@pytest.mark.parametrize("kind", ["bubblewrap", "unshare"])
def test_the_network_is_out_of_reach(kind: str) -> None:
    if not sandbox._works(Confinement(kind)):  # type: ignore[arg-type]
        pytest.skip(f"{kind} does not work on this host")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        command = Confinement(kind).command(  # type: ignore[arg-type]
            None,
            ["-c", f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"],
        )
        told = subprocess.run(command, capture_output=True, text=True)
        assert told.returncode != 0
        assert "unreachable" in told.stderr or "refused" in told.stderr
        with pytest.raises(TimeoutError):
            server.accept()


@BUBBLEWRAP
def test_bubblewrap_shows_no_files_and_takes_none(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    code = (
        f"import os; print(os.path.exists({str(secret)!r}), os.path.exists('/etc/passwd'), "
        "[os.access(path, os.W_OK) for path in ('/', '/dev', '/usr/lib', '/proc/sys')], sorted(os.environ))"
    )
    told = subprocess.run(
        Confinement("bubblewrap").command(tmp_path, ["-c", code]),
        capture_output=True,
        text=True,
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": "x"},
    )
    assert told.stdout.startswith("False False [False, False, False, False]"), told.stderr
    assert "AWS" not in told.stdout


def test_a_required_sandbox_that_is_not_there_holds(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> None:
    artifacts = verify(saved("mlp-module"), allow_pickle=False)
    with pytest.raises(ModelError, match="the policy requires a sandbox"):
        open_model(
            artifacts,
            policy("[sandbox]\nmode = 'required'"),
            class_count=None,
            log=silent,
            confinement=Confinement("limits"),
        )


def test_the_whole_time_a_model_takes_is_limited(
    saved: Callable[[str], Path], policy: Callable[..., Policy]
) -> None:
    artifacts = verify(saved("mlp-module"), allow_pickle=False)
    before = time.monotonic()
    with pytest.raises(ModelError, match="did not answer in time"):
        open_model(artifacts, policy("[sandbox]\nseconds = 0.2"), class_count=None, log=silent)
    assert time.monotonic() - before < 60  # not a matter of speed: without the limit it would succeed


# What a lying worker may say.


class ForgedWorker:
    """Answers with whatever it is told to."""

    def __init__(self, *answers: bytes) -> None:
        self.stream = io.BytesIO(b"".join(answers))
        self.confinement = Confinement("limits")
        self.closed = False

    def send(self, header: object, payload: object = None, *, seconds: float) -> None:
        pass

    def receive(self, *, seconds: float) -> dict:
        (length,) = struct.unpack("<I", self.stream.read(4))
        return json.loads(self.stream.read(length))

    def receive_into(self, view: memoryview, *, seconds: float) -> None:
        view[:] = self.stream.read(len(view))

    def close(self) -> None:
        self.closed = True


def said(**header: object) -> bytes:
    content = json.dumps({"ok": True, **header}).encode()
    return struct.pack("<I", len(content)) + content


def lying(*answers: bytes) -> SandboxedClassifier:
    from promotion_gate.core.policy import ModelInput
    from promotion_gate.evidence.model_input import read_input

    spec = read_input({}, ModelInput(layout="NCHW", height=16, width=16, channels=3))
    facts = {"classes": 2, "embedding_width": 1, "parameters": 0, "embedding_layer": "x\x1b[2J\ny"}
    return SandboxedClassifier(ForgedWorker(*answers), spec, "pt2", facts)  # type: ignore[arg-type]


def test_names_from_the_worker_are_made_printable() -> None:
    assert lying().embedding_layer == "x [2J y"


@pytest.mark.parametrize("logits", [[3, 2], [2, 2**40], "x", None, [2]])
def test_another_shape_than_announced_is_refused(logits: object) -> None:
    model = lying(said(logits=logits, embeddings=[2, 1]))
    with pytest.raises(ModelError, match="changed the shape of its logits"):
        model.forward(order(0))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_numbers_that_are_none_are_refused(value: float, word: str) -> None:
    rows = np.array([[1, value], [1, 2]], np.float32).tobytes()
    model = lying(said(logits=[2, 2], embeddings=[2, 1]), rows, rows[:8])
    with pytest.raises(ModelError, match=f"{word} logits"):
        model.forward(order(0))


@pytest.mark.parametrize("classes", [0, 1, -1, True, 2.0, "5", None, 10**9])
def test_a_class_count_that_cannot_be_is_refused(classes: object) -> None:
    facts = {"classes": classes, "embedding_width": 1, "parameters": 0, "embedding_layer": "x"}
    model = lying()
    with pytest.raises(ModelError, match="classes would be"):
        SandboxedClassifier(model._worker, model.input, "pt2", facts)
