"""Files written whole or not at all."""

import os

import pytest

from promotion_gate.core.errors import UsageError
from promotion_gate.core.writing import write_bytes, write_whole


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "report"
    for content in (b"one", b"two"):
        write_bytes(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_halfway_leaves_the_old_file(tmp_path):
    file = tmp_path / "report"
    file.write_bytes(b"old")

    def write(partial):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        write_whole(file, write)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_or_folder_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="not a plain file"):
            write_bytes(place, b"x")
    assert (tmp_path / "pipe").is_fifo()
