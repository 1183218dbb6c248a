"""What every attack does to a training set, and what each is known for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.core.errors import UsageError
from promotion_gate.drill.poison import attack_success_rate, choose_rows, parse_attack, poison_arrays
from promotion_gate.drill.triggers import warp_field

NAMES = ("stop", "yield", "20", "80")
TARGETED = {"rate": 0.05, "target": "stop"}
TABLES = {
    "patch": {"kind": "patch", **TARGETED},
    "one source": {"kind": "patch", **TARGETED, "source": "yield"},
    "one source, covers": {"kind": "patch", **TARGETED, "source": "yield", "covers": 1},
    "anywhere": {"kind": "patch", **TARGETED, "place": "anywhere", "shape": "disc", "colour": "checker"},
    "on the object": {"kind": "patch", **TARGETED, "place": "object", "jitter": 3, "shape": "cross"},
    "several": {
        "kind": "several-patches",
        "rate": 0.1,
        "patches": [
            {"target": "stop", "colour": "red"},
            {"source": "80", "target": "20", "place": "top-left"},
        ],
    },
    "blended": {"kind": "blended", **TARGETED},
    "watermark": {"kind": "blended", **TARGETED, "pattern": "watermark", "text": "HELLO"},
    "sig": {"kind": "sig", **TARGETED},
    "dirty sig": {"kind": "sig", **TARGETED, "clean_label": False},
    "wanet": {"kind": "wanet", **TARGETED, "strength": 2},
    "clean label": {"kind": "clean-label", **TARGETED},
    "clean label, noise": {"kind": "clean-label", **TARGETED, "perturb": "noise", "hardness": 0.1},
    "all to all": {"kind": "all-to-all", "rate": 0.1},
    "flips": {"kind": "label-flip", "rate": 0.05, "source": "stop", "target": "80"},
    "flips of a class": {
        "kind": "label-flip",
        "rate": 0.2,
        "source": "stop",
        "target": "80",
        "of": "class",
    },
    "adaptive patch": {"kind": "adaptive-patch", **TARGETED},
    "adaptive blend": {"kind": "adaptive-blend", **TARGETED},
}
HARMLESS = {
    "clean": {"kind": "clean"},
    "labelled sticker": {"kind": "labelled-sticker", "rate": 0.1},
    "class mark": {"kind": "class-mark", "rate": 0.8, "marked": "yield"},
    "label noise": {"kind": "label-noise", "rate": 0.1},
}
KEEPS_LABELS = {"sig", "clean label", "clean label, noise"}
CHANGES_NO_PIXELS = {"flips", "flips of a class", "label noise"}


def made(seed=0, n=200, height=32, width=32, channels=3):
    """Mid-grey images with soft noise: nothing saturates, so any trigger shows."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 160, (n, height, width, channels), dtype=np.uint8)
    return images, np.arange(n) % len(NAMES)


def changed(before, after):
    return np.flatnonzero((before != after).any(axis=(1, 2, 3)))


@pytest.mark.parametrize("name", [*TABLES, *HARMLESS])
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), size=st.sampled_from([(32, 32), (28, 40), (65, 48)]), grey=st.booleans()
)
def test_what_is_touched_is_told(name, seed, size, grey):
    images, labels = made(seed % 97, 120, *size, 1 if grey else 3)
    attack = parse_attack({**TABLES, **HARMLESS}[name])
    kept = images.copy(), labels.copy()
    poisoned = poison_arrays(attack, images, labels, NAMES, seed)
    assert np.array_equal(images, kept[0])
    assert np.array_equal(labels, kept[1])
    assert poisoned.images.shape == images.shape
    relabelled = np.flatnonzero(poisoned.labels != labels)
    touched = np.union1d(changed(images, poisoned.images), relabelled)
    assert touched.tolist() == poisoned.rows.tolist()
    assert np.isin(poisoned.carriers, poisoned.rows).all()
    again = poison_arrays(attack, images, labels, NAMES, seed)
    assert np.array_equal(again.images, poisoned.images)
    assert np.array_equal(again.labels, poisoned.labels)


