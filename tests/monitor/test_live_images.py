"""References from a prediction log: what lies below the folder is taken, the rest is refused and counted."""

import io
import os

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.images import MAX_BYTES, LiveImages


def png(value=0, side=8):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "live" / "day").mkdir(parents=True)
    (tmp_path / "live" / "day" / "a b.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(2))
    (tmp_path / "live-too").mkdir()
    (tmp_path / "live-too" / "x.png").write_bytes(png(3))
    return tmp_path


def reasons(images, *references):
    assert [images.take(reference) for reference in references] == [None] * len(references)
    return dict(images.refused)


def test_a_reference_is_relative_to_the_folder_or_begins_with_it(folder):
    images = LiveImages(str(folder / "live"))
    for reference in ("day/a b.png", f"{folder}/live/day/a b.png", "./day//a b.png"):
        content, decoded = images.take(reference)
        assert content == png(1)
        assert decoded.pixels.shape == (8, 8, 3)
    assert not images.refused


def test_nothing_outside_the_folder_is_read(folder):
    images = LiveImages(str(folder / "live"))
    references = [
        "../secret.png",
        "day/../../secret.png",
        str(folder / "secret.png"),
        f"{folder}/live/../secret.png",
        f"{folder}/live-too/x.png",
        "%2e%2e/secret.png",
        "..\\secret.png",
        "file:///etc/passwd",
        "https://example.org/x.png",
        "simplecache::memory://x.png",
        "",
        ".",
        "day/a\0.png",
    ]
    assert reasons(images, *references) == {"outside the folder": len(references)}


def test_links_are_not_followed_wherever_they_stand(folder):
    live = folder / "live"
    (live / "link.png").symlink_to(folder / "secret.png")
    (live / "inside.png").symlink_to(live / "day" / "a b.png")
    (live / "out").symlink_to(folder)
    assert reasons(LiveImages(str(live)), "link.png", "inside.png", "out/secret.png") == {"a link": 3}


def test_what_is_no_image_is_refused_one_by_one(folder):
    live = folder / "live"
    (live / "text.png").write_bytes(b"hello")
    (live / "cut.png").write_bytes(png(5, 64)[:-40])
    with (live / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(live / "pipe.png")
    images = LiveImages(str(live))
    assert reasons(
        images, "text.png", "cut.png", "huge.png", "pipe.png", "day", "no.png", "day/a b.png/x"
    ) == {
        "not an image": 2,
        "too large": 1,
        "not a plain file": 3,
        "not there": 1,
    }
    assert images.take("day/a b.png") is not None


def test_the_folder_itself_may_be_a_link(folder):
    (folder / "current").symlink_to(folder / "live")
    assert LiveImages(str(folder / "current")).take("day/a b.png") is not None


def test_a_prefix_of_a_bucket():
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/live/a.png", png(7))
    memory.pipe("/bucket/secret.png", png(8))
    images = LiveImages("memory://bucket/live")
    for reference in ("a.png", "memory://bucket/live/a.png"):
        assert images.take(reference)[0] == png(7)
    refused = (
        "../secret.png",
        "memory://bucket/secret.png",
        "a.png?versionId=1",
        "*.png",
        "%252e%252e/secret.png",
    )
    assert reasons(images, *refused, "none.png") == {"outside the folder": 5, "not there": 1}


@pytest.mark.parametrize("root", ["nowhere", "secret.png"])
def test_a_root_that_is_no_folder_is_a_usage_error(folder, root):
    with pytest.raises(UsageError):
        LiveImages(str(folder / root))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["..", ".", "day", "a b.png", "%2e.", "secret.png", "", "\\..", "/"]), max_size=6
    )
)
def test_no_combination_of_parts_reaches_the_secret(tmp_path_factory, parts):
    folder = tmp_path_factory.getbasetemp() / "parts"
    if not folder.exists():
        (folder / "live" / "day").mkdir(parents=True)
        (folder / "live" / "day" / "a b.png").write_bytes(png(1))
        (folder / "secret.png").write_bytes(png(2))
    taken = LiveImages(str(folder / "live")).take("/".join(parts))
    assert taken is None or taken[0] == png(1)
