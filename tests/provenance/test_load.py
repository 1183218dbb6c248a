import hashlib
import os
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import promotion_gate
from promotion_gate.core.errors import DbomError, GateError, HashMismatch, InputError, Unregistered
from promotion_gate.provenance import load
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.register import Particulars, add_path, add_url
from promotion_gate.provenance.sources import Limits, open_remote


@pytest.fixture
def server(tmp_path_factory):
    """A web server: its folder and its address."""
    folder = tmp_path_factory.mktemp("web")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture
def restated(registered, signs):
    def restate(**about):
        return add_path(registered, signs, Particulars("signs", "1", **about), replacing=True)

    return restate


def test_a_load_is_a_read_only_copy_of_every_byte(registered, signs):
    copy = promotion_gate.verified_path("signs")
    assert copy.is_relative_to(registered.parent / "cache")
    for path in signs.rglob("*"):
        twin = copy / path.relative_to(signs)
        assert stat.S_IMODE(twin.stat().st_mode) == (0o500 if path.is_dir() else 0o400)
        assert path.is_dir() or twin.read_bytes() == path.read_bytes()
    assert stat.S_IMODE((registered.parent / "cache" / "promotion-gate").stat().st_mode) == 0o700
    assert promotion_gate.verified_path("signs") == copy
    assert len(list(copy.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "plain.png").write_text("plain.pnG"), "changed: 'plain.png'"),
        (lambda root: (root / "plain.png").unlink(), "missing: 'plain.png'"),
        (lambda root: (root / "more").touch(), "not registered: 'more'"),
    ],
)
def test_other_data_is_refused_and_leaves_nothing(registered, signs, spoil, said):
    spoil(signs)
    with pytest.raises(HashMismatch, match=said):
        promotion_gate.verified_path("signs")
    assert not list((registered.parent / "cache").rglob("*.png"))


def test_a_spoilt_copy_is_made_anew(registered, signs):
    copy = promotion_gate.verified_path("signs")
    (copy / "plain.png").chmod(0o600)
    (copy / "plain.png").write_text("plain.pnG")
    assert (promotion_gate.verified_path("signs") / "plain.png").read_text() == "plain.png"
    (copy / "plain.png").chmod(0o600)
    (copy / "plain.png").write_text("plain.pnG")
    (signs / "plain.png").write_text("plain.pnG")
    with pytest.raises(HashMismatch):
        promotion_gate.verified_path("signs")


def test_what_nobody_vetted_is_refused(registered, restated):
    restated(vetting="quarantined")
    with pytest.raises(Unregistered, match="quarantined"):
        promotion_gate.verified_path("signs")
    with pytest.raises(DbomError, match="no data set 'other'"):
        promotion_gate.verified_path("other")


def test_a_list_of_files_that_leads_out_is_refused(registered, signs):
    sidecar = registered.parent / "dbom.d" / "signs.sha256"
    old = read_dbom(registered).entry("signs").sha256
    content = b"0" * 64 + b"  ../../../planted\n"
    sidecar.write_bytes(content)
    registered.write_text(registered.read_text().replace(old, hashlib.sha256(content).hexdigest()))
    with pytest.raises(DbomError, match="leads upwards"):
        promotion_gate.verified_path("signs")


def test_a_cache_that_others_may_write_to_is_refused(registered):
    folder = registered.parent / "cache" / "promotion-gate"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(InputError, match="others may write"):
        promotion_gate.verified_path("signs")


def test_several_processes_at_once_get_the_same_copy(registered):
    code = "import promotion_gate; print(promotion_gate.verified_path('signs'))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    answers = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(answers) == 1
    assert not list((registered.parent / "cache").rglob(".*"))


def test_a_mirror_serves_what_is_not_here(registered, signs, restated, server):
    folder, url = server
    restated(mirror=f"{url}/sets/signs")
    (folder / "sets").mkdir()
    signs.rename(folder / "sets" / "signs")
    copy = promotion_gate.verified_path("signs")
    assert (copy / "a b" / "new\nline").read_text() == "a b/new\nline"
    dbom = read_dbom(registered)
    assert load.verify_mirror(dbom, dbom.entry("signs")).verified
    (folder / "sets" / "signs" / "plain.png").write_text("plain.pnG")
    assert load.verify_mirror(dbom, dbom.entry("signs")).changed == ("plain.png",)
    assert promotion_gate.verified_path("signs") == copy
    load.discard(copy)
    with pytest.raises(HashMismatch):
        promotion_gate.verified_path("signs")


