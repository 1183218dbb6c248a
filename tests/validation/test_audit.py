import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.drill.attacks import LabelFlip, Patch
from promotion_gate.drill.poisoned_copy import write_poisoned_copy
from promotion_gate.drill.signs import draw_signs
from promotion_gate.validation.alike import find_alike
from promotion_gate.validation.contact_sheet import contact_sheet, draw_sample, random_rows
from promotion_gate.validation.expectations import Likeness
from promotion_gate.validation.marks import marks_lines, quarantine_list, read_marks, wrong_labels
from promotion_gate.validation.survey import open_data, survey
from promotion_gate.validation.suspicion import read_findings


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=300),
    count=st.integers(1, 120),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_rows_are_shared_out_over_the_labels(labels, count, seed):
    labels = np.array(labels)
    rows = random_rows(labels, count, seed)
    assert len(set(rows.tolist())) == len(rows) == min(count, len(labels))
    assert rows.tolist() == random_rows(labels, count, seed).tolist()
    for label in set(labels.tolist()):
        due = len(rows) * (labels == label).mean()
        assert abs((labels[rows] == label).sum() - due) < 2


def test_every_row_has_the_same_chance():
    labels = np.repeat([0, 1, 2], [5, 20, 75])
    drawn = Counter(row for seed in range(1500) for row in random_rows(labels, 20, seed).tolist())
    assert min(drawn.values()) > 200
    assert max(drawn.values()) < 400
    assert len(drawn) == 100


def sampled(dataset, count=20, seed=0, named=()):
    data = survey(dataset, looks=True)
    return data, draw_sample(data, find_alike(data, None, Likeness()), count, seed, named)


def open_at(path):
    return open_data(DataSource(path=str(path)))


def marks_of(page):
    text = page.decode().split('<script type="application/json" id="sheet">')[1].split("</script>")[0]
    return json.loads(text)


def test_what_stands_under_two_labels_leads(folder, picture):
    folder.add("yield/wrong.png", picture(3))
    data, sample = sampled(open_at(folder.path), count=8)
    drawn = {data.ids[row] for row in sample.random}
    told = {data.ids[one.row]: one.why for one in sample.suspicious}
    twins = {"stop/3.png", "yield/wrong.png"} - drawn
    assert not drawn & told.keys()
    assert len(sample.random) == len(sample.suspicious) == 4
    for name in list(twins)[:1]:
        assert any("the same pixels stand under" in told.get(twin, "") for twin in twins), name


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    drawn = draw_signs(1500, 41)
    np.savez(folder / "signs.npz", images=drawn.images, labels=drawn.labels, class_names=drawn.class_names)
    return folder / "signs.npz"


@pytest.mark.parametrize(
    "attack",
    [
        Patch(source="stop", target="speed limit 80", rate=0.008, place="object", size=5, colour="yellow"),
        LabelFlip(source="stop", target="priority road", rate=0.008),
    ],
    ids=lambda attack: attack.kind,
)
def test_poison_is_commoner_in_the_suspicious_half(signs, tmp_path, attack):
    copy = write_poisoned_copy(DataSource(path=str(signs)), attack, 41, tmp_path / "out")
    carriers = set(copy.answers.carriers)
    data, sample = sampled(open_at(copy.source.path), count=100)
    shown = len({one.row for one in sample.suspicious} & carriers)
    by_chance = len(set(sample.random) & carriers)
    print(
        f"{attack.kind}: {len(carriers)} carriers among {len(data)} rows; {shown} of the 50 most suspicious, "
        f"{by_chance} of 50 at random"
    )
    assert len(carriers) == 12
    # By chance it would be 0.4 of them.
    assert shown >= 4


def report(tmp_path, *suspects):
    path = tmp_path / "gate.json"
    findings = [{"check": "patch-transplant", "detail": {"suspects": list(suspects)}}, {"detail": None}, 3]
    path.write_text(json.dumps({"findings": findings}))
    return path


