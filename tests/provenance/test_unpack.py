"""Archives from outside: what is refused, by name, and that nothing is written where it should not be."""

import io
import stat
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promotion_gate.core.errors import InputError, RefusedData
from promotion_gate.provenance.unpack import Room, archive_kind, unpack

ROOM = Room()


def zipped(path, members):
    """A zip of ``members``: name to content, or to a ZipInfo with content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def tarred(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def symlink_in_zip(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "make", [lambda p, m: zipped(p / "a.zip", m), lambda p, m: tarred(p / "a.tar.gz", m)]
)
def test_what_goes_in_comes_out_without_the_folder_that_holds_all(make, tmp_path, target):
    members = [("set/stop/1.png", b"one"), ("set/yield/2.png", b"two")]
    found = unpack(make(tmp_path, members), target, ROOM)
    assert (found.files, found.size) == (2, 6)
    assert contents(target) == {"stop/1.png": b"one", "yield/2.png": b"two"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in target.rglob("*.png")} == {0o600}


def test_several_folders_stay_as_they_are(tmp_path, target):
    unpack(zipped(tmp_path / "a.zip", [("a/1", b"1"), ("b/1", b"2")]), target, ROOM)
    assert set(contents(target)) == {"a/1", "b/1"}


HOSTILE = {
    "upwards": lambda p: zipped(p / "a.zip", [("../evil", b"x")]),
    "upwards inside": lambda p: zipped(p / "a.zip", [("a/../../evil", b"x")]),
    "absolute": lambda p: tarred(p / "a.tar", [("/tmp/evil", b"x")], "w"),
    "backslashes": lambda p: zipped(p / "a.zip", [("a\\..\\evil", b"x")]),
    "a drive": lambda p: zipped(p / "a.zip", [("C:/evil", b"x")]),
    "an escape": lambda p: zipped(p / "a.zip", [("a/\x1b[2J", b"x")]),
    "a link": lambda p: tarred(p / "a.tar.gz", [(link("a", "/etc/passwd"), b"")]),
    "a hard link": lambda p: tarred(p / "a.tar.gz", [(link("a", "b", tarfile.LNKTYPE), b"")]),
    "a device": lambda p: tarred(p / "a.tar.gz", [(link("a", "", tarfile.CHRTYPE), b"")]),
    "a pipe": lambda p: tarred(p / "a.tar.gz", [(link("a", "", tarfile.FIFOTYPE), b"")]),
    "a link in a zip": lambda p: zipped(p / "a.zip", [(symlink_in_zip("a"), b"/etc/passwd")]),
    "one name twice": lambda p: tarred(p / "a.tar.gz", [("a/x", b"1"), ("a/x", b"2")]),
    "told apart by case": lambda p: zipped(p / "a.zip", [("a/x", b"1"), ("a/X", b"2")]),
    "a file as a folder": lambda p: zipped(p / "a.zip", [("a", b"1"), ("a/x", b"2")]),
    "too deep": lambda p: zipped(p / "a.zip", [("/".join("a" * 40), b"x")]),
    "too long": lambda p: zipped(p / "a.zip", [("a" * 2000, b"x")]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_before_a_byte_is_written(name, tmp_path, target):
    archive = HOSTILE[name](tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(RefusedData, match=r"the archive .* is refused") as error:
        unpack(archive, target, ROOM)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("make", [zipped, tarred])
def test_every_name_that_is_refused_is_told_up_to_a_limit(make, tmp_path, target):
    members = [("good.png", b"x"), ("../one", b"x"), ("two\\x", b"x"), ("/three", b"x")]
    with pytest.raises(RefusedData) as error:
        unpack(make(tmp_path / "a", members), target, ROOM)
    for name, why in (("../one", "leads out"), ("two", "backslash"), ("/three", "leads out")):
        assert name in str(error.value)
        assert why in str(error.value)
    with pytest.raises(RefusedData, match="and 80 more like these"):
        unpack(make(tmp_path / "b", [(f"../{i}", b"x") for i in range(100)]), target, ROOM)
    assert not contents(target)


def test_bombs_are_stopped_by_what_comes_out(tmp_path, target):
    for archive in (
        zipped(tmp_path / "a.zip", [("x", bytes(2**20))]),
        tarred(tmp_path / "a.tar.gz", [("x", bytes(2**20))]),
    ):
        with pytest.raises(RefusedData, match="holds more than 100,000 bytes"):
            unpack(archive, target, Room(size=100_000))
    many = zipped(tmp_path / "b.zip", [(f"{i}", b"") for i in range(50)])
    with pytest.raises(RefusedData, match="holds more than 49 files"):
        unpack(many, target, Room(files=49))


def test_an_archive_that_lies_of_its_size_is_stopped(tmp_path, target):
    path = zipped(tmp_path / "a.zip", [("x", bytes(300_000))])
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises((InputError, RefusedData)):
        unpack(path, target, Room(size=1000))


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_a_damaged_archive_is_one_line(name, cut, tmp_path, target):
    path = tmp_path / name
    members = [(f"d/{i}", bytes(range(256)) * i) for i in range(20)]
    if name.endswith("zip"):
        zipped(path, members)
    else:
        tarred(path, members, f"w:{name.rpartition('.')[2]}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    if name == "a.tar.xz" and cut == 0.95:
        # Only what comes after the last file is cut off.
        unpack(path, target, ROOM)
        assert contents(target) == {str(i): bytes(range(256)) * i for i in range(20)}
        return
    with pytest.raises((InputError, RefusedData), match=r"cannot be unpacked|is refused") as error:
        unpack(path, target, ROOM)
    assert "\n" not in str(error.value)


def test_an_encrypted_member_is_named(tmp_path, target):
    path = zipped(tmp_path / "a.zip", [("secret", b"x")])
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(RefusedData, match="'secret' is encrypted"):
        unpack(path, target, ROOM)


def test_an_empty_archive_holds_no_file(tmp_path, target):
    with pytest.raises(InputError, match="holds no file"):
        unpack(zipped(tmp_path / "a.zip", []), target, ROOM)


def test_what_is_an_archive_is_told_by_content(tmp_path):
    assert archive_kind(zipped(tmp_path / "data.bin", [("x", b"")])) == "zip"
    assert archive_kind(tarred(tmp_path / "data", [("x", b"")], "w")) == "tar"
    assert archive_kind(zipped(tmp_path / "images.npz", [("x.npy", b"")])) is None
    (tmp_path / "a.csv").write_text("path,label\n")
    assert archive_kind(tmp_path / "a.csv") is None


NAMES = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["..", ".", "/", "a/../b", "a//b", "./a", "a/.", "\\", "a:b", ""]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=20)), min_size=1, max_size=5))
def test_whatever_the_names_nothing_is_written_outside(tmp_path_factory, members):
    home = tmp_path_factory.mktemp("unpack")
    target = home / "out"
    target.mkdir()
    try:
        archive = tarred(home / "a.tar", members, "w")
    except (ValueError, OSError):
        return
    try:
        unpack(archive, target, ROOM)
    except (InputError, RefusedData):
        pass
    else:
        assert len(contents(target)) == len(members) or any(n.strip("./") == "" for n, _ in members)
    outside = {p for p in home.rglob("*") if p.is_file() and not p.is_relative_to(target)}
    assert outside == {archive}
