from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.card import render_card, report_json, report_junit, report_markdown


class Outline(HTMLParser):
    """The tags and attribute names of a page, and the text of its scripts and styles."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.inner: dict[str, list[str]] = {"style": [], "script": []}
        self.text: list[str] = []
        self._open = ""
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inner:
            self.inner[self._open].append(data)
        else:
            self.text.append(data)


@pytest.mark.parametrize("kind", ["reject", "hold", "promote", "first"])
def test_same_report_same_bytes(reports: ModuleType, kind: str) -> None:
    one, other = reports.report(kind), reports.report(kind)
    assert render_card(one) == render_card(other)
    assert report_json(one) == report_json(other)
    assert report_junit(one) == report_junit(other)
    assert report_markdown(one) == report_markdown(other)


def test_first_screen_says_what_a_release_manager_needs(reports: ModuleType) -> None:
    report = dataclasses.replace(reports.report("reject"), unsafe=("unsafe_allow_pickle",))
    text = " ".join(" ".join(Outline(render_card(report)).text).split())
    first = text[: text.index("Findings")]
    for needed in (
        "REJECT",
        "at most 3",
        "at most 0.2",
        "This patch turns stop into speed limit 80",
        "Recovered trigger",
        "Difference to production",
        "Not checked",
        report.candidate.digest,
        report.verdict.policy_digest,
        "mira on build-7",
        "2026-03-04 09:41 UTC",
        "unsafe_allow_pickle",
        "bubblewrap",
        'promotion-gate rollback traffic-signs --reason "…"',
    ):
        assert needed in first, needed


def test_content_policy_matches_the_page(reports: ModuleType) -> None:
    outline = Outline(render_card(reports.report("reject")))
    policy = next(value for _, _, value in outline.attributes if value and value.startswith("default-src"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    hashes = [f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
              for text in (*outline.inner["style"], outline.inner["script"][-1])]  # fmt: skip
    assert re.findall(r"'(sha256-[^']+)'", policy) == hashes


def test_nothing_is_loaded_and_nothing_runs_from_an_attribute(reports: ModuleType) -> None:
    for kind in ("reject", "hold", "promote", "first"):
        outline = Outline(render_card(reports.report(kind)))
        for tag, name, value in outline.attributes:
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:image/", "#")), value
        assert {tag for tag, _ in outline.tags}.isdisjoint(
            {"iframe", "object", "embed", "link", "base", "form"}
        )


def test_headings_in_order_ids_unique_images_named(reports: ModuleType) -> None:
    outline = Outline(render_card(reports.report("reject")))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = [value for _, name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert all("alt" in names for tag, names in outline.tags if tag == "img")
    assert all("scope" in names for tag, names in outline.tags if tag == "th")


hostile = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from("<>&\"'`/\\={}%#;()$ !-scriptonerror\u2028\u202e\x00\ud800\n"), max_size=60),
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "{{ 7*7 }}",
            "<!--",
            "]]>",
            "$x^{2$",
        ]
    ),
)


@pytest.fixture(scope="module")
def calm(reports: ModuleType) -> Outline:
    return Outline(render_card(reports.with_names("reject", "calm")))


@settings(max_examples=20, deadline=None)
@given(text=hostile)
def test_any_string_from_outside_is_inert(reports: ModuleType, calm: Outline, text: str) -> None:
    wild = Outline(render_card(reports.with_names("reject", f"x{text}")))
    assert _shape(wild) == _shape(calm)
    assert {(t, n) for t, n, _ in wild.attributes} <= {(t, n) for t, n, _ in calm.attributes}
    assert wild.inner["style"] == calm.inner["style"]
    assert wild.inner["script"][-1] == calm.inner["script"][-1]


def _shape(outline: Outline) -> list[tuple[str, tuple[str, ...]]]:
    """The page's tags in order, less those of the command, which a name with controls does not get."""
    command = ("button", "code", "p", "div", "span")
    return [(tag, names) for tag, names in outline.tags if tag not in command]


def test_size_of_a_full_card(reports: ModuleType) -> None:
    folder = os.environ.get("GATE_TEST_DATA", "")
    images = None
    if folder and (Path(folder) / "gtsrb32.npz").exists():
        with np.load(Path(folder) / "gtsrb32.npz") as data:
            images = data["x"][::7][:5000]
    page = render_card(
        reports.report("reject", class_names=[f"class {i}" for i in range(43)], points=5000, images=images)
    )
    assert len(page) <= 3_000_000


def test_a_thousand_classes_stay_small(reports: ModuleType) -> None:
    page = render_card(reports.report("promote", class_names=[f"synset {i}" for i in range(1000)], points=60))
    assert len(page) <= 2_000_000
    assert b"The other 950 classes" in page
