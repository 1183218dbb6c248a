"""The drift report: what it says, what it shows, and what it says that it could not show."""

import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from promotion_gate.core.errors import GateError, SigningError
from promotion_gate.detect.windows import Window
from promotion_gate.evidence.attributions import Explained
from promotion_gate.monitor.drift_report import MOST_WINDOWS, DriftReport
from promotion_gate.monitor.explain import Explanation
from promotion_gate.monitor.images import LiveImages

BOX = Window(3, 4, 5, 6)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


class Explainer:
    """Says that the evidence lies in one box, and counts what it was asked."""

    def __init__(self):
        self.asked = []

    @contextmanager
    def open(self, ref):
        self.asked.append((ref, None))
        yield self

    def explain(self, contents, name):
        self.asked.append((name, len(contents)))
        count = len(contents)
        seen = Explained(np.ones((count, 32, 32), np.float32), [BOX] * count, [0.95] * count)
        answers = [name] * (count - 1) + ["yield"]
        return Explanation(np.zeros((count, 32, 32, 3), np.uint8), seen, answers, 1.0, seen)


def report(outcomes, **parts):
    made = DriftReport(**parts)
    for outcome in outcomes:
        made(outcome)
    return made


def page(outcomes, **parts):
    return report(outcomes, **parts).page().decode()


def text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("<body>")[2]).split())


def test_the_alarm_and_the_class_that_drifts_stand_first(looks):
    told = text(page(looks.surged()))
    assert "DRIFT prediction distribution for class &#39;speed limit 80&#39; has deviated by 11.2" in told
    assert re.search(r"Confidence speed limit 80 alarm 1,000 53% 10% \+11.2 σ 90% 25% −6.0 σ", told)
    assert "display only" in told
    assert "4 of version 2, 1 of version not named" in told


def test_the_window_with_the_surge_is_shown_though_later_ones_are_calm(looks):
    made = report(looks.surged())
    assert "2026-03-01 12:00 UTC to 2026-03-01 13:00 UTC" in text(made.page().decode())
    again = looks.alarm("yield", hour=40)
    made(looks.look(40, 50, alarms=[again], firing=[again]))
    assert "Window shown 2026-03-02 16:00 UTC" in text(made.page().decode())


def test_in_a_storm_the_gravest_stand_first_and_the_rest_is_folded(looks):
    weak = [looks.alarm(f"class {n}", kind="confidence", sigma=20.0) for n in range(8)]
    counted = {"side": "loss", "count": 2, "of": 400, "share": 0.005}
    grave = replace(looks.alarm("stop"), detail={**counted, "baseline_low": 0.03, "baseline_high": 0.07})
    firing = [*weak, grave]
    html = page([looks.look(5, 900, alarms=firing, firing=firing)])
    told = text(html)
    assert "for class &#39;stop&#39; has deviated by 11.2" in told.partition("What to do")[0]
    assert "less of it: 2 of 400 in its window, 0.50%; 3.00% to 7.00% allowed" in told
    assert "8 more alarms stand" in told
    listed = html.partition("Alarms</h2>")[2]
    assert listed.index("&#39;stop&#39;") < listed.index("class 0")
    assert "<summary>3 more</summary>" in html


def test_the_page_says_what_to_type_and_no_name_breaks_out_of_it(looks):
    raised = looks.alarm()
    outcome = replace(looks.look(5, 900, alarms=[raised], firing=[raised]), model="a; rm -rf ~", alias="live")
    told = text(page([outcome]))
    assert "promotion-gate rollback &#39;a; rm -rf ~&#39; --alias live --reason" in told
    assert "promotion-gate rollback" not in page([looks.look(0)])


def test_an_alarm_that_is_over_is_told_as_such(looks):
    raised, over = looks.alarm(), looks.alarm(state="resolved", hour=20)
    outcomes = [*looks.surged(14), looks.look(20, alarms=[over])]
    told = text(page(outcomes))
    assert told.count("✕ raised") == 1
    assert "OVER No alarm stands now; 1 stood before." in told
    assert raised.key == over.key


