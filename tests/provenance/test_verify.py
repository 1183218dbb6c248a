import os
import re
import shutil
from pathlib import Path

import pytest

from promotion_gate.cli import main
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.register import Particulars, add_path
from promotion_gate.provenance.verify import coverage, verify_local


@pytest.fixture
def check(registered):
    def check_(name="signs"):
        dbom = read_dbom(registered)
        return verify_local(dbom, dbom.entry(name))

    return check_


def test_untouched_data_is_verified(check):
    assert check().verified
    assert check().differences == []


def test_every_difference_is_named(check, signs):
    (signs / "plain.png").write_text("plain.pnG")
    (signs / "ü" / "ß").unlink()
    (signs / "a b" / "added").touch()
    assert check().differences == ["changed: 'plain.png'", "missing: 'ü/ß'", "extra: 'a b/added'"]
    assert not check().verified


def test_a_link_is_a_problem_and_no_crash(check, signs):
    (signs / "odd").symlink_to("/etc")
    assert "'odd' is a link out of the folder" in check().problem


def test_a_changed_list_of_files_vouches_for_nothing(check, registered, signs):
    """Somebody who changes data and list but not the entry must not get through."""
    sidecar = registered.parent / "dbom.d" / "signs.sha256"
    sidecar.write_bytes(b"\n".join(sidecar.read_bytes().split(b"\n")[1:]))
    assert "not the list" in check().problem
    sidecar.unlink()
    assert "no such file" in check().problem


def test_a_file_with_the_bytes_of_the_list_is_not_the_folder(check, registered, signs):
    content = (registered.parent / "dbom.d" / "signs.sha256").read_bytes()
    signs.rename(signs.with_name("away"))
    signs.write_bytes(content)
    assert "is a file, and the entry speaks of a folder" in check().problem


def test_data_that_is_not_here_is_not_verified(check, signs):
    signs.rename(signs.with_name("away"))
    assert "not on this machine" in check().problem
    assert not check().verified


def test_a_set_without_a_place_here_is_verified_at_its_mirror(registered, signs, tmp_path_factory, capsys):
    mirror = tmp_path_factory.mktemp("mirror") / "signs"
    add_path(registered, signs, Particulars("signs", "1", mirror=mirror.as_uri()), replacing=True)
    signs.rename(mirror)
    assert main(["dbom", "verify"]) == 0
    said = capsys.readouterr()
    assert f"verified, 9 files, 65 bytes, at {mirror.as_uri()}" in said.out
    assert said.err == "", "nothing to tell of short work"
    for more in ([], ["--mirror"]):
        assert main(["dbom", "coverage", "--min", "100", *more]) == 0
        assert "100.0 % (1 of 1" in capsys.readouterr().out
    (mirror / "plain.png").write_text("changed")
    assert main(["dbom", "verify", "--quiet"]) == 3
    assert "changed: 'plain.png'" in capsys.readouterr().out


def test_a_set_that_is_nowhere_is_said_to_be(registered, signs, capsys):
    signs.rename(signs.with_name("away"))
    assert main(["dbom", "verify", "--quiet"]) == 3
    said = capsys.readouterr().out
    assert "not on this machine ('signs'), and the entry names no mirror" in said
    assert "put it there again from https://example.org/signs" in said


def test_what_was_fetched_from_a_url_is_verified_in_the_cache(home, tmp_path_factory, capsys):
    there = tmp_path_factory.mktemp("web") / "x.png"
    there.write_bytes(b"one")
    assert main(["dbom", "add", there.as_uri(), "--name", "web", "--version", "1", "--quiet"]) == 0
    said = capsys.readouterr().out
    copy = Path(re.search(r"look at (\S+), then: promotion-gate dbom vet web", said)[1])
    assert copy.read_bytes() == b"one"
    there.unlink()
    assert main(["dbom", "verify", "--quiet"]) == 0
    assert "verified, 1 file, 3 bytes; quarantined" in capsys.readouterr().out
    shutil.rmtree(home / "cache")
    assert main(["dbom", "verify", "--quiet"]) == 3
    said = capsys.readouterr().out
    assert "not on this machine, and the entry names no mirror" in said
    assert f"dbom add {there.as_uri()} --name web" in said


def test_what_is_quarantined_is_not_covered(registered, signs, capsys):
    add_path(registered, signs, Particulars("signs", "1", vetting="quarantined"), replacing=True)
    assert main(["dbom", "coverage", "--min", "100", "--quiet"]) == 3
    said = capsys.readouterr().out
    assert "quarantined: signs 1" in said
    assert "0.0 % (0 of 1" in said


def test_coverage_counts_bytes_and_what_has_no_entry(registered, signs):
    (registered.parent / "one.npz").write_bytes(b"x")
    add_path(registered, registered.parent / "one.npz", Particulars("one", "1"))
    dbom = read_dbom(registered)
    checks = [verify_local(dbom, entry) for entry in dbom.entries.values()]
    assert coverage(checks).percent == 100
    assert coverage(checks, ["train.py:3 torchvision CIFAR10", "x", "x"]).percent == 50
    (signs / "plain.png").write_text("changed")
    checks = [verify_local(dbom, entry) for entry in dbom.entries.values()]
    assert coverage(checks).percent == 50
    assert coverage([]).percent == 100


def test_the_commands(registered, signs, capsys):
    assert main(["dbom", "verify", "--quiet"]) == 0
    assert main(["dbom", "coverage", "--min", "100", "--quiet"]) == 0
    assert "100.0 % (1 of 1" in capsys.readouterr().out
    (signs / "a b" / "new\nline").write_text("changed")
    assert main(["dbom", "verify", "signs", "--quiet"]) == 3
    assert r"changed: 'a b/new\nline'" in capsys.readouterr().out
    assert main(["dbom", "coverage", "--quiet"]) == 0
    assert main(["dbom", "coverage", "--min", "0.1", "--quiet"]) == 3
    assert main(["dbom", "verify", "other", "--quiet"]) == 2
    os.chdir(signs / "ü")
    assert main(["dbom", "list"]) == 0
    assert "signs 1: vetted, 9 files" in capsys.readouterr().out
    assert main(["dbom", "list", "--json"]) == 0
    assert main(["dbom", "remove", "signs"]) == 0
    os.chdir(registered.parent)
    (registered.parent / "new").write_text("x")
    assert main(["dbom", "add", "new", "--name", "new", "--version", "1", "--quiet"]) == 0
    assert main(["dbom", "add", "new", "--name", "new", "--version", "1", "--quiet"]) == 2
    assert "--replace" in capsys.readouterr().err


def test_coverage_counts_what_the_code_brings_in(registered, capsys):
    (registered.parent / "train.py").write_text(
        "from torchvision.datasets import CIFAR10, GTSRB\n"
        "CIFAR10('data', download=True)\n"
        "GTSRB('data', download=True)  # promotion-gate: allow a smoke test, never trained on\n"
    )
    assert main(["dbom", "coverage", "--code", ".", "--min", "100", "--quiet"]) == 3
    said = capsys.readouterr().out
    assert "not registered: train.py:2: " in said
    assert "checksum coverage: 50.0 % (1 of 2 data sets)" in said
