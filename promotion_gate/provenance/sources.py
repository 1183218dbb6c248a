"""Where the bytes of a data set are read from when they are not on this machine: its mirror or its origin.

URLs are opened by fsspec, and only those of a few schemes: fsspec itself would also run a chain of adapters
that a URL names.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from promotion_gate.core.errors import InputError, Unregistered
from promotion_gate.data.files import reading, without_credentials
from promotion_gate.provenance.hashing import FileHash

MIRROR_ONLY_VARIABLE = "PROMOTION_GATE_MIRROR_ONLY"
SCHEMES = ("http", "https", "s3", "gs", "gcs", "file")
SILENCE_SECONDS = 60
_BLOCK = 2**20


class LargerThanAllowed(InputError):
    """A file goes on after the last byte that was allowed: where its size is known, it is another file."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be fetched, in bytes, and for how long, in seconds."""

    size: int = 200 * 2**30
    seconds: float = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A file, or a folder of files, behind a URL; ``shown`` is for messages and holds no credentials."""

    fs: Any
    path: str
    shown: str
    is_http: bool

    def file(self, name: str = "") -> str:
        """The path of a file of the folder on ``fs``, or of the one file for no name."""
        if not name:
            return self.path
        return f"{self.path.rstrip('/')}/{quote(name) if self.is_http else name}"

    def blocks(self, name: str, limits: Limits) -> Iterator[bytes]:
        """The content of a file, piece by piece.

        Raises
        ------
        InputError: it cannot be read, or is larger or takes longer than the limits allow.
        """
        what = f"{self.shown} ({name!r})" if name else self.shown
        ends, left = time.monotonic() + limits.seconds, limits.size
        options = {"block_size": 0} if self.is_http else {}
        with reading(what), self.fs.open(self.file(name), "rb", **options) as file:
            while block := file.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise LargerThanAllowed(f"{what} is larger than {limits.size:,} bytes")
                if time.monotonic() > ends:
                    raise InputError(f"{what} takes longer than {limits.seconds:.0f} s to fetch")
                yield block

    def names(self) -> set[str] | None:
        """What files the folder holds, where the storage can tell; web servers cannot."""
        if self.is_http:
            return None
        base = self.path.rstrip("/") + "/"
        with reading(self.shown):
            return {path.removeprefix(base) for path in self.fs.find(self.path)}


def open_remote(url: str, *, stay: bool = False) -> Remote:
    """Make sense of a URL; nothing is read yet. With ``stay``, a web server may not send readers elsewhere.

    Raises
    ------
    InputError: its scheme is not one of :data:`SCHEMES`, or its driver is not installed.
    """
    import fsspec

    shown = without_credentials(url)
    scheme = url.split("://", 1)[0].lower() if "://" in url else ""
    if scheme not in SCHEMES or "::" in url:
        raise InputError(
            f"cannot fetch {shown!r:.200}", f"URLs are to begin with one of {', '.join(SCHEMES)}"
        )
    is_http = scheme.startswith("http")
    options: dict[str, Any] = {}
    if is_http:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE_SECONDS)
        client: dict[str, Any] = {"timeout": timeout}
        if stay:
            client["trace_configs"] = [_staying()]
        # An instance that was made without the tracing must not be found again.
        options = {"client_kwargs": client, "skip_instance_cache": stay}
    try:
        fs, path = fsspec.core.url_to_fs(unquote(url) if scheme == "file" else url, **options)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot open {shown!r:.200}: {error}") from None
    # What another part of this process listed before may have changed since.
    fs.invalidate_cache()
    return Remote(fs, path, shown, is_http)


def mirror_only() -> bool:
    """Whether ``PROMOTION_GATE_MIRROR_ONLY`` forbids everything but the mirror."""
    return os.environ.get(MIRROR_ONLY_VARIABLE, "").strip().lower() not in ("", "0", "no", "false")


def _staying() -> Any:
    """Make a client refuse to be sent to another server than the one it asked."""
    import aiohttp

    async def redirected(_: Any, __: Any, told: Any) -> None:
        location = told.response.headers.get("Location") or told.response.headers.get("URI") or ""
        there = told.url.join(type(told.url)(location))
        if (there.host, there.port) != (told.url.host, told.url.port) or there.scheme != told.url.scheme:
            raise Unregistered(
                f"{without_credentials(str(told.url)):.200} sends readers on to "
                f"{without_credentials(str(there)):.200}, and nothing but the mirror may be read",
                "let the mirror serve the files itself",
            )

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(redirected)
    return tracing


def copy_hashed(blocks: Iterable[bytes | memoryview], target: BinaryIO | None, name: str) -> FileHash:
    """Hash what goes by, and write the same bytes to ``target`` where there is one."""
    digest = hashlib.sha256()
    size = 0
    for block in blocks:
        digest.update(block)
        size += len(block)
        if target is not None:
            target.write(block)
    return FileHash(name, size, digest.hexdigest())


def file_name(place: str) -> str:
    """A plain file name for a path or URL; its suffix tells the format."""
    last = posixpath.basename(urlsplit(place).path.rstrip("/") if "://" in place else place)
    return re.sub(r"[^A-Za-z0-9._-]", "_", unquote(last)).lstrip(".")[-100:] or "data"


def fetch(url: str, folder: Path, limits: Limits) -> tuple[Path, FileHash]:
    """Fetch one file into ``folder``, hashed on the way.

    Raises
    ------
    InputError: see :meth:`Remote.blocks`.
    """
    remote = open_remote(url)
    target = folder / file_name(url)
    with target.open("xb") as file:
        return target, copy_hashed(remote.blocks("", limits), file, target.name)
