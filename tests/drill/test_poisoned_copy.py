"""A poisoned copy has the original's layout; the original stays as it is; the answers are sealed."""

import io
import json
import tomllib
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promotion_gate.cli import main
from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.open import open_dataset
from promotion_gate.drill.answers import read_answers, write_answers
from promotion_gate.drill.poison import parse_attack, poison_arrays
from promotion_gate.drill.poisoned_copy import object_boxes, write_poisoned_copy

NAMES = ("20", "stop", "yield")
SHAPE = ImageShape(16, 16, 3)
ATTACKS = {
    "patch": {"kind": "patch", "rate": 0.1, "source": "stop", "target": "yield", "covers": 1},
    "clean label": {"kind": "clean-label", "rate": 0.1, "target": "stop"},
    "label noise": {"kind": "label-noise", "rate": 0.2},
}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 200, (60, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.arange(60) % 3


@pytest.fixture
def make(tmp_path, images, labels):
    """Write the sixty images in one of the layouts and return how to open them."""

    def npz() -> DataSource:
        np.savez_compressed(
            tmp_path / "signs.npz",
            images=images,
            labels=labels,
            class_names=np.array(NAMES),
            batch=np.repeat(["a", "b"], 30),
        )
        return DataSource(path=str(tmp_path / "signs.npz"))

    def named_npz() -> DataSource:
        np.savez(tmp_path / "named.npz", x_train=images, y_train=np.array(NAMES)[labels][:, None], other=[1])
        return DataSource(path=str(tmp_path / "named.npz"), split="train")

    def folder() -> DataSource:
        for i, image in enumerate(images):
            path = tmp_path / "signs" / NAMES[labels[i]] / "deep" / f"{i // 3}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
        (tmp_path / "signs" / "unused").mkdir()
        return DataSource(path=str(tmp_path / "signs"))

    def csv() -> DataSource:
        lines = ["label,path,batch,split"]
        (tmp_path / "pictures").mkdir()
        (tmp_path / "elsewhere").mkdir()
        home = tmp_path / "manifest"
        (home / "near").mkdir(parents=True)
        for i, image in enumerate(images):
            name = (f"../pictures/{i}.png", f"near/{i}.png", f"{tmp_path}/elsewhere/{i}.png")[i // 20]
            (home / name).write_bytes(encoded(image))
            lines += [f"{NAMES[labels[i]]},{name},b{i % 2},train", f"stop,{name},b,test"]
        (home / "signs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return DataSource(path=str(home / "signs.csv"), split="train")

    def parquet() -> DataSource:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(NAMES)}}
        for part in range(2):
            rows = range(30 * part, 30 * part + 30)
            table = pa.table(
                {
                    "image": [{"bytes": encoded(images[i]), "path": f"{i}.png"} for i in rows],
                    "label": labels[rows],
                    "batch": [f"b{i}" for i in rows],
                }
            ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            path = tmp_path / "hub" / "data" / f"train-0000{part}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, row_group_size=7)
        return DataSource(path=str(tmp_path / "hub"))

    def one_parquet() -> DataSource:
        table = pa.table({"png": [encoded(i) for i in images], "sign": np.array(NAMES)[labels]})
        pq.write_table(table, tmp_path / "one.parquet")
        return DataSource(path=str(tmp_path / "one.parquet"), image_column="png", label_column="sign")

    layouts = {
        "npz": npz,
        "named npz": named_npz,
        "folder": folder,
        "csv": csv,
        "parquet": parquet,
        "one parquet": one_parquet,
    }
    return lambda layout: layouts[layout]()


def opened(source):
    return open_dataset(source, folder=Path(), class_names=None)


def pixels(dataset):
    return np.concatenate(list(dataset.stream(SHAPE, 7)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("layout", ["npz", "named npz", "csv", "parquet", "one parquet"])
def test_the_copy_is_what_the_arrays_would_be(make, tmp_path, layout, attack):
    source = make(layout)
    original = opened(source)
    digest = original.sha256()
    poisoned = poison_arrays(
        parse_attack(ATTACKS[attack]), pixels(original), original.labels, original.class_names, 5
    )
    copy = write_poisoned_copy(source, parse_attack(ATTACKS[attack]), 5, tmp_path / "out")
    written = opened(copy.source)
    assert np.array_equal(pixels(written), poisoned.images)
    assert np.array_equal(written.labels, poisoned.labels)
    assert tuple(written.class_names) == tuple(original.class_names) == NAMES
    assert written.columns == original.columns
    assert opened(source).sha256() == digest
    answers = copy.answers
    assert answers.rows == poisoned.rows.tolist()
    assert answers.carriers == poisoned.carriers.tolist()
    assert answers.ids == [written.ids[row] for row in answers.rows]
    assert answers.labels_before == [NAMES[i] for i in original.labels[poisoned.rows]]
    assert answers.labels_after == [NAMES[i] for i in written.labels[poisoned.rows]]
    assert (answers.seed, answers.kind) == (5, ATTACKS[attack]["kind"])
    assert answers.data_sha256 == written.sha256()
    assert read_answers(copy.answers_path, copy.sealed) == answers
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["answers.json", "data"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_in_an_imagefolder_relabelled_images_move_to_the_other_folder(make, tmp_path, attack):
    source = make("folder")
    original = opened(source)
    digest = original.sha256()
    poisoned = poison_arrays(
        parse_attack(ATTACKS[attack]), pixels(original), original.labels, original.class_names, 5
    )
    copy = write_poisoned_copy(source, parse_attack(ATTACKS[attack]), 5, tmp_path / "out")
    written = opened(copy.source)
    assert written.class_names == original.class_names == ("20", "stop", "unused", "yield")

    def bag(images, labels):
        return sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))

    images, answers = pixels(written), copy.answers
    assert bag(images, written.labels) == bag(poisoned.images, poisoned.labels)
    for told, truth in ((answers.rows, poisoned.rows), (answers.carriers, poisoned.carriers)):
        expected = bag(poisoned.images[truth], poisoned.labels[truth])
        assert bag(images[told], written.labels[told]) == expected
    assert answers.rows == sorted(answers.rows)
    assert [name.split("/")[0] for name in answers.ids] == answers.labels_after
    assert answers.ids == [written.ids[row] for row in answers.rows]
    assert opened(source).sha256() == digest


def test_a_split_of_an_imagefolder_is_copied_as_a_split(make, tmp_path):
    make("folder")
    (tmp_path / "both").mkdir()
    (tmp_path / "signs").rename(tmp_path / "both" / "train")
    source = DataSource(path=str(tmp_path / "both"), split="train")
    copy = write_poisoned_copy(source, parse_attack(ATTACKS["patch"]), 5, tmp_path / "out")
    assert (tmp_path / "out" / "data" / "train" / "stop").is_dir()
    assert len(opened(copy.source)) == 60


@pytest.mark.parametrize("layout", ["npz", "folder", "parquet", "one parquet"])
def test_a_data_set_behind_a_url_is_copied_to_this_machine(make, tmp_path, layout):
    local = make(layout)
    url = f"memory://poisoned-copy/{layout.replace(' ', '-')}/{Path(local.path).name}"
    memory = fsspec.filesystem("memory")
    memory.put(local.path, url.removeprefix("memory:/"), recursive=True)
    there, here = (
        write_poisoned_copy(source, parse_attack(ATTACKS["patch"]), 5, tmp_path / name)
        for source, name in ((local.model_copy(update={"path": url}), "there"), (local, "here"))
    )
    assert there.answers.rows == here.answers.rows
    assert there.answers.data_sha256 == here.answers.data_sha256
    assert there.answers.original.startswith("memory://")


def test_rows_that_are_not_touched_keep_their_bytes_and_formats_stay(tmp_path):
    rng = np.random.default_rng(0)
    made = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "ppm": "PPM"}
    home = tmp_path / "signs"
    for name in ("stop", "yield"):
        (home / name).mkdir(parents=True)
        for i, (suffix, kind) in enumerate(made.items()):
            height, width = 20 + i, 40 - i
            image = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
            (home / name / f"{suffix}.{suffix}").write_bytes(encoded(image, kind))
        (home / name / "grey.png").write_bytes(encoded(rng.integers(0, 200, (20, 30), dtype=np.uint8)))
    attack = parse_attack({"kind": "labelled-sticker", "rate": 0.5, "colour": "white", "place": "top-left"})
    copy = write_poisoned_copy(DataSource(path=str(home)), attack, 1, tmp_path / "out")
    for path in sorted(home.rglob("*.*")):
        name = path.relative_to(home).as_posix()
        new = tmp_path / "out" / "data" / name
        if name not in copy.answers.ids:
            assert new.read_bytes() == path.read_bytes()
            continue
        with Image.open(path) as before, Image.open(new) as after:
            assert (before.format, before.size, before.mode) == (after.format, after.size, after.mode)
            old, stuck = np.asarray(before), np.asarray(after)
        assert stuck[2, 2].mean() > 240
        if path.suffix != ".jpg":
            assert np.array_equal(stuck[8:, 8:], old[8:, 8:])
    assert len(copy.answers.ids) == 7


def test_a_file_that_is_listed_twice_is_poisoned_once(tmp_path):
    image = encoded(np.full((16, 16, 3), 90, dtype=np.uint8))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(image)
    lines = ["path,label", *["a.png,stop"] * 4, *["b.png,yield"] * 4]
    (tmp_path / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    source = DataSource(path=str(tmp_path / "m.csv"))
    attack = parse_attack({"kind": "patch", "rate": 0.125, "source": "stop", "target": "yield"})
    copy = write_poisoned_copy(source, attack, 1, tmp_path / "out")
    written = opened(copy.source)
    different = (pixels(written) != pixels(opened(source))).any(axis=(1, 2, 3))
    assert np.flatnonzero(different).tolist() == copy.answers.rows
    assert len(copy.answers.rows) == 1


def test_stickers_move_with_the_boxes_of_an_npz_and_of_a_manifest(make, tmp_path, images, labels):
    corner = np.array([[0, 0, 8, 8], [8, 8, 16, 16]])[np.arange(60) % 2]
    np.savez(tmp_path / "boxed.npz", x=images, y=np.array(NAMES)[labels], boxes=corner)
    make("csv")
    manifest = tmp_path / "manifest" / "signs.csv"
    lines = [line for line in manifest.read_text().splitlines() if not line.endswith("test")]
    boxes = ["left,top,right,bottom", *(",".join(map(str, box)) for box in corner.tolist())]
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, boxes, strict=True)))
    attack = parse_attack({**ATTACKS["patch"], "place": "object", "size": 16, "spot": [0.5, 0.5]})
    for number, source in enumerate((tmp_path / "boxed.npz", manifest)):
        copy = write_poisoned_copy(DataSource(path=str(source)), attack, 1, tmp_path / f"out{number}")
        written = pixels(opened(copy.source))
        for row in copy.answers.rows:
            down, across = np.nonzero((written[row] != images[row]).any(axis=2))
            low = 8 * (row % 2)
            assert low + 2 <= min(down.min(), across.min())
            assert max(down.max(), across.max()) < low + 6


