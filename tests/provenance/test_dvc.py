import hashlib
import json

import pytest

from promotion_gate.core.errors import GateError, HashMismatch, InputError
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.dvc import import_dvc, read_dvc


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def folder(home):
    """``data/signs`` as DVC 3 tracks it, its list in DVC's cache."""
    root = home / "data" / "signs"
    (root / "a").mkdir(parents=True)
    contents = {"a/x.png": b"x", "b.png": b"b"}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    listing = json.dumps(
        [{"md5": md5(content), "relpath": name} for name, content in sorted(contents.items())], sort_keys=True
    ).encode()
    digest = md5(listing)
    cache = home / ".dvc" / "cache" / "files" / "md5" / digest[:2]
    cache.mkdir(parents=True)
    (cache / f"{digest[2:]}.dir").write_bytes(listing)
    (home / "data" / "signs.dvc").write_text(
        f"outs:\n- md5: {digest}.dir\n  size: 2\n  nfiles: 2\n  hash: md5\n  path: signs\n"
    )
    return root


def test_a_folder_keeps_its_md5_as_a_locator(home, folder):
    (entry,) = import_dvc(home / "dbom.json", home / "data" / "signs.dvc")
    assert (entry.name, entry.path, entry.files) == ("signs", "data/signs", 2)
    assert entry.locators["dvc-md5"].endswith(".dir")
    assert read_dbom(home / "dbom.json").entry("signs").locators == entry.locators


def test_a_changed_file_is_named(home, folder):
    (folder / "a" / "x.png").write_bytes(b"y")
    with pytest.raises(HashMismatch, match=r"data/signs/a/x\.png' changed"):
        list(import_dvc(home / "dbom.json", home / "data" / "signs.dvc"))
    for path in (home / ".dvc").rglob("*.dir"):
        path.write_text("[]")
    with pytest.raises(HashMismatch, match="'data/signs' is not what"):
        list(import_dvc(home / "dbom.json", home / "data" / "signs.dvc"))
    assert not (home / "dbom.json").exists()


def test_an_md5_of_digits_alone_is_no_number(home):
    """YAML reads one without quotes as a number, and one that begins with 0 as an octal one."""
    for digits in ("12345678901234567890123456789012", "01234567012345670123456701234567"):
        (home / "one.png.dvc").write_text(f"outs:\n- md5: {digits}\n  hash: md5\n  path: 2024\n")
        (tracked,) = read_dvc(home / "one.png.dvc")
        assert (tracked.md5, tracked.place.name) == (digits, "2024")


def test_a_lock_names_the_outputs_of_its_stages(home):
    (home / "set.csv").write_bytes(b"1")
    (home / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  get:\n    cmd: x\n    deps:\n    - path: get.py\n      md5: "
        f"{md5(b'?')}\n    outs:\n    - path: set.csv\n      hash: md5\n      md5: {md5(b'1')}\n"
    )
    assert [entry.name for entry in import_dvc(home / "dbom.json", home / "dvc.lock")] == ["set.csv"]
    (home / "set.csv").unlink()
    with pytest.raises(InputError, match="dvc pull"):
        list(import_dvc(home / "dbom.json", home / "dvc.lock", replacing=True))


def test_text_of_old_versions_is_compared_with_unix_line_ends(home):
    (home / "t.csv").write_bytes(b"a\r\nb\r\n")
    (home / "t.csv.dvc").write_text(
        f"outs:\n- md5: {md5(b'a' + bytes([10]) + b'b' + bytes([10]))}\n  path: t.csv\n"
    )
    assert [entry.name for entry in import_dvc(home / "dbom.json", home / "t.csv.dvc")] == ["t.csv"]
    (home / "t.csv").write_bytes(b"a\r\nc\r\n")
    with pytest.raises(HashMismatch, match=r"t\.csv"):
        list(import_dvc(home / "dbom.json", home / "t.csv.dvc", replacing=True))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "outs: 5",
        "outs: [{md5: x}]",
        "outs: [5]",
        "outs: [{path: x}]",
        "outs: [{path: x, md5: 7}]",
        f"outs: [{{path: ../x, md5: {'0' * 32}}}]",
        f"outs: [{{path: /etc/passwd, md5: {'0' * 32}}}]",
        f"wdir: ../..\nouts: [{{path: x, md5: {'0' * 32}}}]",
        f"outs: [{{path: missing, md5: {'0' * 32}}}]",
        "outs: !!python/object/apply:os.system ['touch planted']",
        "[" * 5000,
        "\x00",
    ],
)
def test_hostile_files_end_in_one_line(home, text):
    (home / "x.dvc").write_text(text)
    with pytest.raises(GateError) as caught:
        list(import_dvc(home / "dbom.json", home / "x.dvc"))
    assert "\n" not in str(caught.value)
    assert not (home / "planted").exists()
    assert not (home / "dbom.json").exists()