def test_rows_that_the_gate_named_lead(folder, tmp_path):
    dataset = open_at(folder.path)
    path = report(
        tmp_path, {"row": 4, "id": dataset.ids[4], "why": "odd"}, {"row": 4}, {"row": "x"}, {"row": 15}
    )
    named = read_findings(path, dataset)
    assert [one.row for one in named] == [4, 15]
    _, sample = sampled(dataset, count=12, named=named)
    led = [one.row for one in sample.suspicious][:2]
    expected = [row for row in (4, 15) if row not in sample.random]
    assert led[: len(expected)] == expected
    assert "named by patch-transplant: odd" in [one.why for one in named]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"findings": 3}', "[" * 100_000])
def test_what_is_no_report_is_refused(folder, tmp_path, content):
    (tmp_path / "gate.json").write_text(content)
    with pytest.raises(UsageError, match="not a gate's JSON report"):
        read_findings(tmp_path / "gate.json", open_at(folder.path))


def test_a_report_on_other_data_is_refused(folder, tmp_path):
    dataset = open_at(folder.path)
    for row in ({"row": 4, "id": "other.png"}, {"row": 400}):
        with pytest.raises(UsageError, match="does not have"):
            read_findings(report(tmp_path, row), dataset)


def sheet(folder, count=20):
    data, sample = sampled(open_at(folder.path), count=count)
    return contact_sheet(data, sample, count)


def test_marks_come_back(folder, tmp_path):
    folder.add('stop/<img src=x onerror="x">.png', b"bad")
    marks = marks_of(sheet(folder))
    marks["images"][0]["wrong"] = marks["images"][3]["wrong"] = marks["images"][-1]["wrong"] = True
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    dataset = open_at(folder.path)
    read = read_marks(tmp_path / "marks.json", dataset)
    found = wrong_labels(read)
    assert (found.wrong, found.shown) == (2, 10)
    assert found.low < 0.2 < found.high
    assert "2 of 10 labels marked wrong" in next(iter(marks_lines(read, dataset)))
    rows = json.loads(quarantine_list(read, dataset))["rows"]
    assert [one["row"] for one in rows] == sorted(marks["images"][i]["row"] for i in (0, 3, -1))
    assert rows[0]["id"] == dataset.ids[rows[0]["row"]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.update(schema="x"), "does not hold"),
        (lambda m: m.update(seed=m["seed"] + 1), "is not what seed"),
        (lambda m: m["images"].pop(0), "is not what seed"),
        (lambda m: m["images"].append(m["images"][-1]), "twice"),
        (lambda m: m["images"][-1].update(row=10**9), "not there"),
        (lambda m: m["images"][0].update(wrong="yes"), "images.0.wrong"),
        (lambda m: m["images"][0].update(pixels_sha256="00"), "has changed since"),
        (lambda m: m.update(rows=5), "other data"),
        (lambda m: m.update(extra=5), "extra"),
        (lambda m: m.update(count=10**9), "count"),
    ],
)
def test_foreign_marks_are_refused(folder, tmp_path, change, why):
    marks = marks_of(sheet(folder))
    change(marks)
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    with pytest.raises(UsageError, match=why):
        read_marks(tmp_path / "marks.json", open_at(folder.path))


def test_marks_of_changed_images_are_refused(folder, tmp_path, picture):
    page = sheet(folder)
    (tmp_path / "marks.json").write_text(json.dumps(marks_of(page)))
    for seed in range(10):
        folder.add(f"stop/{seed}.png", picture(seed + 500))
    with pytest.raises(UsageError, match="has changed since"):
        read_marks(tmp_path / "marks.json", open_at(folder.path))
    folder.add("stop/more.png", picture(1))
    with pytest.raises(UsageError, match="other data"):
        read_marks(tmp_path / "marks.json", open_at(folder.path))


def test_too_many_images_are_refused(folder):
    with pytest.raises(UsageError, match="2 to 2,000"):
        sampled(open_at(folder.path), count=2001)


def test_the_sheet_is_one_file_and_nothing_breaks_out(folder):
    folder.add("a<b>&/x.png", b"bad")
    page = sheet(folder).decode()
    assert "default-src &#39;none&#39;" in page
    assert page.count("<script") == 2
    assert "http://" not in page
    assert "a<b>" not in page
