"""Data on its way in: quarantine, a person's word, the mirror, the bill of materials."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from promotion_gate.cli import main
from promotion_gate.core.errors import HashMismatch
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.load import verified_copy, verify_mirror
from promotion_gate.vendoring import DECISIONS, quarantine_folder, read_record


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PROMOTION_GATE_QUARANTINE", "PROMOTION_GATE_DBOM", "PROMOTION_GATE_MIRROR_ONLY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def archive(tmp_path):
    """A zip of two classes of images, and its URL."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "signs.zip", "w") as packed:
        for label in ("stop", "yield"):
            for i in range(6):
                image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
                image.save(tmp_path / "one.png")
                packed.write(tmp_path / "one.png", f"signs/{label}/{i}.png")
    return (tmp_path / "signs.zip").as_uri()


def run(capsys, *arguments):
    code = main(["vendor", *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def fetch(capsys, archive, place, *more, name="signs"):
    to = (place / "mirror").as_uri()
    return run(capsys, archive, "--name", name, "--to", to, "--license", "CC0-1.0", "--quiet", *more)


def mirrored(place):
    return sorted(str(p.relative_to(place)) for p in (place / "mirror").rglob("*") if p.is_file())


def test_nothing_reaches_the_mirror_before_a_person_says_so(archive, place, capsys):
    code, said, _ = fetch(capsys, archive, place)
    assert code == 4, said
    assert "a person decides: promotion-gate vendor approve signs" in said
    record, folder = read_record("signs")
    assert (record.state, record.files) == ("waiting", 12)
    assert (folder / "contact-sheet.html").stat().st_size > 1000
    assert (folder / "validation.html").stat().st_size > 1000
    assert not mirrored(place)
    assert not (place / "dbom.json").exists()

    code, said, _ = run(capsys, "approve", "signs", "--reason", "looked at by Ada", "--quiet")
    assert code == 0, said
    dbom = read_dbom(place / "dbom.json")
    entry = dbom.entry("signs")
    assert (entry.vetting, entry.origin, entry.license) == ("vetted", archive, "CC0-1.0")
    assert entry.mirror == f"{(place / 'mirror').as_uri()}/sha256/{entry.sha256}"
    assert len(mirrored(place)) == 12
    assert verify_mirror(dbom, entry).verified
    assert not folder.exists()
    (decided,) = (quarantine_folder() / DECISIONS).read_text().splitlines()
    assert json.loads(decided)["reason"] == "looked at by Ada"


def test_what_was_vendored_is_loaded_from_the_mirror_alone(archive, place, capsys, monkeypatch):
    fetch(capsys, archive, place)
    run(capsys, "approve", "signs", "--reason", "fine", "--quiet")
    (place / "signs.zip").unlink()
    monkeypatch.setenv("PROMOTION_GATE_MIRROR_ONLY", "1")
    dbom = read_dbom(place / "dbom.json")
    copy = verified_copy(dbom, dbom.entry("signs"))
    assert sorted(p.name for p in copy.iterdir()) == ["stop", "yield"]


def test_a_rejected_set_is_gone_and_never_was_in_the_mirror(archive, place, capsys):
    fetch(capsys, archive, place)
    code, said, _ = run(capsys, "reject", "signs", "--reason", "no licence for one class")
    assert code == 0
    assert "none reached a mirror" in said
    assert not mirrored(place)
    assert not (place / "dbom.json").exists()
    assert run(capsys, "list")[1] == "nothing is in quarantine\n"


def reject(capsys, name="signs"):
    assert run(capsys, "reject", name, "--reason", "poisoned")[0] == 0


def test_what_was_rejected_comes_again_only_for_a_reason(archive, place, capsys):
    fetch(capsys, archive, place)
    reject(capsys)
    code, _, said = fetch(capsys, archive, place, name="other")
    assert code == 3
    assert "was rejected as signs" in said
    assert "poisoned" in said
    assert "--again-because" in said
    assert not (quarantine_folder() / "other").exists()
    assert fetch(capsys, archive, place, "--again-because", " ", name="other")[0] == 3
    assert fetch(capsys, archive, place, "--again-because", "it was another set", name="other")[0] == 4
    assert "again, because: it was another set" in run(capsys, "list")[1]
    assert run(capsys, "approve", "other", "--reason", "fine", "--quiet")[0] == 0
    assert "it was another set" in read_dbom(place / "dbom.json").entry("other").reason
    decided = [json.loads(line) for line in (quarantine_folder() / DECISIONS).read_text().splitlines()]
    assert decided[-1]["again_because"] == "it was another set"


def test_rejected_bytes_are_known_under_another_address_and_in_another_archive(archive, place, capsys):
    fetch(capsys, archive, place)
    reject(capsys)
    (place / "copy.zip").write_bytes((place / "signs.zip").read_bytes())
    with zipfile.ZipFile(place / "signs.zip") as old, zipfile.ZipFile(place / "again.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for name in ("copy.zip", "again.zip"):
        code, _, said = fetch(capsys, (place / name).as_uri(), place)
        assert (code, "was rejected as signs" in said) == (3, True), said
        assert run(capsys, "list")[1] == "nothing is in quarantine\n"


def test_a_set_that_waits_while_its_twin_is_rejected_is_not_approved(archive, place, capsys):
    (place / "copy.zip").write_bytes((place / "signs.zip").read_bytes())
    fetch(capsys, archive, place)
    fetch(capsys, (place / "copy.zip").as_uri(), place, "--again-because", "not rejected yet", name="twin")
    reject(capsys)
    code, _, said = run(capsys, "approve", "twin", "--reason", "fine", "--quiet")
    assert (code, "was rejected as signs" in said) == (3, True), said
    assert not mirrored(place)
    why = ("--again-because", "the licence was found")
    assert run(capsys, "approve", "twin", "--reason", "fine", "--quiet", *why)[0] == 0
    assert "the licence was found" in read_dbom(place / "dbom.json").entry("twin").reason


def test_decisions_that_cannot_be_read_let_nothing_in(archive, place, capsys):
    (quarantine_folder() / DECISIONS).write_text("{}\n")
    code, _, said = fetch(capsys, archive, place)
    assert code == 2
    assert "line 1 is malformed" in said


def test_files_that_nobody_would_look_at_keep_a_set_from_being_approved(place, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(place / "one.png")
    with zipfile.ZipFile(place / "more.zip", "w") as packed:
        for name in ("stop/0.png", "yield/0.png", "stop/.poison.png", ".git/hooks/post-checkout", "evil.py"):
            packed.write(place / "one.png", name)
    code, said, _ = fetch(capsys, (place / "more.zip").as_uri(), place, name="more")
    assert code == 3, said
    assert "more: 1 of 2 expectations not met" in said
    page = (read_record("more")[1] / "validation.html").read_text()
    for name in ("stop/.poison.png", ".git/hooks/post-checkout", "evil.py"):
        assert name in page
    code, _, said = run(capsys, "approve", "more", "--reason", "fine", "--quiet")
    assert code == 2
    assert not mirrored(place)
    reject(capsys, "more")
    (place / "expect.toml").write_text(
        'version = 1\n[files]\nallow_unread = ["evil.py", ".git/*", "*/.poison.png"]\n'
    )
    why = ("--again-because", "known", "--expect", "expect.toml")
    assert fetch(capsys, (place / "more.zip").as_uri(), place, *why, name="more")[0] == 4


def test_messages_name_the_set_and_no_folder_that_is_gone(archive, place, capsys):
    (place / "expect.toml").write_text('version = 1\n[labels]\nexact = ["no entry"]\n')
    (place / "notes.txt").write_text("not images")
    told = [
        *fetch(capsys, archive, place, "--expect", "expect.toml"),
        *fetch(capsys, (place / "notes.txt").as_uri(), place, name="notes"),
        *run(capsys, "list"),
        *run(capsys, "approve", "signs", "--reason", "x"),
    ]
    reject(capsys)
    told.append((quarantine_folder() / DECISIONS).read_text())
    told.append((read_record("notes")[1] / "vendor.json").read_text())
    assert "signs: 1 of 3 expectations not met" in str(told)
    assert ".new-" not in str(told)


def test_bytes_that_changed_in_quarantine_are_not_those_that_were_looked_at(archive, place, capsys):
    fetch(capsys, archive, place)
    _, folder = read_record("signs")
    (folder / "data" / "stop" / "0.png").write_bytes(b"other")
    code, _, said = run(capsys, "approve", "signs", "--reason", "fine", "--quiet")
    assert code == 3
    assert "have changed since they were looked at" in said
    assert not mirrored(place)


def test_what_is_not_as_expected_needs_somebody_who_insists(archive, place, capsys):
    (place / "expect.toml").write_text('version = 1\n[labels]\nexact = ["stop", "yield", "no entry"]\n')
    code, said, _ = fetch(capsys, archive, place, "--expect", "expect.toml")
    assert code == 3, said
    code, _, said = run(capsys, "approve", "signs", "--reason", "fine", "--quiet")
    assert code == 2
    assert "did not meet its expectations" in said
    code, _, _ = run(capsys, "approve", "signs", "--reason", "known", "--unsafe-invalid", "--quiet")
    assert code == 0
    assert "--unsafe-invalid" in read_dbom(place / "dbom.json").entry("signs").reason


def test_data_that_is_no_image_set_is_kept_for_a_look_and_not_approved(place, capsys):
    (place / "notes.txt").write_text("not images")
    assert fetch(capsys, (place / "notes.txt").as_uri(), place)[0] == 3
    assert read_record("signs")[0].state == "invalid"
    assert run(capsys, "approve", "signs", "--reason", "fine")[0] == 2


def test_the_publishers_checksum_is_asked_for(archive, place, capsys):
    code, _, said = fetch(capsys, archive, place, "--sha256", "0" * 64)
    assert code == 3
    assert "not the one that was asked for" in said
    assert not list(quarantine_folder().iterdir()), "nothing half fetched is left"


def test_a_hostile_archive_leaves_nothing(place, capsys):
    with zipfile.ZipFile(place / "bad.zip", "w") as packed:
        packed.writestr("../../evil", b"x")
    code, _, said = fetch(capsys, (place / "bad.zip").as_uri(), place)
    assert code == 3
    assert said.count("\n") == 1
    assert "leads out of the archive" in said
    assert [path.name for path in quarantine_folder().iterdir()] == [DECISIONS]
    (decided,) = map(json.loads, (quarantine_folder() / DECISIONS).read_text().splitlines())
    assert (decided["state"], decided["name"]) == ("refused", "signs")
    assert "../../evil" in decided["found"]
    with zipfile.ZipFile(place / "bad.zip", "w") as packed:
        packed.writestr("a/x.png", b"x")
    assert "rejected" not in fetch(capsys, (place / "bad.zip").as_uri(), place)[2], "a mended one is welcome"


def test_an_interrupted_copy_goes_on_and_other_bytes_there_are_named(archive, place, capsys):
    fetch(capsys, archive, place)
    record, _ = read_record("signs")
    there = place / "mirror" / "sha256" / record.sha256 / "stop" / "0.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody else's, and longer than the image was" * 999)
    assert run(capsys, "approve", "signs", "--reason", "fine", "--quiet")[0] == 3
    there.write_bytes(b"somebody else's")
    code, _, said = run(capsys, "approve", "signs", "--reason", "fine", "--quiet")
    assert code == HashMismatch.exit_code == 3
    assert "the mirror holds other bytes" in said
    assert there.read_bytes() == b"somebody else's", "written once, never over"
    assert not (place / "dbom.json").exists()
    there.unlink()
    assert run(capsys, "approve", "signs", "--reason", "fine", "--quiet")[0] == 0


def test_a_stranger_in_the_mirror_is_named(archive, place, capsys):
    fetch(capsys, archive, place)
    record, _ = read_record("signs")
    extra = place / "mirror" / "sha256" / record.sha256 / "stop" / "extra.png"
    extra.parent.mkdir(parents=True)
    extra.write_bytes(b"x")
    code, _, said = run(capsys, "approve", "signs", "--reason", "fine", "--quiet")
    assert code == 3
    assert "not of the set" in said


def test_a_quarantine_that_others_may_look_into_is_refused(archive, place, capsys):
    quarantine_folder().chmod(0o755)
    code, _, said = fetch(capsys, archive, place)
    assert code == 2
    assert "others may look into the quarantine" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["approve", "none", "--reason", "x"], "nothing named 'none' is in quarantine"),
        (["approve", "../x", "--reason", "x"], "name"),
        (["https://example.org/x.zip", "--name", "x", "--to", "https://example.org/m"], "must be writable"),
        (["ssh://h/x", "--name", "x", "--to", "file:///m"], "URLs are to begin with"),
        (["https://u:p@h/x", "--name", "x", "--to", "file:///m"], "carries a password"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments, said, place, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_one_name_waits_once(archive, place, capsys):
    fetch(capsys, archive, place)
    code, _, said = fetch(capsys, archive, place)
    assert code == 2
    assert "is in quarantine already" in said
    assert run(capsys, "approve", "signs", "--reason", " ")[0] == 2


def test_each_command_has_its_own_help(place, capsys):
    for name in ("fetch", "approve", "reject", "list"):
        with pytest.raises(SystemExit) as done:
            main(["vendor", name, "--help"])
        said = capsys.readouterr().out
        assert done.value.code == 0
        assert f"promotion-gate vendor {name}" in said
        assert ("--max-gib" in said) == (name == "fetch")
    for arguments in ([], ["approve"], ["https://example.org/x.zip"], ["list", "x"], ["--name", "x"]):
        with pytest.raises(SystemExit) as done:
            main(["vendor", *arguments])
        assert done.value.code == 2
        capsys.readouterr()