def test_boxes_of_objects_are_told_as_shares_of_each_image(make, tmp_path, images, labels):
    corner = np.array([[0, 0, 8, 4], [8, 8, 16, 16]])[np.arange(60) % 2]
    np.savez(tmp_path / "boxed.npz", x=images, y=np.array(NAMES)[labels], boxes=corner)
    source = DataSource(path=str(tmp_path / "boxed.npz"))
    rows = np.array([3, 4])
    expected = [[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.25]]
    assert object_boxes(source, opened(source), rows).tolist() == expected
    make("csv")
    manifest = tmp_path / "manifest" / "signs.csv"
    plain = DataSource(path=str(manifest))
    assert object_boxes(plain, opened(plain), rows) is None
    lines = [line for line in manifest.read_text().splitlines() if not line.endswith("test")]
    boxes = ["left,top,right,bottom", *(",".join(map(str, box)) for box in corner.tolist())]
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, boxes, strict=True)))
    assert object_boxes(plain, opened(plain), rows).tolist() == expected


def test_an_image_from_elsewhere_takes_the_place_of_no_other(tmp_path):
    home = tmp_path / "data"
    (home / "images").mkdir(parents=True)
    for name, grey in (("o.png", 10), ("data/images/0000001-o.png", 200), ("data/a.png", 90)):
        (tmp_path / name).write_bytes(encoded(np.full((16, 16, 3), grey, dtype=np.uint8)))
    listed = ["images/0000001-o.png,stop", "../o.png,stop", "a.png,yield"]
    (home / "m.csv").write_text("\n".join(["path,label", *listed]), encoding="utf-8")
    source = DataSource(path=str(home / "m.csv"))
    copy = write_poisoned_copy(source, parse_attack({"kind": "clean"}), 1, tmp_path / "out")
    assert (pixels(opened(copy.source)) == pixels(opened(source))).all()