def test_calm_says_so(looks):
    assert "NO ALARM" in page([looks.look(0), looks.look(1)])


def test_without_a_window_there_is_no_report():
    with pytest.raises(GateError, match="no window"):
        DriftReport().page()


def test_what_could_not_be_shown_is_said(looks, folder):
    outcomes = list(looks.surged())
    assert "--images names no folder" in page(outcomes)
    assert "the log names none" in page(looks.surged(image=[""] * 12))
    hostile = ["../x.png", "/etc/passwd", *["none.png"] * 10]
    told = text(page(looks.surged(image=hostile), images=LiveImages(str(folder))))
    assert "none of the 12 that the log names could be taken" in told
    assert "not followed: 10 not there, 2 outside the folder" in told
    assert "No attributions: asked not to" in page(outcomes, notes=["No attributions: asked not to."])


def test_a_model_that_nobody_vouches_for_is_not_loaded_and_the_images_are_shown(looks, folder):
    def refused(ref):
        raise SigningError("the promote record is missing")

    html = page(looks.surged(), images=LiveImages(str(folder)), open_explainer=refused)
    assert "No attributions: the promote record is missing" in text(html)
    assert html.count("<image href") == 8


def test_attributions_lie_on_the_images_and_the_model_is_opened_once(looks, folder):
    explainer = Explainer()
    made = report(looks.surged(), images=LiveImages(str(folder)), open_explainer=explainer.open)
    html = made.page().decode()
    assert made.page().decode() == html
    assert [asked[1] for asked in explainer.asked] == [None, 8]
    assert explainer.asked[0][0].version == 3
    assert html.count('class="box inner" x="3.5" y="2.5" width="7" height="6"') == 16
    told = text(html)
    assert "in one spot by 0.95 on these images, and by 0.95 on 8 trusted images" in told
    assert "On 100% of the 8 images it lies at the same place" in told
    assert "gives 1 of these 8 images another class than the log says" in told


def test_every_string_from_outside_is_escaped(looks, folder):
    (folder / looks.HOSTILE).write_bytes((folder / "0.png").read_bytes())
    bad = looks.alarm("<script>alert(1)</script>")
    outcome = looks.look(
        5, 900, alarms=[bad], firing=[bad], shown=looks.samples(2, 3, [looks.HOSTILE, "1\u202e.png"])
    )
    html = page([outcome], images=LiveImages(str(folder)))
    assert "<script" not in html
    assert "<img" not in html
    assert "\u202e" not in html
    assert "&lt;script&gt;" in html


def test_the_file_holds_all_it_shows_and_stays_small(looks, folder):
    names = tuple(f"class {i} " + "x" * 200 for i in range(4))
    outcomes = [looks.look(hour, 10, names=names) for hour in range(2 * MOST_WINDOWS)]
    html = page([*outcomes, *looks.surged()], images=LiveImages(str(folder)))
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", html)
    assert "default-src &#39;none&#39;" in html
    assert len(html) < 2_000_000


def test_a_window_that_is_looked_at_twice_is_one_window(looks):
    html = page([looks.look(0, complete=False), looks.look(0), looks.look(1)])
    assert html.count("<title>2026-03-01 00:00 UTC") == 4  # three classes and PSI


def test_a_class_that_became_rare_has_no_images_behind_it(looks, folder):
    rare = replace(looks.alarm("stop", sigma=99.0), detail={"side": "loss"})
    raised = looks.alarm()
    outcome = looks.look(5, 900, alarms=[rare, raised], firing=[rare, raised], shown=looks.samples())
    told = text(page([outcome], images=LiveImages(str(folder))))
    assert told.index("Behind the alarm: speed limit 80") < told.index("Behind the alarm: stop")
    assert "The class became rare" in told