def test_mirror_only_reads_nothing_else(registered, signs, restated, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PROMOTION_GATE_MIRROR_ONLY", "1")
    with pytest.raises(Unregistered, match="has no mirror"):
        promotion_gate.verified_path("signs")
    mirror = tmp_path_factory.mktemp("mirror") / "signs"
    restated(mirror=f"file://{mirror}")
    with pytest.raises(InputError, match="no such file"):
        promotion_gate.verified_path("signs")
    signs.rename(mirror)
    assert (promotion_gate.verified_path("signs") / "plain.png").read_text() == "plain.png"


def test_mirror_only_follows_no_redirect_to_another_server(home, server, monkeypatch):
    folder, url = server
    (folder / "set.npz").write_bytes(b"n")
    seen = []

    class Elsewhere(SimpleHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"{url}/set.npz")
            self.end_headers()

        log_message = do_HEAD = lambda *_: None

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{mirror.server_port}"
        add_path(home / "dbom.json", _moved(home), Particulars("set", "1", mirror=f"{address}/set.npz"))
        (home / "set.npz").unlink()
        assert promotion_gate.verified_path("set").read_bytes() == b"n", "else, its bytes are what counts"
        load.discard(promotion_gate.verified_path("set").parent)
        monkeypatch.setenv("PROMOTION_GATE_MIRROR_ONLY", "1")
        with pytest.raises(GateError, match="sends readers on to http"):
            promotion_gate.verified_path("set")
        dbom = read_dbom(home / "dbom.json")
        assert "sends readers on" in load.verify_mirror(dbom, dbom.entry("set")).problem
        mirror.shutdown()
    assert seen


def _moved(home):
    (home / "set.npz").write_bytes(b"n")
    return home / "set.npz"


def test_other_bytes_in_the_mirror_are_said_to_be_there(registered, signs, restated, tmp_path_factory):
    mirror = tmp_path_factory.mktemp("mirror") / "signs"
    restated(mirror=f"file://{mirror}")
    signs.rename(mirror)
    for content in ("plain.pnG", "longer than the whole set is" * 99):
        (mirror / "plain.png").write_text(content)
        with pytest.raises(HashMismatch, match=r"holds other bytes.*dbom verify --mirror signs"):
            promotion_gate.verified_path("signs")
        dbom = read_dbom(registered)
        assert load.verify_mirror(dbom, dbom.entry("signs")).changed == ("plain.png",)


def test_a_url_is_fetched_once_and_waits_for_a_person(home, server):
    folder, url = server
    (folder / "set.npz").write_bytes(b"n" * 3_000_000)
    about = Particulars("set", "1", origin=f"{url}/set.npz", vetting="quarantined")
    entry = add_url(home / "dbom.json", f"{url}/set.npz", about, Limits())
    assert (entry.size, entry.path) == (3_000_000, "")
    with pytest.raises(Unregistered):
        promotion_gate.verified_path("set")
    about = Particulars("set", "1", origin=f"{url}/set.npz", vetting="vetted")
    add_url(home / "dbom.json", f"{url}/set.npz", about, Limits(), replacing=True)
    (folder / "set.npz").unlink()
    assert promotion_gate.verified_path("set").name == "data.npz"


def test_equal_bytes_under_two_names_share_a_copy(home):
    for name in ("x.bin", "y.bin", "z.npz"):
        (home / name).write_bytes(b"the same")
        add_path(home / "dbom.json", home / name, Particulars(name[0], "1"))
    first = promotion_gate.verified_path("x")
    assert promotion_gate.verified_path("y") == first
    assert promotion_gate.verified_path("z").suffix == ".npz"
    assert first.read_bytes() == b"the same", "what one load gave away the next must not take back"


def test_a_copy_that_another_process_has_just_mended_is_not_thrown_away(registered, monkeypatch):
    copy = promotion_gate.verified_path("signs")
    (copy / "plain.png").chmod(0o600)
    (copy / "plain.png").write_text("spoilt")

    @contextmanager
    def behind_the_other(beside):
        (copy / "plain.png").write_text("plain.png")
        yield

    monkeypatch.setattr(load, "alone", behind_the_other)
    before = copy.stat().st_ino
    assert promotion_gate.verified_path("signs").stat().st_ino == before


def test_a_url_has_its_limits(home, server):
    folder, url = server
    (folder / "set.npz").write_bytes(b"n" * 3_000_000)
    about = Particulars("set", "1")
    with pytest.raises(InputError, match="larger than"):
        add_url(home / "dbom.json", f"{url}/set.npz", about, Limits(size=10_000))
    with pytest.raises(InputError, match="no such file"):
        add_url(home / "dbom.json", f"{url}/nothing.npz", about, Limits())
    with pytest.raises(DbomError, match="password"):
        add_url(home / "dbom.json", "https://ann:secret@example.org/x", about, Limits())
    assert not (home / "dbom.json").exists()
    assert not list((home / "cache").rglob("*.npz"))


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "simplecache::file:///etc/passwd", "file:///etc/passwd::http://x", "git://x", "words"],
)
def test_other_schemes_are_refused(url):
    with pytest.raises(InputError, match="cannot fetch"):
        open_remote(url)


def images(folder):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", images=pixels, labels=[0, 1] * 3, class_names=["stop", "yield"])
    return pixels


def test_an_image_set_in_two_lines(home):
    pixels = images(home)
    add_path(home / "dbom.json", home / "set.npz", Particulars("set", "1"))
    data = promotion_gate.open_dataset("set").torch(8, 8)
    assert len(data) == 6
    assert data.classes == ["stop", "yield"]
    import torch

    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert torch.equal(batches[0][0][1].mul(255).round().byte(), torch.from_numpy(pixels[1]).permute(2, 0, 1))
    assert batches[0][1].tolist() == [0, 1, 0, 1]
    image, label = promotion_gate.open_dataset("set").torch(4, 4, 1, transform=lambda image: image)[3]
    assert (image.dtype, tuple(image.shape), label) == (torch.uint8, (1, 4, 4), 1)


def test_a_manifest_may_not_name_files_that_were_not_verified(home):
    from PIL import Image

    root = home / "set"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(root / "in.png")
    Image.new("RGB", (4, 4)).save(home / "out.png")
    (root / "list.csv").write_text("path,label\nin.png,stop\nin.png,yield\n")
    (root / "bad.csv").write_text(f"path,label\nin.png,stop\n{home / 'out.png'},yield\n")
    add_path(home / "dbom.json", root, Particulars("set", "1"))
    assert len(promotion_gate.open_dataset("set", within="list.csv")) == 2
    with pytest.raises(InputError, match="not part of it"):
        promotion_gate.open_dataset("set", within="bad.csv")
    with pytest.raises(DbomError, match="upwards"):
        promotion_gate.open_dataset("set", within="../out.png")
    os.chdir("/")
    with pytest.raises(DbomError, match="no dbom"):
        promotion_gate.open_dataset("set")
