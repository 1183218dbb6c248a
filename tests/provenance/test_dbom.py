import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from promotion_gate.core.errors import DbomError
from promotion_gate.provenance.dbom import (
    Dbom,
    DbomEntry,
    dbom_bytes,
    find_dbom,
    parse_dbom,
    read_dbom,
)
from promotion_gate.provenance.register import Particulars, add_path, remove

ENTRY = DbomEntry("signs", "1", "ab" * 32, "vetted", "ann@host", None, path="signs.npz")


def document(path):
    return json.loads(path.read_text())


def rewritten(path, change):
    """The document after ``change`` was done to its data component."""
    content = document(path)
    change(content, next(c for c in content["components"] if c["type"] == "data"))
    path.write_text(json.dumps(content))
    return path


def test_an_entry_comes_back_as_it_was_stated(registered):
    about = Particulars(
        "more",
        "2.0",
        origin="https://example.org/a%20b?id=5",
        mirror="s3://ours/sets/more",
        license="CC-BY-4.0 OR MIT",
        vetting="quarantined",
        reason="the supplier's tränslation",
        added_by="ann@host",
        locators={"dvc-md5": "0" * 32},
    )
    (registered.parent / "o n#e%?.npz").write_bytes(b"x")
    written = add_path(registered, registered.parent / "o n#e%?.npz", about)
    entry = read_dbom(registered).entry("more")
    assert entry == written
    for key in (
        "name",
        "version",
        "origin",
        "mirror",
        "license",
        "vetting",
        "reason",
        "added_by",
        "locators",
    ):
        assert getattr(entry, key) == getattr(about, key), key
    assert entry.path == "o n#e%?.npz"
    assert (entry.files, entry.size, entry.is_folder) == (1, 1, False)
    assert read_dbom(registered).entry("signs").license == "CC0-1.0"


def test_the_bytes_follow_from_the_content(registered):
    dbom = read_dbom(registered)
    one, two = (document_without_time(dbom_bytes(dbom)) for _ in range(2))
    assert one == two == document_without_time(registered.read_bytes())
    changed = replace(dbom, entries={"signs": replace(dbom.entry("signs"), version="2")})
    assert json.loads(dbom_bytes(changed))["serialNumber"] != one["serialNumber"]


def document_without_time(content):
    found = json.loads(content)
    assert list(found)[:4] == ["$schema", "bomFormat", "specVersion", "serialNumber"]
    del found["metadata"]["timestamp"]
    return found


def test_what_others_wrote_stays(registered):
    def change(content, component):
        content["components"].append({"type": "library", "name": "torch"})
        content["metadata"]["authors"] = [{"name": "Ann"}]
        content["annotations"].append(
            {
                "subjects": ["data:signs"],
                "annotator": {"individual": {"name": "bob"}},
                "timestamp": "2026-01-01T00:00:00Z",
                "text": "looked at again",
            }
        )
        component["description"] = "by hand"
        component["properties"].append({"name": "team:owner", "value": "vision"})
        component["externalReferences"].append({"type": "documentation", "url": "https://example.org/doc"})
        component["data"][0]["governance"] = {"owners": [{"contact": {"name": "Ann"}}]}

    rewritten(registered, change)
    (registered.parent / "one.npz").write_bytes(b"x")
    add_path(registered, registered.parent / "one.npz", Particulars("one", "1"))
    content = document(registered)
    assert {"type": "library", "name": "torch"} in content["components"]
    assert content["metadata"]["authors"] == [{"name": "Ann"}]
    (signs,) = (c for c in content["components"] if c["name"] == "signs")
    assert signs["description"] == "by hand"
    assert {"name": "team:owner", "value": "vision"} in signs["properties"]
    assert {"type": "documentation", "url": "https://example.org/doc"} in signs["externalReferences"]
    assert signs["data"][0]["governance"]["owners"]
    assert signs["data"][0]["contents"] == {"url": "signs"}
    assert read_dbom(registered).entry("signs").added_by == "bob"


def test_a_data_component_of_another_tool_is_quarantined(registered):
    def change(content, component):
        component.clear()
        component |= {
            "type": "data",
            "name": "signs",
            "externalReferences": [{"type": "evidence", "url": "https://example.org/report"}],
            "data": [{"type": "dataset", "contents": {"url": "https://example.org/set"}}],
        }

    entry = read_dbom(rewritten(registered, change)).entry("signs")
    assert (entry.vetting, entry.sha256, entry.sidecar, entry.path) == ("quarantined", "", "", "")


def put(key, value):
    return lambda content, component: component.__setitem__(key, value)


def twice(content, component):
    content["components"].append(component | {"bom-ref": "other", "name": "SIGNS"})


def two_checksums(content, component):
    component["hashes"].append({"alg": "SHA-256", "content": "cd" * 32})


def two_states(content, component):
    component["properties"].insert(0, {"name": "promotion-gate:status", "value": "quarantined"})


