"""Addresses: which are remote, whether they name a fixed version, and whether they end in data."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from promotion_gate.provenance.scan.entry import HOLE, Answer, Known

SCHEMES = frozenset(
    [
        "http",
        "https",
        "ftp",
        "ftps",
        "sftp",
        "s3",
        "s3a",
        "s3n",
        "gs",
        "gcs",
        "az",
        "azure",
        "abfs",
        "abfss",
        "adl",
        "wasb",
        "wasbs",
        "hdfs",
        "webhdfs",
        "hf",
        "git",
        "github",
        "git+https",
        "git+ssh",
        "ssh",
        "scp",
        "dropbox",
        "gdrive",
        "oss",
        "obs",
        "cos",
        "oci",
        "r2",
        "b2",
        "swift",
        "kaggle",
        "lakefs",
        "ipfs",
    ]
)
FLOATING_WORDS = frozenset(
    [
        "latest",
        "main",
        "master",
        "head",
        "nightly",
        "dev",
        "develop",
        "trunk",
        "stable",
        "current",
        "default",
        "production",
        "staging",
    ]
)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?:[0-9a-f]{24})?(?![0-9a-f])")
_VERSION = re.compile(
    r"(?:^|[/_=@-])v?\d+\.\d+(?:\.\d+)*(?=$|[/._&-])|(?:^|/)v\d+(?=/)|/versions?/\d+|/releases?/download/",
    re.I,
)
_VERSION_QUERY = re.compile(r"[?&](?:versionId|generation|sha256|checksum|rev|version)=[^&]+", re.I)
_LOCAL_HOSTS = re.compile(r"localhost|127(?:\.\d+){3}|::1|0\.0\.0\.0|host\.docker\.internal")
_PRIVATE_HOSTS = re.compile(
    r"10(?:\.\d+){3}|192\.168(?:\.\d+){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d+){2}"
    r"|.*\.(?:internal|local|lan|corp|svc)|[^.]+"
)


def unchained(address: str) -> str:
    """The address inside fsspec's chains (``simplecache::https://…``) and WebDataset's pipes."""
    return address.strip().rpartition("::")[2] if "://" in address.rpartition("::")[2] else address.strip()


def scheme(address: str) -> str:
    """The scheme in lower case, or nothing."""
    match = _SCHEME.match(unchained(address))
    return match[1].lower() if match else ""


def is_remote(address: str) -> bool:
    """Whether this is certainly an address on another machine."""
    return scheme(address) in SCHEMES or address.startswith("pipe:")


def find_address(text: str) -> str:
    """The first remote address in a text, or nothing."""
    for match in _SCHEME.finditer(text):
        if match[1].lower() in SCHEMES:
            return re.split(r"[\s'\"<>|`]", text[match.start() :], maxsplit=1)[0]
    return ""


def host(address: str) -> str:
    """The host in lower case, or nothing."""
    try:
        return urlsplit(unchained(address)).hostname or ""
    except ValueError:
        return ""


def is_local_host(address: str) -> bool:
    """Whether the address is this very machine."""
    return bool(_LOCAL_HOSTS.fullmatch(host(address)))


def is_private_host(address: str) -> bool:
    """Whether an address of the web lies in a private net, as far as its name tells."""
    if scheme(address) not in ("http", "https", "ftp", "sftp", "ssh", "scp"):
        return False
    name = host(address)
    return HOLE not in name and bool(name) and bool(_PRIVATE_HOSTS.fullmatch(name))


def has_suffix(address: str, suffixes: Sequence[str]) -> bool:
    """Whether the address's path ends in one of the suffixes."""
    try:
        path = urlsplit(unchained(address)).path
    except ValueError:
        return False
    return path.lower().rstrip("/").endswith(tuple(suffixes))


def is_floating(word: str) -> bool:
    """Whether a revision is a branch's name or the like, which can point elsewhere tomorrow."""
    return word.strip().lower().removeprefix("refs/heads/") in FLOATING_WORDS


def pin_of_revision(revision: str) -> Answer:
    """What an explicit revision, version or tag pins."""
    if not revision or revision == HOLE:
        return Answer(Known.UNKNOWN, "the revision is set at run time")
    if is_floating(revision) or "*" in revision:
        return Answer(Known.NO, f"the revision {revision!r:.80} moves")
    if HOLE in revision:
        return Answer(Known.UNKNOWN, "the revision is set at run time")
    if _COMMIT.fullmatch(revision):
        return Answer(Known.YES, "a commit")
    return Answer(Known.YES, f"version {revision!r:.80}")


def pin_of_address(address: str) -> Answer:
    """What an address by itself pins: a commit, a version, or nothing."""
    if not address:
        return Answer(Known.UNKNOWN, "the address is not known")
    if _COMMIT.search(address):
        return Answer(Known.YES, "a commit or digest in the address")
    words = re.split(r"[/?&=@:]", address)
    moving = next((word for word in words if is_floating(word.split(".")[0])), None)
    if moving is not None:
        return Answer(Known.NO, f"{moving!r:.80} in the address moves")
    if _VERSION_QUERY.search(address):
        return Answer(Known.YES, "a version in the address")
    try:
        path = urlsplit(unchained(address)).path
    except ValueError:
        path = ""
    if _VERSION.search(path):
        return Answer(Known.YES, "a version in the address")
    if HOLE in address:
        return Answer(Known.UNKNOWN, "a part of the address is set at run time")
    return Answer(Known.NO, "no version in the address")


def normal(address: str) -> tuple[str, str, str, str]:
    """Scheme, host, path and query for comparison: decoded once, without dots, user and default port."""
    try:
        parts = urlsplit(unchained(address))
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return ("", "", address, "")
    if port is not None and (parts.scheme.lower(), port) not in (("http", 80), ("https", 443)):
        name = f"{name}:{port}"
    kind = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}.get(parts.scheme.lower(), parts.scheme.lower())
    decoded = unquote(parts.path)
    path = posixpath.normpath(decoded) if decoded.strip("/") else ""
    return kind, name, "/" + path.lstrip("/") if path else "", parts.query


def within(address: str, place: str) -> bool:
    """Whether ``address`` is ``place`` or lies under it; a run-time part lies under what precedes it."""
    kind, name, path, query = normal(address)
    of_kind, of_name, of_path, of_query = normal(place)
    if (kind, name) != (of_kind, of_name) or not name or HOLE in name:
        return False
    if path == of_path:
        return query == of_query
    if of_query or query or (not of_path and kind in ("http", "https", "ftp")):
        return False
    return path.startswith(f"{of_path}/")