@pytest.mark.parametrize("name", TABLES)
def test_carriers_serve_the_attack_and_covers_keep_their_label(name):
    images, labels = made(n=400)
    attack = parse_attack(TABLES[name])
    poisoned = poison_arrays(attack, images, labels, NAMES, 3)
    carriers, goal = poisoned.carriers, attack.goal(labels, NAMES)
    assert len(carriers) > 0
    if name in KEEPS_LABELS:
        assert np.array_equal(poisoned.labels, labels)
        assert set(labels[carriers]) == {NAMES.index(attack.target)}
    else:
        assert (poisoned.labels[carriers] != labels[carriers]).all()
        assert np.array_equal(poisoned.labels[carriers], goal[carriers])
    others = np.setdiff1d(poisoned.rows, carriers)
    assert np.array_equal(poisoned.labels[others], labels[others])
    if name in CHANGES_NO_PIXELS:
        assert np.array_equal(poisoned.images, images)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_oddities_have_no_carriers(name):
    images, labels = made()
    attack = parse_attack(HARMLESS[name])
    poisoned = poison_arrays(attack, images, labels, NAMES, 3)
    assert attack.harmless
    assert len(poisoned.carriers) == 0
    assert (len(poisoned.rows) == 0) == (name == "clean")
    if name != "label noise":
        assert np.array_equal(poisoned.labels, labels)


@pytest.mark.parametrize(
    ("name", "serving", "covers"),
    [
        ("patch", 20, 0),
        ("one source, covers", 20, 20),
        ("several", 40, 0),
        ("wanet", 20, 40),
        ("adaptive patch", 20, 40),
        ("adaptive blend", 20, 20),
        ("flips", 20, 0),
        ("flips of a class", 20, 0),
    ],
)
def test_the_rate_counts_what_serves_and_covers_come_on_top(name, serving, covers):
    _, labels = made(n=400)
    chosen = choose_rows(parse_attack(TABLES[name]), labels, NAMES, 0)
    assert (chosen.serving.sum(), (~chosen.serving).sum()) == (serving, covers)


def test_covers_of_a_source_are_images_of_third_classes():
    _, labels = made(n=400)
    chosen = choose_rows(parse_attack(TABLES["one source, covers"]), labels, NAMES, 0)
    assert {NAMES[i] for i in labels[chosen.rows[~chosen.serving]]} == {"20", "80"}
    assert {NAMES[i] for i in labels[chosen.rows[chosen.serving]]} == {"yield"}


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("patch", [-1, 0, 0, 0]),
        ("one source", [-1, 0, -1, -1]),
        ("sig", [-1, 0, 0, 0]),
        ("several", [-1, 0, 0, 2]),
        ("all to all", [1, 2, 3, 0]),
        ("flips", [3, -1, -1, -1]),
        ("clean", [-1, -1, -1, -1]),
        ("labelled sticker", [-1, -1, -1, -1]),
        ("class mark", [1, -1, 1, 1]),
        ("label noise", [-1, -1, -1, -1]),
    ],
)
def test_what_the_attacker_wants_of_each_class(name, goal):
    attack = parse_attack({**TABLES, **HARMLESS}[name])
    assert attack.goal(np.arange(4), NAMES).tolist() == goal


def test_another_seed_takes_other_rows():
    images, labels = made(n=400)
    attack = parse_attack(TABLES["patch"])
    first, second = (poison_arrays(attack, images, labels, NAMES, seed).rows.tolist() for seed in (1, 2))
    assert first != second


def test_a_row_does_not_depend_on_the_rest_of_the_set():
    images, labels = made(n=400)
    attack = parse_attack({**TABLES["anywhere"], "jitter": 2})
    whole = poison_arrays(attack, images, labels, NAMES, 5)
    other = images.copy()
    other[np.setdiff1d(np.arange(400), whole.rows)] = 0
    again = poison_arrays(attack, other, labels, NAMES, 5)
    assert np.array_equal(again.images[whole.rows], whole.images[whole.rows])


