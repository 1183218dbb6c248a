"""The confined process that a model's code runs in, and the pipes to it.

Three confinements, the strongest that really works on this host:

1. bubblewrap: namespaces of its own for network, processes, mounts and users; Python's own folders and the
   model, read-only; nothing else of the file system, nothing writable.
2. unshare: no network and a process tree of its own; the file system stays visible to it.
3. limits alone.

Under all three the process has limits on memory, processor time, file size and open files that it cannot
raise, a memory watch from outside, and deadlines; when one is passed, its whole process tree is killed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from promotion_gate.core.errors import ModelError
from promotion_gate.core.policy import Sandbox

MAX_HEADER_BYTES = 1 << 20
STDERR_TAIL_BYTES = 8192
WATCH_SECONDS = 0.05
PIPE_BYTES = 1 << 20
PROBE_SECONDS = 20.0
SCRATCH_BYTES = 16 << 20

_WORKER = Path(__file__).with_name("worker.py")
_INSIDE_MODEL = "/model"
_INSIDE_WORKER = "/worker.py"

_WORDS = {
    "bubblewrap": "bubblewrap: no network, no files but Python and the model; memory and time limits",
    "unshare": "unshare: no network; the file system was visible; memory and time limits",
    "limits": "memory and time limits alone: network and file system were open to the model's code",
}


@dataclass(frozen=True, slots=True)
class Confinement:
    """One way to confine the worker; ``words`` tell a person what it does and does not keep out."""

    kind: Literal["bubblewrap", "unshare", "limits"]

    @property
    def words(self) -> str:
        return _WORDS[self.kind]

    def inside(self, folder: Path) -> str:
        """Where the worker sees the model's folder."""
        return _INSIDE_MODEL if self.kind == "bubblewrap" else str(folder)

    def command(self, folder: Path | None, python_arguments: Sequence[str] = ()) -> list[str]:
        """The command line of the worker, or of ``python python_arguments``, under this confinement."""
        worker = _INSIDE_WORKER if self.kind == "bubblewrap" else str(_WORKER)
        python = [sys.executable, "-I", "-B", *(python_arguments or [worker])]
        if self.kind == "bubblewrap":
            return [*_bubblewrap(folder), "--", *python]
        if self.kind == "unshare":
            return [
                "unshare",
                "--user",
                "--map-root-user",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                *python,
            ]
        return python


def _bubblewrap(folder: Path | None) -> list[str]:
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    for name, value in _environment(threads=1).items():
        command += ["--setenv", name, value]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", *_scratch_folder()]
    for path in _python_folders():
        command += ["--ro-bind", str(path), str(path)]
    for library in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"):
        if Path(library).is_symlink():
            command += ["--symlink", str(Path(library).readlink()), library]
        else:
            command += ["--ro-bind-try", library, library]
    command += ["--ro-bind", str(_WORKER), _INSIDE_WORKER]
    if folder is not None:
        command += ["--ro-bind", str(folder), _INSIDE_MODEL]
    return [*command, "--remount-ro", "/", "--chdir", "/"]


@functools.cache
def _scratch_folder() -> tuple[str, ...]:
    """An empty /tmp in memory, which torch insists on, bounded where this bubblewrap can bound it."""
    try:
        told = subprocess.run(["bwrap", "--help"], capture_output=True, check=False, timeout=PROBE_SECONDS)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return ()
    bound = ("--size", str(SCRATCH_BYTES)) if b"--size" in told.stdout + told.stderr else ()
    return (*bound, "--tmpfs", "/tmp")  # noqa: S108


def _python_folders() -> list[Path]:
    """What Python needs to start and to import torch, outermost first, each once."""
    folders = {Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable).parent}
    folders |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders.add(Path(spec.origin).parent.parent)
    there = sorted({folder.absolute() for folder in folders if folder.is_dir()})
    return [folder for folder in there if not any(other in folder.parents for other in there)]


def _environment(threads: int) -> dict[str, str]:
    return {
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        # Without these, glibc gives every activation back to the system and faults its pages in again.
        "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MKL_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": "/tmp",  # noqa: S108  # torch insists on a folder that exists
    }


