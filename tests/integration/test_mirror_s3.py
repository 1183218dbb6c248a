"""A mirror in an S3 bucket: a real endpoint on loopback, write-once, read back, verified, loaded."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from promotion_gate.cli import main
from promotion_gate.core.errors import HashMismatch
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.load import verified_copy

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bucket(parts_of, monkeypatch):
    """The URL of an empty bucket on moto's server, which s3fs is pointed at."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'promotion-gate[s3]'")
    with parts_of.s3("mirror") as (environment, _):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://mirror/sets"
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_set_is_mirrored_once_and_loaded_from_there(bucket, tmp_path, monkeypatch, capsys):
    import s3fs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "signs.zip", "w") as packed:
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "one.png")
            packed.write(tmp_path / "one.png", f"signs/{'stop' if i % 2 else 'yield'}/number {i}.png")
    url = (tmp_path / "signs.zip").as_uri()
    assert main(["vendor", url, "--name", "signs", "--to", bucket, "--quiet"]) == 4
    store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    assert store.find("mirror") == []
    assert main(["vendor", "approve", "signs", "--reason", "looked at", "--quiet"]) == 0
    dbom = read_dbom(tmp_path / "dbom.json")
    entry = dbom.entry("signs")
    assert entry.mirror == f"{bucket}/sha256/{entry.sha256}"
    assert len(store.find("mirror")) == 6
    assert main(["dbom", "verify", "--mirror", "--quiet"]) == 0

    monkeypatch.setenv("PROMOTION_GATE_MIRROR_ONLY", "1")
    assert len(list(verified_copy(dbom, entry).rglob("*.png"))) == 6

    first = store.find("mirror")[0]
    with pytest.raises(FileExistsError):
        store.put_file(str(tmp_path / "one.png"), first, mode="create")
    store.pipe_file(first, b"other bytes")  # promotion-gate: allow a write to the test's own bucket
    capsys.readouterr()
    assert main(["dbom", "verify", "--mirror", "--quiet"]) == 3
    assert "changed: " in capsys.readouterr().out
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(HashMismatch, match="holds other bytes"):
        verified_copy(dbom, entry)
