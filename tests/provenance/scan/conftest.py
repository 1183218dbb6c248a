"""What the scan's tests share: the known loaders, and a folder with a bill of materials."""

import json
from pathlib import Path

import pytest

from promotion_gate.provenance.scan.files import SourceFile, kind_of
from promotion_gate.provenance.scan.run import scan_entries
from promotion_gate.provenance.scan.sources import load_sources

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="session")
def sources():
    return load_sources()


@pytest.fixture(scope="session")
def entries_of(sources):
    """The entries of a text, by the name of a file."""

    def scan(text, name="train.py"):
        content = text if isinstance(text, bytes) else text.encode()
        return scan_entries(SourceFile(name, kind_of(name), content), sources)[0]

    return scan


def component(name, *, origin="", mirror="", sha256="a" * 64, status="vetted"):
    references = [
        {"type": kind, "url": url}
        for kind, url in (("distribution", origin), ("distribution-intake", mirror))
        if url
    ]
    return {
        "type": "data",
        "name": name,
        "version": "1",
        "hashes": [{"alg": "SHA-256", "content": sha256}] if sha256 else [],
        "externalReferences": references,
        "properties": [{"name": "promotion-gate:status", "value": status}],
    }


@pytest.fixture
def write_dbom():
    def write(path, *components):
        document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": list(components)}
        path.write_text(json.dumps(document))
        return path

    write.component = component
    return write
