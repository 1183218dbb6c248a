import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from promotion_gate.core.errors import InputError
from promotion_gate.provenance import hashing
from promotion_gate.provenance.hashing import hash_tree


def test_a_file_has_its_own_digest(tmp_path):
    (tmp_path / "one").write_bytes(b"x" * 3_000_000)
    tree = hash_tree(tmp_path / "one", md5=True)
    (file,) = tree.files
    assert tree.sha256 == file.sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert file.md5 == hashlib.md5(b"x" * 3_000_000).hexdigest()
    assert (file.path, tree.size) == ("one", 3_000_000)


def test_every_file_of_a_folder_is_hashed_in_byte_order(signs):
    (signs / ".hidden").write_text("h")
    (signs / "empty").touch()
    tree = hash_tree(signs)
    there = {path.relative_to(signs).as_posix() for path in signs.rglob("*") if path.is_file()}
    assert [file.path for file in tree.files] == sorted(there, key=str.encode)
    for file in tree.files:
        assert file.sha256 == hashlib.sha256((signs / file.path).read_bytes()).hexdigest()


def test_many_files_of_all_sizes_keep_their_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "LONG_BYTES", 0)
    contents = {f"{i:04d}": bytes([i % 251]) * (i * 977 % 40_000) for i in range(700)}
    contents["huge"] = b"h" * 20_000_000
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    lines = []
    tree = hash_tree(tmp_path, progress=lines.append)
    assert {f.path: f.sha256 for f in tree.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    assert lines[-1].startswith("100 %")


def test_the_folder_itself_may_be_reached_by_a_link(signs):
    (signs.parent / "linked").symlink_to(signs)
    assert hash_tree(signs.parent / "linked") == hash_tree(signs)


def link_out(root):
    (root / "a b" / "odd").symlink_to("/etc/passwd")


def link_inside(root):
    (root / "a b" / "odd").symlink_to(root / "plain.png")


def link_to_folder(root):
    (root / "a b" / "odd").symlink_to(root)


def dangling(root):
    (root / "a b" / "odd").symlink_to("nowhere")


def pipe(root):
    os.mkfifo(root / "a b" / "odd")


def listener(root):
    os.chdir(root / "a b")
    with socket.socket(socket.AF_UNIX) as it:
        it.bind("odd")


@pytest.mark.parametrize("plant", [link_out, link_inside, link_to_folder, dangling, pipe, listener])
def test_what_is_no_plain_file_is_refused_by_name(signs, plant):
    plant(signs)
    with pytest.raises(InputError, match=r"'a b/odd' is a (link|device)"):
        hash_tree(signs)


def test_a_name_that_is_no_text_is_refused(signs):
    (signs / os.fsdecode(b"\xff")).write_text("x")
    with pytest.raises(InputError, match=r"xff' is not UTF-8"):
        hash_tree(signs)


def test_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no file"):
        hash_tree(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        hash_tree(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither"):
        hash_tree(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(signs):
    (signs / "plain.png").chmod(0)
    with pytest.raises(InputError, match=r"'plain.png': Permission"):
        hash_tree(signs)


def append(path):
    with path.open("a") as file:
        file.write("more")


def rewrite_in_place(path):
    """Same size, and the old time of change put back: what a careful forger does."""
    status = path.stat()
    path.write_bytes(b"z" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rename_over(path):
    other = path.with_name("other")
    other.write_bytes(b"z" * path.stat().st_size)
    other.rename(path)


@pytest.mark.parametrize("change", [append, rewrite_in_place, rename_over])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change):
    root = tmp_path / "set"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_bytes(b"x" * 5_000_000)
    done = threading.Event()
    whole = hashing.UnchangingFile.blocks

    def blocks(self, buffer):
        for block in whole(self, buffer):
            if not done.is_set() and self._name == "b":
                done.set()
                change(root / "b")
            yield block

    monkeypatch.setattr(hashing.UnchangingFile, "blocks", blocks)
    with pytest.raises(InputError, match="'b' changed while it was read"):
        hash_tree(root)
    assert done.is_set()


@pytest.mark.parametrize("change", [append, rewrite_in_place, rename_over])
def test_a_small_file_that_changes_while_it_is_read_is_refused(signs, monkeypatch, change):
    whole = os.read

    def read(descriptor, size):
        content = whole(descriptor, size)
        monkeypatch.setattr(hashing.os, "read", whole)
        change(Path(f"/proc/self/fd/{descriptor}").readlink())
        return content

    monkeypatch.setattr(hashing.os, "read", read)
    with pytest.raises(InputError, match="changed while it was read"):
        hash_tree(signs)


def test_other_processes_say_the_same(signs, monkeypatch):
    (signs / "large").write_bytes(b"x" * 100_000)
    told = []
    monkeypatch.setattr(hashing, "LONG_BYTES", 0)
    here = hash_tree(signs, md5=True)
    monkeypatch.setattr(hashing, "_WORTH_PROCESSES", 1)
    assert hash_tree(signs, md5=True, progress=told.append) == here
    assert told[-1].startswith("100 %")


def test_a_file_that_cannot_be_read_is_named_by_other_processes_too(signs, monkeypatch):
    monkeypatch.setattr(hashing, "_WORTH_PROCESSES", 1)
    listed = hashing.list_files(signs)
    (signs / "plain.png").unlink()
    with pytest.raises(InputError, match=r"'plain.png': No such file"):
        hashing.hash_files(signs, *listed)


def test_a_file_that_comes_while_others_are_read_is_noticed(tmp_path, monkeypatch):
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a").write_bytes(b"a" * 100_000)
    whole = hashing.UnchangingFile.blocks

    def blocks(self, buffer):
        (root / "sub" / "late").write_text("late")
        return whole(self, buffer)

    monkeypatch.setattr(hashing.UnchangingFile, "blocks", blocks)
    with pytest.raises(InputError, match="the folder 'sub' changed"):
        hash_tree(root)


def test_progress_is_told_of_long_work_alone_and_in_order(monkeypatch):
    told = []
    short = hashing.Tally(1000, told.append)
    for _ in range(10):
        short.add(100)
    assert told == []
    clock = iter((0.0, 1.5, 1.6, 1.7))
    with monkeypatch.context() as patched:
        patched.setattr(hashing.time, "monotonic", lambda: next(clock))
        slow = hashing.Tally(1000, told.append)
        for _ in range(3):
            slow.add(100)
    assert told == ["10 % of 1000 bytes hashed"], "work that begins slowly is short all the same"
    told.clear()
    monkeypatch.setattr(hashing, "LONG_BYTES", 1000)
    tally = hashing.Tally(8000, lambda line: (time.sleep(0.001), told.append(int(line.split()[0])))[1])
    threads = [threading.Thread(target=tally.add, args=(100,)) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == list(range(10, 101, 10))
