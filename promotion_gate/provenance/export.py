"""Entries of the bill of materials in the formats that other tools read."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from promotion_gate.provenance.dbom import Dbom, DbomEntry, dbom_bytes

FORMATS = ("cyclonedx", "spdx", "croissant")
SPDX_CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
CROISSANT = "http://mlcommons.org/croissant/1.0"


def export(dbom: Dbom, entries: Sequence[DbomEntry], form: str, at: datetime | None = None) -> bytes:
    """The entries as one document: ``cyclonedx`` 1.6, ``spdx`` 3.0.1 or ``croissant`` 1.0, all JSON.

    A Croissant document describes one data set, so that of several is a list.

    Raises
    ------
    DbomError: a list of files is missing or malformed.
    """
    moment = (at or datetime.now(UTC)).astimezone(UTC)
    if form == "cyclonedx":
        return dbom_bytes(replace(dbom, entries={entry.name: entry for entry in entries}), moment)
    if form == "spdx":
        return _json(spdx_document(dbom, entries, moment))
    described = [croissant_document(dbom, entry) for entry in entries]
    return _json(described[0] if len(described) == 1 else described)


def spdx_document(dbom: Dbom, entries: Sequence[DbomEntry], at: datetime) -> dict[str, Any]:
    """SPDX 3.0.1 in JSON-LD with a ``dataset_DatasetPackage`` for each entry (dataset profile)."""
    base = f"urn:spdx:promotion-gate:{dbom.sha256 or 'unwritten'}"
    info, tool = "_:creation", f"{base}#promotion-gate"
    graph: list[dict[str, Any]] = []
    roots = []
    for entry in entries:
        element = f"{base}#{entry.name}"
        roots.append(element)
        person = f"{element}-added-by"
        graph.append(_element("Person", person, info, name=entry.added_by or "nobody named"))
        graph.append(_dataset_package(entry, element, person, info, at))
        graph += _spdx_license(entry, element, info)
    creation = {
        "type": "CreationInfo",
        "@id": info,
        "specVersion": "3.0.1",
        "created": _utc(at),
        "createdBy": [tool],
    }
    document = _element(
        "SpdxDocument",
        f"{base}#document",
        info,
        name=dbom.path.name,
        profileConformance=["core", "software", "dataset", "simpleLicensing"],
        rootElement=roots,
    )
    agent = _element("SoftwareAgent", tool, info, name="promotion-gate")
    return {"@context": SPDX_CONTEXT, "@graph": [creation, agent, document, *graph]}


def _dataset_package(entry: DbomEntry, element: str, person: str, info: str, at: datetime) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": entry.name,
        "software_packageVersion": entry.version,
        "software_primaryPurpose": "data",
        "dataset_datasetType": ["image"],
        "dataset_datasetSize": entry.size,
        "builtTime": _utc(entry.added_at or at),
        "releaseTime": _utc(entry.added_at or at),
        "originatedBy": [person],
        "suppliedBy": person,
        "comment": entry.vetting + (f": {entry.reason}" if entry.reason else ""),
    }
    if entry.sha256:
        facts["verifiedUsing"] = [{"type": "Hash", "algorithm": "sha256", "hashValue": entry.sha256}]
    if location := entry.mirror or entry.origin:
        facts["software_downloadLocation"] = location
    return _element("dataset_DatasetPackage", element, info, **facts)


def _spdx_license(entry: DbomEntry, element: str, info: str) -> list[dict[str, Any]]:
    if not entry.license:
        return []
    expression = f"{element}-license"
    kind = "simplelicensing_LicenseExpression"
    text = {"simplelicensing_licenseExpression": entry.license}
    if not _is_spdx(entry.license):
        kind = "simplelicensing_SimpleLicensingText"
        text = {"simplelicensing_licenseText": entry.license}
    relation = {"from": element, "to": [expression], "relationshipType": "hasDeclaredLicense"}
    return [
        _element(kind, expression, info, **text),
        _element("Relationship", f"{element}-licensed", info, **relation),
    ]


def _is_spdx(text: str) -> bool:
    from cyclonedx.spdx import is_expression, is_supported_id

    return bool(is_supported_id(text) or (" " in text and is_expression(text)))


def _element(kind: str, identity: str, info: str, **facts: Any) -> dict[str, Any]:
    return {"type": kind, "spdxId": identity, "creationInfo": info, **facts}


def croissant_document(dbom: Dbom, entry: DbomEntry) -> dict[str, Any]:
    """Croissant 1.0 of one data set: every file with its SHA-256."""
    files = dbom.sidecar(entry)[1] if entry.is_folder else {"": entry.sha256}
    base = entry.mirror or (entry.path and quote(entry.path)) or entry.origin
    facts: dict[str, Any] = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CROISSANT,
        "name": entry.name,
        "description": entry.reason or f"{entry.name} {entry.version}",
        "version": entry.version,
        "creator": {"@type": "sc:Person", "name": entry.added_by or "nobody named"},
        "distribution": [_file_object(entry, base, path, digest) for path, digest in files.items()],
    }
    if entry.added_at:
        facts["datePublished"] = _utc(entry.added_at)
    if entry.license:
        facts["license"] = _license_url(entry.license)
    facts["url"] = entry.origin or entry.mirror or f"urn:sha256:{entry.sha256}"
    return facts


def _file_object(entry: DbomEntry, base: str, path: str, digest: str) -> dict[str, Any]:
    name = path or base.rstrip("/").rsplit("/", 1)[-1] or entry.name
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    found: dict[str, Any] = {
        "@type": "cr:FileObject",
        "@id": f"{entry.name}/{quote(path)}" if path else entry.name,
        "name": name,
        "contentUrl": f"{base.rstrip('/')}/{quote(path)}" if path else base,
        "encodingFormat": kind,
    }
    return found | ({"sha256": digest} if digest else {})


def _license_url(text: str) -> str:
    return f"https://spdx.org/licenses/{text}.html" if " " not in text and _is_spdx(text) else text


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode("ascii")


_CROISSANT_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context of the format's specification."""