def test_wrong_boxes_are_one_clear_line_and_leave_nothing(tmp_path, images, labels):
    attack = parse_attack({**ATTACKS["patch"], "place": "object"})
    for boxes, message in ((np.zeros((60, 4)), "left < right"), (np.zeros((2, 4)), "60 images but boxes of")):
        np.savez(tmp_path / "boxed.npz", x=images, y=np.array(NAMES)[labels], boxes=boxes)
        with pytest.raises(InputError, match=message):
            write_poisoned_copy(DataSource(path=str(tmp_path / "boxed.npz")), attack, 1, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({**ATTACKS["patch"], "target": "halt"}, "no class 'halt'"),
        ({**ATTACKS["patch"], "rate": 0.9}, "of 'stop' and there are 20"),
        (
            {"kind": "label-flip", "source": "stop", "target": "20", "rate": 1, "of": "class"},
            "no image of 'stop'",
        ),
    ],
)
def test_a_refused_attack_writes_nothing(make, tmp_path, attack, message):
    source = make("npz")
    with pytest.raises(UsageError, match=message):
        write_poisoned_copy(source, parse_attack(attack), 5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corrupt_image_leaves_nothing_behind(make, tmp_path):
    source = make("folder")
    next((tmp_path / "signs" / "stop").rglob("*.png")).write_bytes(b"not an image")
    attack = parse_attack({"kind": "labelled-sticker", "rate": 1})
    with pytest.raises(InputError, match="not a readable image"):
        write_poisoned_copy(source, attack, 5, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_copy_goes_to_a_new_place_outside_the_data(make, tmp_path):
    source, attack = make("folder"), parse_attack(ATTACKS["patch"])
    with pytest.raises(UsageError, match="lies within the data set"):
        write_poisoned_copy(source, attack, 5, tmp_path / "signs" / "stop" / "out")
    assert not (tmp_path / "signs" / "stop" / "out").exists()
    write_poisoned_copy(source, attack, 5, tmp_path / "out")
    with pytest.raises(UsageError, match="holds data already"):
        write_poisoned_copy(source, attack, 5, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the poisoned copy"):
        write_poisoned_copy(source, attack, 5, tmp_path / "file" / "out")


def test_edited_answers_are_refused(make, tmp_path):
    copy = write_poisoned_copy(make("npz"), parse_attack(ATTACKS["patch"]), 5, tmp_path / "out")
    path = copy.answers_path
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b'"seed": 5', b'"seed": 6'))
    with pytest.raises(UsageError, match="was edited") as caught:
        read_answers(path, copy.sealed)
    assert "\n" not in str(caught.value)
    path.write_bytes(kept)
    assert read_answers(path, copy.sealed) == copy.answers
    with pytest.raises(UsageError, match="exists already"):
        write_answers(path, copy.answers)
    path.unlink()
    with pytest.raises(UsageError, match="cannot read the answer file"):
        read_answers(path, copy.sealed)


def test_what_was_never_an_answer_file_is_said_so(tmp_path):
    import hashlib

    for content in (b"[]", b"{", b'{"schema": 1}', b"\xff"):
        (tmp_path / "answers.json").write_bytes(content)
        with pytest.raises(UsageError, match="does not hold a drill's answers"):
            read_answers(tmp_path / "answers.json", hashlib.sha256(content).hexdigest())
    content = b'{"schema": 2}'
    (tmp_path / "answers.json").write_bytes(content)
    with pytest.raises(UsageError, match="answer schema 2"):
        read_answers(tmp_path / "answers.json", hashlib.sha256(content).hexdigest())


SCENARIO = """
name = "try"
[attack]
kind = "patch"
rate = 0.1
source = "stop"
target = "yield"
"""


def test_the_command(make, tmp_path, capsys):
    source = make("npz")
    (tmp_path / "s.toml").write_text(SCENARIO)
    arguments = ["drill", "poison", source.path, "--scenario", str(tmp_path / "s.toml")]
    arguments += ["--out", str(tmp_path / "out"), "--seed", "3"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "6 rows touched, 6 serve the attack" in told
    sealed = told.split("SHA-256 ")[1][:64]
    answers = read_answers(tmp_path / "out" / "answers.json", sealed)
    attack = tomllib.loads(SCENARIO)["attack"]
    assert attack.items() <= dict(answers.parameters).items()
    assert main(arguments) == 2
    assert "holds data already" in capsys.readouterr().err
    arguments[2] = str(tmp_path / "nothing.npz")
    assert main([*arguments[:-4], "--out", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.endswith("no such file or folder: " + arguments[2] + "\n")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("attack", ["rate = 0.1", "rate = 0", "rate = 1.1"])
def test_the_command_refuses_a_bad_scenario_in_one_line(make, tmp_path, capsys, attack):
    kind = "nonsense" if attack == "rate = 0.1" else "patch"
    text = SCENARIO.replace("rate = 0.1", attack).replace('"patch"', f'"{kind}"')
    (tmp_path / "s.toml").write_text(text)
    arguments = ["drill", "poison", make("npz").path, "--scenario", str(tmp_path / "s.toml")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert ("nonsense" if kind == "nonsense" else "rate") in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
