import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.core.errors import PolicyError, UsageError
from promotion_gate.validation.expectations import Reading, load_expectations, parse_expectations
from promotion_gate.validation.judged import State
from promotion_gate.validation.profile import profile_lines, starting_expectations
from promotion_gate.validation.report import validation_json, validation_lines
from promotion_gate.validation.run import examined, validate


def expect(text):
    return parse_expectations("version = 1\n" + text)


def judged(folder, text, **options):
    found = validate(str(folder.path), expect(text), **options)
    return {one.name: one for one in found.judged}


def states(folder, text, **options):
    return {name: one.state for name, one in judged(folder, text, **options).items()}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("version = 1", "expects nothing"),
        ("version = 1\n[likeness]\nnear_bits = 3", "expects nothing"),
        ("version = 2\n[files]", "version"),
        ("[files]", "version: missing"),
        ("version = 1\n[files]\nmax_unredable = 0", "files.max_unredable: unknown key"),
        ("version = 1\n[fils]", "fils: unknown key"),
        ("version = 1\ndigest = 'x'\n[files]", "digest"),
        ("version = 1\n[files]\nmax_unreadable = -1", "max_unreadable"),
        ("version = 1\n[labels]", "exact, allowed or required"),
        ("version = 1\n[labels]\nexact = ['a']\nallowed = ['a']", "leave allowed"),
        ("version = 1\n[images]\nmin_width = 9\nmax_width = 8", "no image could"),
        ("version = 1\n[drift]\nmeasures = ['smell']", "drift.measures"),
        ("version = 1\n[files", "not valid TOML"),
        ("version = 1\nx = " + "[" * 3000, "expect.toml"),
    ],
)
def test_wrong_expectations_are_refused(text, why):
    with pytest.raises(PolicyError, match=why) as error:
        parse_expectations(text)
    assert "\n" not in str(error.value)


def test_expectations_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"version = 1 # \xff")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(PolicyError):
            load_expectations(path)


def test_unreadable_files(folder):
    text = "[files]\nmax_unreadable = 0"
    assert states(folder, text) == {"files.max_unreadable": State.MET, "files.max_unread": State.MET}
    folder.add("stop/bad.png", b"bad")
    one = judged(folder, text)["files.max_unreadable"]
    assert (one.state, one.count, one.offenders[0].id) == (State.NOT_MET, 1, "stop/bad.png")
    assert set(states(folder, "[files]\nmax_unreadable = 1").values()) == {State.MET}
    # Nothing else has to be asked for: whole files always are.
    assert states(folder, "[balance]\nmin_rows = 1")["files.max_unreadable"] is State.NOT_MET


def test_files_that_no_reader_of_images_opens(folder):
    """A hidden image or a script in the folder is copied with the set, and nobody has looked at it."""
    strange = {
        ".c/x.png": "hidden",
        "evil.py": "not an image by its suffix",
        "loose.png": "in no class folder",
        "stop/.poison.png": "hidden",
    }
    for name in strange:
        folder.add(name, b"x")
    one = judged(folder, "[balance]\nmin_rows = 1")["files.max_unread"]
    assert (one.state, one.count) == (State.NOT_MET, 4)
    assert dict(one.table[1:]) == strange
    assert states(folder, "[files]\nmax_unread = 4")["files.max_unread"] is State.MET
    allowed = "[files]\nallow_unread = ['.c/*', '*.py', 'loose.png']"
    one = judged(folder, allowed)["files.max_unread"]
    assert dict(one.table[1:]) == {"stop/.poison.png": "hidden"}
    found = validate(str(folder.path))
    assert found.facts()["unread"] == 4
    assert "4 files in the folder that nobody would look at: .c/x.png, evil.py" in "\n".join(
        profile_lines(found)
    )
    again = validate(str(folder.path), parse_expectations(starting_expectations(found, Reading())))
    assert again.met
    folder.add("stop/[new].txt", b"x")
    assert not validate(str(folder.path), parse_expectations(starting_expectations(found, Reading()))).met


def test_another_split_is_not_unread_unless_the_whole_folder_is_asked_for(new_folder):
    both = new_folder("both").fill("train/stop", range(3)).fill("test/stop", range(3, 6))
    both.add("README", b"x")
    text = expect("[data]\nsplit = 'train'\n[files]")
    assert validate(str(both.path), text).unread == []
    whole = validate(str(both.path), text, whole=True, called="both")
    assert whole.unread == ["README", "test/stop/3.png", "test/stop/4.png", "test/stop/5.png"]
    assert whole.data.uri == "both/train"