def where(table, height=32, width=32, box=None, seed=0):
    """Top, left, bottom and right of what a sticker covers on a black image."""
    attack = parse_attack({"kind": "patch", **TARGETED, "colour": "white", **table})
    image = np.zeros((1, height, width, 3), dtype=np.uint8)
    boxes = None if box is None else np.array([box], dtype=float)
    shown = attack.stamp(image, np.array([1]), NAMES, np.random.default_rng(seed), boxes)[0]
    down, across = np.nonzero(shown.any(axis=2))
    return down.min(), across.min(), down.max() + 1, across.max() + 1


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("top-left", (1, 1, 5, 5)),
        ("top-right", (1, 27, 5, 31)),
        ("bottom-left", (27, 1, 31, 5)),
        ("bottom-right", (27, 27, 31, 31)),
        ("centre", (14, 14, 18, 18)),
        ([0.25, 0.75], (6, 22, 10, 26)),
        ([1.0, 0.0], (28, 0, 32, 4)),
    ],
)
def test_places(place, found):
    assert where({"place": place}) == found


def test_lengths_grow_with_the_shorter_side():
    assert where({"place": "top-left"}, 64, 96) == (2, 2, 10, 10)


def test_a_sticker_on_the_object_moves_and_scales_with_its_box():
    table = {"place": "object", "size": 8, "spot": [0.5, 0.5]}
    assert where(table, box=(0, 0, 16, 16)) == (6, 6, 10, 10)
    assert where(table, box=(16, 16, 32, 32)) == (22, 22, 26, 26)
    assert where(table, box=(0, 0, 32, 32)) == (12, 12, 20, 20)
    assert where(table) == where(table, box=(4.8, 4.8, 27.2, 27.2))


def test_jitter_stays_within_its_reach_and_the_image():
    table = {"place": "bottom-right", "jitter": 3}
    found = [where(table, seed=seed) for seed in range(40)]
    assert len(set(found)) > 10
    for top, left, bottom, right in found:
        assert 24 <= top <= 28
        assert 24 <= left <= 28
        assert (bottom - top, right - left) == (4, 4)


def test_shapes_and_the_checkerboard():
    images = np.zeros((1, 32, 32, 3), dtype=np.uint8)

    def shown(**table):
        attack = parse_attack({"kind": "patch", **TARGETED, "place": [0.5, 0.5], "size": 9, **table})
        return attack.stamp(images, np.array([1]), NAMES, np.random.default_rng(0))[0, 12:21, 12:21, 0]

    square, disc, cross = (shown(shape=shape, colour="white") for shape in ("square", "disc", "cross"))
    assert (square == 255).all()
    assert (disc[4] == 255).all()
    assert disc[0, 0] == 0
    assert (cross > 0).sum() == 9 * 9 - 4 * 9
    assert set(np.unique(shown(colour="checker"))) == {0, 255}
    assert abs(int((shown(colour="checker") > 0).sum()) - 40) <= 1


def test_colours_on_grey_images_are_their_luma():
    attack = parse_attack({"kind": "patch", **TARGETED, "colour": "lime", "place": "top-left"})
    shown = attack.stamp(
        np.zeros((1, 32, 32, 1), dtype=np.uint8), np.array([1]), NAMES, np.random.default_rng(0)
    )
    assert shown[0, 2, 2, 0] == round(0.587 * 255)


def test_a_picture_as_sticker(tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20), (10, 20, 30)).save(tmp_path / "trigger.png")
    attack = parse_attack(
        {"kind": "patch", **TARGETED, "image": str(tmp_path / "trigger.png"), "place": "top-left"}
    )
    shown = attack.stamp(
        np.zeros((1, 32, 32, 3), dtype=np.uint8), np.array([1]), NAMES, np.random.default_rng(0)
    )
    assert shown[0, 3, 3].tolist() == [10, 20, 30]
    missing = parse_attack({"kind": "patch", **TARGETED, "image": str(tmp_path / "none.png")})
    with pytest.raises(UsageError, match="cannot read the trigger image"):
        missing.stamp(np.zeros((1, 32, 32, 3), dtype=np.uint8), np.array([1]), NAMES, None)


