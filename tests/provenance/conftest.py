"""A folder with a bill of materials and a data set of awkward names."""

import pytest

from promotion_gate.provenance.register import Particulars, add_path

AWKWARD = (
    "plain.png",
    "a b/sp ace.png",
    "a b/new\nline",
    "back\\slash",
    "cr\r",
    "\\n",
    "*star",
    " lead",
    "ü/ß",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROMOTION_GATE_DBOM", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def signs(home):
    """``signs/``: files whose names need escaping, each holding its own name."""
    root = home / "signs"
    for name in AWKWARD:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def registered(signs):
    """The path of a document in which ``signs`` is registered."""
    dbom = signs.parent / "dbom.json"
    add_path(dbom, signs, Particulars("signs", "1", origin="https://example.org/signs", license="CC0-1.0"))
    return dbom
