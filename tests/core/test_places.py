"""Folders of the user: where they are, and one clear line where there are none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.core.places import base_folder, expanded, private_cache
from promotion_gate.ledger import KeptRecords


def homeless(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))


def test_a_base_folder_is_the_one_named_or_lies_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert base_folder("XDG_STATE_HOME") == tmp_path / ".local" / "state"
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert base_folder("XDG_STATE_HOME") == Path("/srv/state")


def test_who_has_no_home_is_told_what_to_set(monkeypatch):
    homeless(monkeypatch)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(UsageError, match="no home folder; set HOME, or XDG_DATA_HOME"):
        base_folder("XDG_DATA_HOME")
    with pytest.raises(InputError, match="home folder in '~/x'"):
        expanded("~/x")


def test_without_a_home_no_record_is_kept(monkeypatch):
    homeless(monkeypatch)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert KeptRecords.here() is None


def test_an_unknown_user_s_home_is_one_line():
    with pytest.raises(InputError, match="home folder in '~nobody-of-that-name/data'"):
        expanded("~nobody-of-that-name/data")
    assert expanded("data/~x") == Path("data/~x")


def test_the_private_cache_is_nobody_elses(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = private_cache("records")
    assert folder == tmp_path / "promotion-gate" / "records"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(InputError, match="others may write to the records cache"):
        private_cache("records")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="others may write to the records cache"):
        private_cache("records")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
@pytest.mark.parametrize(
    "arguments", [("rollback", "x", "--reason", "y"), ("verify", "x"), ("history", "x"), ("keygen",)]
)
def test_a_container_without_a_user_gets_one_line(arguments):
    command = [*("setpriv", "--reuid=54321", "--clear-groups"), sys.executable, "-m", "promotion_gate"]
    uri = () if arguments == ("keygen",) else ("--tracking-uri", "http://127.0.0.1:9")
    package = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, *arguments, *uri],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": package},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("that user may not read this installation")
    assert done.returncode in (2, 5)
    assert len(done.stderr.splitlines()) == 1, done.stderr