def test_labels(folder):
    assert states(folder, "[labels]\nexact = ['stop', 'yield']")["labels.exact"] is State.MET
    more = judged(folder, "[labels]\nexact = ['stop', 'no entry']")["labels.exact"]
    assert (more.state, more.count) == (State.NOT_MET, 2)
    assert {row[0] for row in more.table[1:]} == {"yield", "no entry"}
    assert all(o.label == "yield" for o in more.offenders)
    allowed = "[labels]\nallowed = ['stop', 'yield', 'more']\nrequired = ['stop']"
    assert set(states(folder, allowed).values()) == {State.MET}
    (folder.path / "empty").mkdir()
    assert states(folder, "[labels]\nexact = ['stop', 'yield']")["labels.exact"] is State.MET
    assert states(folder, "[labels]\nrequired = ['empty']")["labels.required"] is State.NOT_MET


def test_images(folder, encode):
    folder.add("stop/wide.jpg", encode(np.zeros((20, 60, 3), np.uint8), "JPEG"))
    folder.add("stop/grey.png", encode(np.zeros((32, 32), np.uint8)))
    text = """[images]
min_width = 32
max_width = 50
min_height = 21
max_aspect = 2.0
min_aspect = 0.5
sizes = [[32, 32]]
modes = ["RGB"]
formats = ["PNG"]
max_bytes = 1000000
"""
    found = judged(folder, text)
    bad = {name: [o.id for o in one.offenders] for name, one in found.items() if one.state is State.NOT_MET}
    wide = ["stop/wide.jpg"]
    assert bad == {
        "images.max_width": wide,
        "images.min_height": wide,
        "images.max_aspect": wide,
        "images.sizes": wide,
        "images.modes": ["stop/grey.png"],
        "images.formats": wide,
    }
    assert len(found) == 11


def test_duplicates_however_they_are_encoded(folder, encode, picture):
    folder.add("stop/again.png", encode(picture(0), compress_level=1))
    folder.add("stop/again.bmp", encode(picture(0), "BMP"))
    folder.add("yield/other.png", encode(picture(3)))
    folder.add("yield/near.jpg", encode(picture(4, 48), "JPEG", quality=70))
    text = "[duplicates]\nmax_exact = 0\nmax_near = 0\nmax_across_labels = 0\nmax_near_across_labels = 0"
    found = judged(folder, text)
    assert found["duplicates.max_exact"].count == 3
    assert "1 of them byte for byte" in found["duplicates.max_exact"].summary
    across = {(o.id, o.beside.id) for o in found["duplicates.max_across_labels"].offenders}
    assert across == {("stop/3.png", "yield/other.png"), ("yield/other.png", "stop/3.png")}
    near = {(o.id, o.beside.id) for o in found["duplicates.max_near"].offenders}
    assert near == {("yield/near.jpg", "stop/4.png")}
    assert found["duplicates.max_near_across_labels"].count == 2
    assert (
        states(folder, "[duplicates]\nmax_exact = 3\nmax_across_labels = 2")["duplicates.max_exact"]
        is State.MET
    )


def test_leakage(folder, new_folder, encode, picture):
    holdout = new_folder("holdout").fill("stop", [50]).fill("yield", [150])
    holdout.add("stop/leak.bmp", encode(picture(7), "BMP"))
    holdout.add("yield/near.jpg", encode(picture(104, 40), "JPEG", quality=80))
    found = judged(folder, "[files]", holdout=str(holdout.path))
    exact, near = found["leakage.max_exact"], found["leakage.max_near"]
    assert [(o.id, o.beside.id) for o in exact.offenders] == [("stop/7.png", "stop/leak.bmp")]
    assert [(o.id, o.beside.id) for o in near.offenders] == [("yield/104.png", "yield/near.jpg")]
    assert exact.state is near.state is State.NOT_MET


def test_a_near_copy_of_what_leaked_leaks_as_well(folder, new_folder, encode, picture):
    folder.add("stop/near.jpg", encode(picture(7), "JPEG", quality=85))
    holdout = new_folder("holdout").fill("yield", [150]).add("stop/leak.png", picture(7))
    near = judged(folder, "[files]", holdout=str(holdout.path))["leakage.max_near"]
    assert [o.id for o in near.offenders] == ["stop/near.jpg"]