@functools.cache
def _works(confinement: Confinement) -> bool:
    """Start Python under the confinement and see that it comes up without a way out to the network."""
    probe = (
        "import os, socket; "
        "names = sorted(name for _, name in socket.if_nameindex()); "
        "raise SystemExit(0 if names in ([], ['lo']) else 3)"
    )
    try:
        done = subprocess.run(  # noqa: S603
            confinement.command(None, ["-c", probe]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(threads=1),
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def strongest() -> Confinement:
    """The strongest confinement that works here; each is tried once for real."""
    for candidate in (Confinement("bubblewrap"), Confinement("unshare")):
        if _works(candidate):
            return candidate
    return Confinement("limits")


def confinement() -> str:
    """How a model's code would be confined on this host, in words for the card."""
    return strongest().words


class Worker:
    """A running worker process, with deadlines on every exchange.

    The time that counts against the policy's ``seconds`` is the time spent waiting for the worker.

    Raises
    ------
    ModelError: from any method, once the worker has crashed, passed a limit or broken the protocol; and from
    the constructor where the policy requires a sandbox that this host cannot give.
    """

    def __init__(self, folder: Path, limits: Sandbox, confinement: Confinement | None = None) -> None:
        self.confinement = confinement or strongest()
        if limits.mode == "required" and self.confinement.kind == "limits":
            raise ModelError(
                "the policy requires a sandbox, and neither bubblewrap nor unshare works on this host",
                "install bubblewrap, or run the gate where user namespaces are allowed",
            )
        self._limits = limits
        self._memory_bytes = int(limits.memory_gib * 2**30)
        self._seconds_left = limits.seconds
        self._ended_by = ""
        self._failure: ModelError | None = None
        self._stderr = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._gone = threading.Event()
        started = threading.Event()
        # bubblewrap and the worker die with the thread that started them: this one stays until they are gone.
        self._keeper = threading.Thread(target=self._keep, args=(folder, started), daemon=True)
        self._keeper.start()
        started.wait()
        if self._process is None:
            raise ModelError(f"the model's process could not be started: {self._ended_by}")
        self._write_end: int
        self._read_end: int
        self._write_end, self._read_end = _pipes(self._process)

    @property
    def limits(self) -> Mapping[str, int]:
        """The limits that the worker puts on itself, for its first request."""
        return {
            "memory_bytes": self._memory_bytes,
            "cpu_seconds": int(self._limits.seconds * (self._limits.threads + 1)) + 60,
            "threads": self._limits.threads,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and everything it started."""
        self._failure = self._failure or ModelError("the model has been closed")
        self._kill()
        if self._gone.wait(timeout=10) and self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()

    def send(self, header: Mapping[str, Any], payload: memoryview | None = None, *, seconds: float) -> None:
        """Write one request."""
        content = json.dumps(header).encode()
        deadline = self._deadline(seconds)
        self._write(memoryview(struct.pack("<I", len(content)) + content), deadline)
        if payload is not None:
            self._write(payload, deadline)

    def receive(self, *, seconds: float) -> dict[str, Any]:
        """Read one reply's header; a reply of failure is raised."""
        deadline = self._deadline(seconds)
        prefix = bytearray(4)
        self._read(memoryview(prefix), deadline)
        (length,) = struct.unpack("<I", prefix)
        if length > MAX_HEADER_BYTES:
            raise self._broken("announced an answer of absurd size")
        content = bytearray(length)
        self._read(memoryview(content), deadline)
        try:
            header = json.loads(content)
        except (ValueError, RecursionError):
            raise self._broken("answered with something else than JSON") from None
        if not isinstance(header, dict):
            raise self._broken("answered with something else than a table")
        if header.get("ok") is not True:
            if header.get("kind") == "memory":
                raise self._fail(self._out_of_memory())
            raise self._fail(ModelError(f"the model failed: {plain(header.get('message'))}"))
        return header

    def receive_into(self, view: memoryview, *, seconds: float) -> None:
        """Read exactly as many raw bytes as ``view`` holds."""
        self._read(view, self._deadline(seconds))

    # The two ends of the pipes.

    def _deadline(self, seconds: float) -> float:
        return time.monotonic() + max(0.0, min(seconds, self._seconds_left))

    def _write(self, view: memoryview, deadline: float) -> None:
        view = view.cast("B")
        while view:
            self._wait(self._write_end, selectors.EVENT_WRITE, deadline)
            try:
                view = view[os.write(self._write_end, view[:PIPE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._ended() from None

    def _read(self, view: memoryview, deadline: float) -> None:
        while view:
            self._wait(self._read_end, selectors.EVENT_READ, deadline)
            try:
                count = os.readv(self._read_end, [view])
            except BlockingIOError:
                continue
            except OSError:
                raise self._ended() from None
            if count == 0:
                raise self._ended()
            view = view[count:]

    def _wait(self, end: int, event: int, deadline: float) -> None:
        if self._failure is not None:
            raise self._failure
        before = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(end, event)
            ready = selector.select(timeout=max(0.0, deadline - before))
        self._seconds_left -= time.monotonic() - before
        if not ready:
            self._ended_by = "time"
            raise self._ended()

    # The end of a worker, and what to say of it.

    def _ended(self) -> ModelError:
        if not self._ended_by:
            self._gone.wait(timeout=2)
        if self._ended_by == "memory":
            return self._fail(self._out_of_memory())
        if self._ended_by == "time":
            return self._fail(
                ModelError(
                    "the model did not answer in time and was stopped",
                    f"the policy gives it sandbox.seconds = {self._limits.seconds:g} in all",
                )
            )
        how = self._how_it_ended()
        said = plain(bytes(self._stderr).decode("utf-8", "replace").strip().rpartition("\n")[2])
        return self._fail(ModelError(f"the model's process {how}" + (f": {said}" if said else "")))

    def _fail(self, failure: ModelError) -> ModelError:
        """End the worker; every later exchange fails with the same words."""
        self._failure = self._failure or failure
        self.close()
        return self._failure

    def _how_it_ended(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "stopped answering"
        number = -code if code < 0 else code - 128 if code > 128 else 0
        try:
            return f"was ended by {signal.Signals(number).name}"
        except ValueError:
            return f"ended itself with exit code {code}"

    def _out_of_memory(self) -> ModelError:
        return ModelError(
            "the model asked for more memory than it may use and was stopped",
            f"the policy gives it sandbox.memory_gib = {self._limits.memory_gib:g}",
        )

    def _broken(self, what: str) -> ModelError:
        return self._fail(ModelError(f"the model's process {what}"))

    def _kill(self) -> None:
        process = self._process
        if process is None or self._gone.is_set():
            return
        for pid in [*_descendants(process.pid), process.pid]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    # The thread that starts the worker, watches its memory and reaps it.

    def _keep(self, folder: Path, started: threading.Event) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603
                self.confinement.command(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(self._limits.threads),
                bufsize=0,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            self._ended_by = error.strerror or str(error)
            started.set()
            return
        self._process = process
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        started.set()
        while process.poll() is None:
            self._drain(process.stderr)
            if _resident_bytes(process.pid) > self._memory_bytes:
                self._ended_by = self._ended_by or "memory"
                self._kill()
            # Popen.wait with a timeout would look every few milliseconds, and hold up the passes by that.
            time.sleep(WATCH_SECONDS)
        self._drain(process.stderr)
        process.stderr.close()
        self._gone.set()

    def _drain(self, stream: IO[bytes]) -> None:
        for _ in range(64):
            try:
                chunk = os.read(stream.fileno(), 1 << 16)
            except OSError:
                return
            if not chunk:
                return
            self._stderr += chunk
            del self._stderr[:-STDERR_TAIL_BYTES]


def _pipes(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    ends = process.stdin.fileno(), process.stdout.fileno()
    for end in ends:
        os.set_blocking(end, False)
        with contextlib.suppress(OSError, ImportError, AttributeError):
            import fcntl

            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return ends


def plain(text: object, limit: int = 400) -> str:
    """Text from a hostile process as one printable line."""
    shown = "".join(char if char.isprintable() else " " for char in str(text)[: 4 * limit])
    return " ".join(shown.split())[:limit]


def _descendants(pid: int) -> list[int]:
    """Every process below ``pid``, through namespaces, as this side numbers them."""
    found: list[int] = []
    pending = [pid]
    while pending:
        for task in _tasks(pending.pop()):
            try:
                children = [int(child) for child in (task / "children").read_text().split()]
            except (OSError, ValueError):
                continue
            found += children
            pending += children
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process and everything below it."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for one in [pid, *_descendants(pid)]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * page
    return total