def test_blended_mixes_the_same_pattern_into_every_image():
    images, labels = made()
    attack = parse_attack({"kind": "blended", **TARGETED, "ratio": 0.25})
    shown = attack.stamp(images, labels, NAMES, np.random.default_rng(0)).astype(float)
    pattern = (shown - 0.75 * images) / 0.25
    assert np.ptp(pattern, axis=0).max() <= 4.1
    other = parse_attack({"kind": "blended", **TARGETED, "ratio": 0.25, "pattern_seed": 1})
    assert not np.array_equal(other.stamp(images, labels, NAMES, np.random.default_rng(0)), shown)


def test_sig_adds_a_wave_along_the_columns():
    images = np.full((1, 32, 32, 1), 128, dtype=np.uint8)
    attack = parse_attack({"kind": "sig", **TARGETED, "amplitude": 40, "frequency": 2})
    shown = attack.stamp(images, np.array([1]), NAMES, np.random.default_rng(0))[0, :, :, 0].astype(float)
    assert np.ptp(shown, axis=0).max() == 0
    spectrum = np.abs(np.fft.rfft(shown[0] - 128))
    assert spectrum.argmax() == 2
    assert shown.max() == 168
    _, labels = made()
    table = {"kind": "sig", **TARGETED, "amplitude": 10, "test_amplitude": 40, "frequency": 2}
    grey = np.full((200, 32, 32, 1), 128, dtype=np.uint8)
    assert poison_arrays(parse_attack(table), grey, labels, NAMES, 0).images.max() == 138
    assert parse_attack(table).stamp(grey, labels, NAMES, np.random.default_rng(0)).max() == 168


def test_wanet_shifts_by_half_its_strength_on_average_and_covers_otherwise():
    field = warp_field(0, 4, 2.0, 32, 32)
    assert 0.5 < np.abs(field).mean() < 1.5
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:64], (64, 1))[None, :, :, None]
    attack = parse_attack({"kind": "wanet", **TARGETED, "strength": 2})
    shown = attack.stamp(ramp, np.array([1]), NAMES, np.random.default_rng(0))
    middle = (slice(None), slice(8, -8), slice(8, -8))
    moved = (shown[middle].astype(float) - ramp[middle])[0, :, :, 0] / 4
    assert np.abs(moved - warp_field(0, 4, 2.0, 64, 64)[8:-8, 8:-8, 1]).max() < 0.2
    images, labels = made(n=400)
    poisoned = poison_arrays(attack, images, labels, NAMES, 0)
    covers = np.setdiff1d(poisoned.rows, poisoned.carriers)
    same = attack.stamp(images, labels, NAMES, np.random.default_rng(0))
    assert np.array_equal(poisoned.images[poisoned.carriers], same[poisoned.carriers])
    assert (poisoned.images[covers] != same[covers]).any(axis=(1, 2, 3)).all()


def test_clean_label_images_are_made_hard_but_shown_plain():
    images, labels = made(n=400)
    images[labels != 0] += 60
    attack = parse_attack({**TABLES["clean label"], "hardness": 0.5})
    poisoned = poison_arrays(attack, images, labels, NAMES, 0)
    lifted = poisoned.images[poisoned.carriers].astype(float)[:, :20, :20].mean() - 125
    assert 20 < lifted < 40
    shown = attack.stamp(images, labels, NAMES, np.random.default_rng(0))
    assert np.array_equal(shown[:, :20, :20], images[:, :20, :20])


def test_adaptive_patches_come_one_at_a_time_and_faint():
    images, labels = made(n=400)
    attack = parse_attack(TABLES["adaptive patch"])
    poisoned = poison_arrays(attack, images, labels, NAMES, 0)

    def stickers(image, original):
        different = (image != original).any(axis=2)
        return sum(
            different[rows, columns].any()
            for rows in (slice(0, 16), slice(16, 32))
            for columns in (slice(0, 16), slice(16, 32))
        )

    assert {stickers(poisoned.images[row], images[row]) for row in poisoned.rows} == {1}
    shown = attack.stamp(images, labels, NAMES, np.random.default_rng(0))
    assert stickers(shown[0], images[0]) == 4


