"""Which data sets are registered: the bill of materials, as far as the scan needs it.

Read tolerantly from any CycloneDX document: a scan in an editor or a commit hook is no place to validate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from promotion_gate.core.errors import UsageError
from promotion_gate.provenance.scan.address import host, within
from promotion_gate.provenance.scan.entry import HOLE, Entry

_MAX_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class RegisteredSet:
    """A data set of the bill: its name, addresses, SHA-256 (empty without one), and whether it is vetted."""

    name: str
    origins: Sequence[str] = ()
    mirrors: Sequence[str] = ()
    sha256: str = ""
    vetted: bool = False


class Registered(Protocol):
    """The data sets that somebody has registered."""

    def find(self, entry: Entry) -> RegisteredSet | None:
        """The data set that enters there, if it is registered."""

    def is_mirror(self, url: str) -> bool:
        """Whether an address is a mirror of a registered data set."""


@dataclass(frozen=True, slots=True)
class RegisteredSets:
    """Data sets matched by address or name.

    An entry whose address is known is matched by the address alone: a name can be chosen by anybody. A set on
    a hub is matched by its page, else by its name, unless the set of that name was taken from another page of
    the same hub.
    """

    sets: Sequence[RegisteredSet] = ()

    def find(self, entry: Entry) -> RegisteredSet | None:
        if entry.kind == "verified load":
            return next((s for s in self.sets if s.name == entry.dataset), None)
        address = entry.url if entry.url.strip(HOLE + "/") else ""
        if address:
            return next((s for s in self.sets if _holds(s, address)), None)
        if entry.home:
            found = next((s for s in self.sets if _holds(s, entry.home)), None)
            if found is not None:
                return found
        wanted = _plain_name(entry.dataset)
        if not wanted or "/" in entry.dataset or HOLE in entry.dataset:
            return None
        return next(
            (s for s in self.sets if _plain_name(s.name) == wanted and not _elsewhere(s, entry.home)), None
        )

    def is_mirror(self, url: str) -> bool:
        return any(within(url, mirror) for s in self.sets for mirror in s.mirrors)


def _holds(registered: RegisteredSet, address: str) -> bool:
    return any(within(address, place) for place in (*registered.origins, *registered.mirrors))


def _elsewhere(registered: RegisteredSet, home: str) -> bool:
    return bool(home) and any(host(origin) == host(home) for origin in registered.origins)


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def read_registered(path: Path) -> RegisteredSets:
    """The data sets of a CycloneDX document.

    Raises
    ------
    UsageError: missing, unreadable, or no CycloneDX JSON.
    """
    try:
        if not path.is_file():
            raise UsageError(f"no bill of materials at {path}", "name it with --dbom")
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: no bill of materials")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}"[:300]) from None
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        raise UsageError(f"{path} is no CycloneDX document", "'promotion-gate dbom add' writes one")
    components = document.get("components")
    found = (
        [_registered(c) for c in components if isinstance(c, dict)] if isinstance(components, list) else []
    )
    return RegisteredSets([s for s in found if s is not None])


def _registered(component: dict[str, Any]) -> RegisteredSet | None:
    name = component.get("name")
    if component.get("type") != "data" or not isinstance(name, str) or not name:
        return None
    references = _dicts(component.get("externalReferences"))
    digests = [
        digest.get("content")
        for digest in _dicts(component.get("hashes"))
        if str(digest.get("alg", "")).upper().replace("_", "-") == "SHA-256"
    ]
    sha256 = next((d.lower() for d in digests if isinstance(d, str) and _SHA256.fullmatch(d)), "")
    status = [
        str(prop.get("value", ""))
        for prop in _dicts(component.get("properties"))
        if str(prop.get("name", "")).endswith(":status")
    ]
    return RegisteredSet(
        name,
        _urls(references, ("distribution",)),
        _urls(references, ("distribution-intake",)),
        sha256,
        status == ["vetted"],
    )


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _urls(references: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    urls = [reference.get("url") for reference in references if reference.get("type") in kinds]
    return [url for url in urls if isinstance(url, str) and url]
