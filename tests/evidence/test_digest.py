from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import ArtifactError
from promotion_gate.evidence.artifacts import digest_folder

NAME = st.text(st.sampled_from("abZ0._- é"), min_size=1, max_size=6).filter(lambda n: n.strip(".") != "")
TREE = st.dictionaries(NAME, st.binary(max_size=40), min_size=1, max_size=5)


def write(folder: Path, tree: dict[str, bytes]) -> Path:
    for name, content in tree.items():
        path = folder / "sub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_is_the_digest_of_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one")
    listing = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {path}\n"
        for path, content in (("a", b"one"), ("data/b", b"two"))
    )
    files, digest = digest_folder(tmp_path)
    assert [(file.path, file.size) for file in files] == [("a", 3), ("data/b", 3)]
    assert digest == hashlib.sha256(listing.encode()).hexdigest()


@given(TREE, TREE)
def test_tells_two_trees_apart_and_only_two(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    digests = [digest_folder(write(tmp_path_factory.mktemp("tree"), tree))[1] for tree in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_leaves_out_the_marker_of_the_download_at_the_root_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    before = digest_folder(tmp_path)[1]
    (tmp_path / "registered_model_meta").write_text("model_name: traffic signs\nmodel_version: '7'\n")
    assert digest_folder(tmp_path)[1] == before
    (tmp_path / "registered_model_meta").write_text("name: x")
    assert digest_folder(tmp_path)[1] != before
    (tmp_path / "registered_model_meta").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registered_model_meta").write_text("name: x")
    assert digest_folder(tmp_path)[1] != before


@pytest.mark.parametrize("target", ["a", "/etc/passwd", "missing"])
def test_refuses_links(tmp_path: Path, target: str) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ArtifactError, match=r"'link' is a link"):
        digest_folder(tmp_path)


def test_refuses_a_linked_marker_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "registered_model_meta").symlink_to("a")
    with pytest.raises(ArtifactError, match="is a link"):
        digest_folder(tmp_path)


def test_refuses_a_pipe_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="'pipe'"):
        digest_folder(tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\\b"])
def test_refuses_names_that_would_forge_the_listing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"one")
    with pytest.raises(ArtifactError, match="unreadable name") as caught:
        digest_folder(tmp_path)
    assert str(caught.value).isprintable()


def test_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no files"):
        digest_folder(tmp_path)


def test_rollback_needs_nothing_heavy_for_it() -> None:
    code = (
        "import sys, promotion_gate.evidence.artifacts, promotion_gate.evidence.digest, "
        "promotion_gate.evidence.sandbox; "
        "print([name for name in ('torch', 'mlflow', 'numpy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