def test_without_a_holdout_leakage_cannot_be_examined(folder):
    found = validate(str(folder.path), expect("[leakage]\n[previous]\n[drift]"))
    assert not found.met
    unexamined = {one.name for one in found.judged if one.state is State.UNEXAMINED}
    assert {"leakage.max_exact", "previous.max_relabelled", "drift.contributor", "drift.batch"} <= unexamined


def test_a_crash_leaves_an_expectation_unexamined():
    def crash():
        yield from ()
        raise ZeroDivisionError("odd")

    (one,) = examined("balance", crash)
    assert one.state is State.UNEXAMINED
    assert "ZeroDivisionError" in one.summary


def test_balance(folder):
    folder.fill("stop", range(10, 40))
    found = judged(folder, "[balance]\nmin_rows = 11\nmax_ratio = 3.9")
    assert [one.state for one in found.values()][2:] == [State.NOT_MET, State.NOT_MET]
    assert states(folder, "[balance]\nmin_rows = 10\nmax_ratio = 4.0")["balance.max_ratio"] is State.MET
    (folder.path / "empty").mkdir()
    assert states(folder, "[balance]\nmax_ratio = 100.0")["balance.max_ratio"] is State.NOT_MET


def test_against_the_previous_version(folder, new_folder, picture):
    before = (
        new_folder("before").fill("stop", range(300)).fill("yield", range(1000, 1300)).fill("old", [5000])
    )
    now = new_folder("now").fill("stop", [*range(299), *range(400, 460)]).fill("yield", range(1000, 1300))
    now.add("yield/299.png", picture(299)).fill("new", [6000])
    found = judged(now, "[files]", previous=str(before.path))
    assert [row[0] for row in found["previous.max_new_labels"].table[1:]] == ["new"]
    assert [row[0] for row in found["previous.max_vanished_labels"].table[1:]] == ["old"]
    shifted = found["previous.max_shifted_labels"]
    assert {row[0] for row in shifted.table[1:]} == {"stop", "yield"}
    (one,) = found["previous.max_relabelled"].offenders
    assert (one.id, one.label, one.beside.label) == ("yield/299.png", "yield", "stop")
    same = validate(str(before.path), expect("[files]"), previous=str(before.path))
    assert same.met


def test_more_of_the_same_is_no_shift(new_folder):
    before = new_folder("before").fill("stop", range(100)).fill("yield", range(1000, 1100))
    now = new_folder("now").fill("stop", range(150)).fill("yield", range(1000, 1145))
    assert states(now, "[files]", previous=str(before.path))["previous.max_shifted_labels"] is State.MET


def test_the_starting_expectations_are_met_by_the_data(folder, encode, picture, tmp_path):
    folder.add("stop/bad.png", b"bad").add('"quoted" label\t/x.png', picture(77)).add(
        "stop/0a.png", picture(0)
    )
    found = validate(str(folder.path))
    assert not found.judged
    text = starting_expectations(found, Reading())
    again = validate(str(folder.path), parse_expectations(text))
    assert [one.name for one in again.failed] == []
    assert len(again.judged) > 10
    folder.add("stop/other.png", b"worse")
    assert not validate(str(folder.path), parse_expectations(text)).met
    assert any("22 images" in line or "23 images" in line for line in profile_lines(found))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 20), st.integers(0, 20))
def test_fewer_allowed_never_meets_more(allowed, count):
    from promotion_gate.validation.judged import Judged

    one = Judged.at_most("x", count, allowed, "")
    stricter = Judged.at_most("x", count, max(allowed - 1, 0), "")
    assert (one.state is State.MET) >= (stricter.state is State.MET)


def test_json_and_lines_name_the_rows(folder):
    hostile = "stop/\x1b[31m<b>.png"
    folder.add(hostile, b"bad")
    found = validate(str(folder.path), expect("[files]"))
    report = json.loads(validation_json(found))
    assert report["schema"] == "urn:promotion-gate:validation:v1"
    assert report["met"] is False
    assert report["expectations"][0]["rows"][0]["id"] == hostile
    assert report["facts"]["rows"] == 21
    assert any("\x1b" in line for line in validation_lines(found)), "the terminal's guard is tested elsewhere"


def test_a_data_set_that_cannot_be_opened(tmp_path):
    (tmp_path / "x.csv").write_text("path,label\nmissing.png,a\n")
    with pytest.raises(UsageError, match="line 2"):
        validate(str(tmp_path / "x.csv"), expect("[files]"))
