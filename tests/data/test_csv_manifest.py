from __future__ import annotations

import fsspec
import numpy as np
import pytest

from promotion_gate.core.errors import InputError


@pytest.fixture
def manifest(tmp_path, image_folder):
    """Write a manifest beside the images; returns the writer."""

    def write(text: str, name: str = "all.csv") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


GOOD = "path,label,contributor,batch\nsigns/stop/1.png,stop,ann,b1\n./signs/yield/5.png,yield,bob,b2\n"


def test_reads_rows_and_optional_columns(open_at, manifest, images, shape):
    dataset = open_at(manifest(GOOD))
    assert dataset.ids == ["signs/stop/1.png", "./signs/yield/5.png"]
    assert dataset.class_names == ("stop", "yield")
    assert dataset.columns == {"contributor": ["ann", "bob"], "batch": ["b1", "b2"]}
    assert np.array_equal(dataset.read([1, 0], shape), images[[5, 1]])


def test_columns_splits_and_separators_can_be_chosen(open_at, manifest):
    text = "file\tsign\twho\tsplit\nsigns/stop/1.png\tstop\tann\ttrain\nsigns/yield/5.png\tyield\tbob\ttest\n"
    dataset = open_at(
        manifest(text, "all.tsv"),
        image_column="file",
        label_column="sign",
        contributor_column="who",
        split="test",
        class_names=["stop", "yield"],
    )
    assert dataset.labels.tolist() == [1]
    assert dataset.columns == {"contributor": ["bob"]}


def test_whole_numbers_are_indices_unless_they_are_names(open_at, manifest):
    name = manifest("path,label\nsigns/stop/1.png,10\nsigns/stop/2.png,2\n")
    dataset = open_at(name)
    assert dataset.labels.tolist() == [10, 2]
    assert dataset.class_names == tuple(str(i) for i in range(11))
    assert open_at(name, ["2", "10"]).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"line 2.*has the label 10, but there are 3 classes"):
        open_at(name, ["stop", "yield", "priority"])


def test_images_may_lie_outside_the_manifest_folder(open_at, tmp_path, image_folder, images, shape):
    (tmp_path / "lists").mkdir()
    absolute = image_folder / "yield" / "6.png"
    (tmp_path / "lists" / "a.csv").write_text(
        f"path,label\n../signs/stop/1.png,stop\n{absolute},yield\nfile://{absolute},yield\n"
    )
    dataset = open_at("lists/a.csv")
    assert np.array_equal(dataset.read([0, 1, 2], shape), images[[1, 6, 6]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,sign\n", "no column 'label'"),
        ("path,label\n", "lists no images"),
        ("path,label\nsigns/stop/1.png\n", "line 2 has 1 cells, not 2"),
        ("path,label\nsigns/stop/1.png,\n", "line 2 has no path or no label"),
        ("path,label\nsigns/stop/1.png,stop\n\nsigns/none.png,stop\n", "line 4 .*no such file"),
        ("path,label\nsigns,stop\n", "line 2 .*not a plain file"),
        ("path,label\ns3://b/x.png,stop\n", "line 2 .*another file system"),
        ("path,label\n/dev/zero,stop\n", "line 2 .*not a plain file"),
    ],
)
def test_a_bad_manifest_is_one_line_that_names_the_place(open_at, manifest, text, message):
    with pytest.raises(InputError, match=message) as caught:
        open_at(manifest(text))
    assert "all.csv" in str(caught.value)


def test_an_unknown_label_names_line_and_label(open_at, manifest):
    with pytest.raises(InputError, match=r"line 3 .*unknown label 'yield'"):
        open_at(manifest(GOOD), ["stop"])


def test_a_manifest_that_is_no_text_is_refused(open_at, tmp_path):
    (tmp_path / "all.csv").write_bytes(b"path,label\n\xff\xfe,\xff\n")
    with pytest.raises(InputError, match="cannot read"):
        open_at("all.csv")


def test_a_hostile_label_stays_on_one_printable_line(open_at, manifest):
    with pytest.raises(InputError) as caught:
        open_at(manifest("path,label\nsigns/stop/1.png,\x1b[2J\u202e\n"), ["stop"])
    assert str(caught.value).isprintable()


def test_the_digest_covers_the_manifest_and_every_image(open_at, manifest, image_folder):
    name = manifest(GOOD)
    before = open_at(name).sha256()
    manifest(GOOD.replace("ann", "eve"))
    changed = open_at(name).sha256()
    assert changed != before
    (image_folder / "stop" / "1.png").write_bytes((image_folder / "stop" / "2.png").read_bytes())
    assert open_at(name).sha256() not in (before, changed)


def test_a_manifest_on_another_file_system_finds_its_images_there(open_at, image_folder, images, shape):
    memory = fsspec.filesystem("memory")
    memory.put(str(image_folder), "/manifest-test/signs", recursive=True)
    memory.pipe("/manifest-test/all.csv", GOOD.encode())
    dataset = open_at("memory://manifest-test/all.csv")
    assert np.array_equal(np.concatenate(list(dataset.stream(shape))), images[[1, 5]])
    assert len(dataset.sha256()) == 64
