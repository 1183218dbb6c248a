import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import DbomError
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.sidecar import parse_sidecar, sidecar_bytes

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, unique=True)
DIGEST = "ab" * 32


@given(PATHS)
def test_what_is_written_is_read(paths):
    files = {path: hashlib.sha256(path.encode()).hexdigest() for path in sorted(paths, key=str.encode)}
    assert parse_sidecar(sidecar_bytes(files.items()), "list") == files


def test_sha256sum_accepts_it(registered, signs):
    sidecar = registered.parent / "dbom.d" / "signs.sha256"
    check = ["sha256sum", "--check", "--strict", "--quiet", sidecar]
    assert subprocess.run(check, cwd=signs, check=False).returncode == 0
    (signs / "a b" / "new\nline").write_text("other")
    failed = subprocess.run(check, cwd=signs, check=False, capture_output=True)
    assert failed.returncode == 1
    assert failed.stdout.count(b"FAILED") == 1


def test_it_is_what_sha256sum_itself_prints(registered, signs):
    content, files = read_dbom(registered).sidecar(read_dbom(registered).entry("signs"))
    printed = subprocess.run(["sha256sum", "--", *files], cwd=signs, check=True, capture_output=True).stdout
    assert content == printed


@pytest.mark.parametrize(
    "line",
    [
        f"{DIGEST}  ../up\n",
        f"{DIGEST}  a/../../up\n",
        f"{DIGEST}  /etc/passwd\n",
        f"{DIGEST}  a//b\n",
        f"{DIGEST}  ./a\n",
        f"{DIGEST}  a/\n",
        f"{DIGEST}  a",
        f"{DIGEST} *a\n",
        f"{DIGEST.upper()}  a\n",
        f"{DIGEST}  back\\slash\n",
        f"\\{DIGEST}  plain\n",
        f"\\{DIGEST}  odd\\t\n",
        f"\\{DIGEST}  cut\\\n",
        f"{DIGEST}  a\n\n",
        f"{DIGEST}  b\n{DIGEST}  a\n",
        f"{DIGEST}  a\n{DIGEST}  a\n",
        f"{DIGEST}  nul\0\n",
        "",
    ],
)
def test_what_sha256sum_would_not_write_is_refused(line):
    with pytest.raises(DbomError, match="list"):
        parse_sidecar(line.encode(), "list")


def test_names_that_are_no_text_are_refused():
    with pytest.raises(DbomError, match="UTF-8"):
        parse_sidecar(DIGEST.encode() + b"  \xff\n", "list")