def lead_out(url):
    return put("data", [{"type": "dataset", "contents": {"url": url}}])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("surprise", 1), "surprise"),
        (put("type", "dataset"), "type"),
        (put("name", 5), "name"),
        (put("hashes", [{"alg": "SHA-256", "content": "zz"}]), "hashes"),
        (put("name", "../signs"), "malformed name"),
        (put("name", "signs\n"), "malformed name"),
        (lead_out("../../etc"), "leads upwards"),
        (lead_out("%2e%2e/etc"), "leads upwards"),
        (lead_out("/etc/passwd"), "absolute"),
        (lead_out("%2Fetc"), "absolute"),
        (lead_out("a//b"), "plain form"),
        (twice, "more than one"),
        (two_checksums, "two SHA-256"),
        (two_states, "twice"),
        (put("properties", [{"name": "promotion-gate:files", "value": "1e9"}]), "not a number"),
        (lambda content, _: content.__setitem__("specVersion", "1.4"), "1.6"),
        (lambda content, _: content["annotations"][0].__setitem__("timestamp", "soon"), "not a .*time"),
    ],
)
def test_a_document_that_misleads_is_refused(registered, change, said):
    with pytest.raises(DbomError, match=said):
        read_dbom(rewritten(registered, change))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"specVersion": "1.6"}',
        b'{"specVersion": "1.6", "specVersion": "1.6"}',
        b'{"specVersion": NaN}',
        b"[" * 100_000,
        b'{"specVersion": "1.6", "bomFormat": "CycloneDX", "components": [' + b'{"components": [' * 400,
    ],
)
def test_what_is_no_document_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(DbomError, match="dbom") as caught:
        parse_dbom(content, tmp_path / "dbom.json")
    assert "\n" not in str(caught.value)


def nested(depth):
    inside = {"type": "library", "name": "x"}
    for _ in range(depth):
        inside = {"type": "library", "name": "x", "components": [inside]}
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [inside]}


def test_a_deeply_nested_document_is_refused(tmp_path):
    with pytest.raises(DbomError, match="nested too deeply"):
        parse_dbom(json.dumps(nested(400)).encode(), tmp_path / "dbom.json")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "a/b", "not a name"),
        ("name", "", "not a name"),
        ("version", "", "no version"),
        ("version", "1\u202e", "cannot be shown"),
        ("sha256", "AB" * 32, "SHA-256"),
        ("path", "../x", "upwards"),
        ("origin", "https://ann:secret@example.org/x", "password"),
        ("origin", "https://example.org/x?X-Amz-Signature=1", "password or signature"),
        ("origin", "just words", "not a URL"),
        ("mirror", "s3://b/x?sig=abc", "password or signature"),
        ("mirror", "s3://b/ü", "not a URL"),
    ],
)
def test_what_cannot_be_stated_is_refused(tmp_path, field, value, said):
    entry = replace(ENTRY, **{field: value})
    with pytest.raises(DbomError, match=said) as caught:
        dbom_bytes(Dbom(tmp_path / "dbom.json", {entry.name: entry}))
    assert "secret" not in str(caught.value)


def test_a_pipe_in_its_place_is_refused(tmp_path):
    os.mkfifo(tmp_path / "dbom.json")
    with pytest.raises(DbomError):
        read_dbom(tmp_path / "dbom.json")


def test_it_is_found_here_or_above_or_where_the_variable_says(registered, signs, monkeypatch):
    assert find_dbom(start=signs / "a b") == registered
    monkeypatch.setenv("PROMOTION_GATE_DBOM", "elsewhere.json")
    assert find_dbom() == registered.parent / "elsewhere.json"
    assert find_dbom("given.json") == registered.parent / "given.json"


def test_two_writers_at_once_lose_nothing(home):
    code = """
import sys
from pathlib import Path
from promotion_gate.provenance.register import Particulars, add_path
for i in range(4):
    name = f"{sys.argv[1]}{i}"
    Path(name).write_text(name)
    add_path(Path("dbom.json"), Path(name), Particulars(name, "1"))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(read_dbom(home / "dbom.json").entries) == sorted(f"{c}{i}" for c in "ab" for i in range(4))


def test_a_refused_change_leaves_the_document_as_it_was(registered, signs):
    before = registered.read_bytes()
    sidecar = registered.parent / "dbom.d" / "signs.sha256"
    listing = sidecar.read_bytes()
    (signs / "plain.png").write_text("changed")
    for about, replacing in (
        (Particulars("signs", "2"), False),
        (Particulars("signs", "", origin="https://example.org"), True),
        (Particulars("signs", "2", origin="no url"), True),
    ):
        with pytest.raises(DbomError):
            add_path(registered, signs, about, replacing=replacing)
    assert registered.read_bytes() == before
    assert sidecar.read_bytes() == listing
    assert not [path for path in registered.parent.iterdir() if path.name.startswith(".")]


def test_replaced_and_removed(registered, signs):
    (signs / "plain.png").write_text("changed")
    old = read_dbom(registered).entry("signs")
    new = add_path(registered, signs, Particulars("signs", "2"), replacing=True)
    assert (new.version, new.sha256 == old.sha256) == ("2", False)
    assert read_dbom(registered).sidecar(new)
    remove(registered, "signs")
    assert not read_dbom(registered).entries
    assert not (registered.parent / "dbom.d" / "signs.sha256").exists()
    with pytest.raises(DbomError, match="no data set 'signs'"):
        remove(registered, "signs")


def test_data_elsewhere_is_refused_unless_it_is_linked_in(registered, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "x").write_text("x")
    for place in (outside, registered.parent / "..", registered.parent):
        with pytest.raises(DbomError, match="does not lie below"):
            add_path(registered, place, Particulars("out", "1"))
    (registered.parent / "linked").symlink_to(outside)
    assert add_path(registered, registered.parent / "linked", Particulars("out", "1")).path == "linked"