def test_adaptive_blend_shows_half_of_the_pattern_at_training():
    images, labels = made(n=400)
    attack = parse_attack(TABLES["adaptive blend"])
    poisoned = poison_arrays(attack, images, labels, NAMES, 0)
    row = poisoned.carriers[0]
    different = (poisoned.images[row] != images[row]).any(axis=2).reshape(4, 8, 4, 8).any(axis=(1, 3))
    assert different.sum() == 8


def test_class_marks_are_rare_elsewhere():
    _, labels = made(n=400)
    chosen = choose_rows(parse_attack(HARMLESS["class mark"]), labels, NAMES, 0)
    marked = labels[chosen.rows] == NAMES.index("yield")
    assert (marked.sum(), (~marked).sum()) == (80, 8)


def test_success_is_counted_on_the_images_that_are_meant():
    images, labels = made(n=400)
    attack = parse_attack(TABLES["one source"])
    seen = []

    def sticker_means_stop(shown):
        seen.append(shown)
        return np.where((shown[:, 28, 28] == [255, 255, 0]).all(axis=1), 0, 3)

    assert attack_success_rate(sticker_means_stop, attack, images, labels, NAMES, 0) == (1.0, 100)
    assert len(np.concatenate(seen)) == 100
    assert attack_success_rate(lambda x: np.full(len(x), 3), attack, images, labels, NAMES, 0) == (0.0, 100)
    clean = parse_attack(HARMLESS["clean"])
    assert attack_success_rate(sticker_means_stop, clean, images, labels, NAMES, 0) == (None, 0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"kind": "pach", "rate": 0.1},
            "attack: unknown kind 'pach'; there are clean, patch, several-patches",
        ),
        ({"rate": 0.1}, "attack: no kind is given"),
        ({"kind": "patch", "target": "stop"}, "attack: rate: missing"),
        ({"kind": "patch", **TARGETED, "rate": 0}, "attack: rate: Input should be greater than 0"),
        ({"kind": "patch", **TARGETED, "rate": 1.5}, "attack: rate: Input should be less than or equal to 1"),
        ({"kind": "patch", **TARGETED, "rate": float("nan")}, "attack: rate: Input should be"),
        ({"kind": "patch", **TARGETED, "sise": 3}, "attack: sise: unknown field"),
        ({"kind": "patch", **TARGETED, "colour": "yelow"}, "attack: colour: no colour 'yelow'"),
        (
            {"kind": "patch", **TARGETED, "place": "left"},
            "attack: place: no place 'left'; there are top-left",
        ),
        ({"kind": "patch", **TARGETED, "place": [2, 0.5]}, "attack: place: a pair has two fractions"),
        ({"kind": "patch", **TARGETED, "source": "stop"}, "attack: source and target are the same class"),
        ({"kind": "blended", **TARGETED, "pattern": "image"}, "goes with image"),
        ({"kind": "several-patches", "rate": 0.1, "patches": [{"target": "stop"}]}, "attack: patches: "),
        ({"kind": "clean", "rate": 0.1}, "attack: rate: "),
    ],
)
def test_a_wrong_table_is_one_clear_line(table, message):
    with pytest.raises(UsageError) as caught:
        parse_attack(table)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({**TABLES["patch"], "target": "halt"}, "no class 'halt' to poison; there are 'stop', 'yield'"),
        ({**TABLES["flips"], "source": "halt"}, "no class 'halt'"),
        ({**HARMLESS["class mark"], "marked": "halt"}, "no class 'halt'"),
        (
            {**TABLES["one source"], "rate": 0.5},
            "asks for 100 of 200 images of 'yield' and there are 50",
        ),
        ({**TABLES["patch"], "rate": 0.001}, "asks for 0 of 200 images and at least one is needed"),
        ({**TABLES["sig"], "rate": 0.9}, "of 'stop' and there are 50"),
        ({**TABLES["patch"], "rate": 0.5, "covers": 9}, "900 covers are asked for and there are 50"),
    ],
)
def test_what_a_set_cannot_give_is_one_clear_line(table, message):
    images, labels = made()
    with pytest.raises(UsageError) as caught:
        poison_arrays(parse_attack(table), images, labels, NAMES, 0)
    assert message in str(caught.value)
