"""The card in a real headless Chromium: nothing foreign runs, everybody can read it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from promotion_gate.card import render_card

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.integration

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror=window.pwned=1>',
    "</script><script>window.pwned=1</script>",
    "<svg onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "' onmouseover='window.pwned=1",
    "</style><style>*{display:none}</style>",
    "{{ 7 * 7 }}${7*7}<!--",
    "</textarea></select></title><iframe src=//evil.example>",
]
# The WCAG 2.2 contrast of every visible text against the nearest opaque background behind it.
CONTRAST = """
() => {
  const luminance = ([r, g, b]) => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map(c => linear(c / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const poor = [];
  let checked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const inked = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(numbers(inked).slice(0, 3)), luminance(behind(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    checked += 1;
    const text = walker.currentNode.textContent.trim().slice(0, 40);
    if (ratio < (large ? 3 : 4.5)) poor.push([text, inked, ratio]);
  }
  return [checked, poor];
}
"""


@pytest.fixture(scope="module")
def reports() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "card_reports", Path(__file__).parents[1] / "card" / "reports.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault("card_reports", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the card was not tried in a browser")
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Visit:
    """A page with everything noted that a card must never cause."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.trouble: list[str] = []
        page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.trouble.append("dialog"), dialog.dismiss()))
        page.on("popup", lambda _: self.trouble.append("popup"))
        page.on("request", self._request)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            self.trouble.append(f"request: {request.url}")


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_card(report: Any, *, width: int = 1280, scheme: str = "light", **options: Any) -> Visit:
        path = tmp_path / f"card{len(contexts)}.html"
        path.write_bytes(render_card(report))
        size = {"width": width, "height": 800}
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        visited = Visit(context.new_page())
        visited.page.goto(path.as_uri())
        return visited

    yield open_card
    for context in contexts:
        context.close()


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.wait_for_timeout(100)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_execute_nothing(
    visit: Callable[..., Visit], reports: ModuleType, hostile: str
) -> None:
    card = visit(reports.with_names("reject", hostile))
    unfold(card.page)
    plot = card.page.locator("#map-plot")
    plot.focus()
    for key in ("ArrowRight", "n", "+", "p"):
        plot.press(key)
    card.page.locator("#map-class").select_option(index=1)
    card.page.mouse.move(300, 300)
    assert card.page.evaluate("window.pwned") is None
    assert card.page.locator("iframe, img[onerror], body script script").count() == 0
    assert hostile[:20] in card.page.locator("#map-point-class").inner_text()
    assert card.page.locator("h1").is_visible()
    assert card.trouble == []


def test_in_a_sandboxed_frame_as_mlflow_shows_it(browser: Any, reports: ModuleType, tmp_path: Path) -> None:
    context = browser.new_context()
    visited = Visit(context.new_page())
    visited.page.goto("about:blank")
    visited.page.evaluate(
        """async (text) => {
          const frame = document.createElement('iframe');
          frame.setAttribute('sandbox', 'allow-scripts');
          frame.width = 1200; frame.height = 800;
          frame.src = URL.createObjectURL(new Blob([text], {type: 'text/html'}));
          const loaded = new Promise(done => { frame.onload = done; });
          document.body.append(frame);
          await loaded;
        }""",
        render_card(reports.report("reject")).decode(),
    )
    frame = visited.page.frames[1]
    frame.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    frame.locator(".copy").first.click()
    assert frame.locator(".said").inner_text() in ("Copied.", "Selected: press Ctrl or ⌘ and C.")
    assert "promotion-gate rollback" in frame.evaluate("getSelection().toString()")
    frame.locator("#map-plot").press("n")
    assert frame.locator("#map-point-role").inner_text() == "suspect"
    assert visited.trouble == []
    context.close()


def test_the_map_is_reachable_by_keyboard(visit: Callable[..., Visit], reports: ModuleType) -> None:
    card = visit(reports.report("reject"))
    unfold(card.page)
    plot, said = card.page.locator("#map-plot"), card.page.locator("#map-said")
    for _ in range(200):
        card.page.keyboard.press("Tab")
        if card.page.evaluate("document.activeElement.id") == "map-plot":
            break
    assert card.page.evaluate("document.activeElement.id") == "map-plot"
    heard = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "n", "n"):
        plot.press(key)
        heard.append(said.text_content())
    assert all(heard)
    assert len(set(heard)) >= 4
    assert "suspect" in heard[-1]
    painted = "c => c.getContext('2d').getImageData(0, 0, 128, 128).data.some(v => v)"
    assert card.page.locator("#map-thumbnail").evaluate(painted)
    plot.press("Escape")
    assert card.page.evaluate("document.activeElement.id") != "map-plot"


def test_pointing_shows_a_point_and_the_table_pages(visit: Callable[..., Visit], reports: ModuleType) -> None:
    card = visit(reports.report("reject"))
    unfold(card.page)
    box = card.page.locator("#map-plot").bounding_box()
    for i in range(40):
        card.page.locator("#map-plot").hover(
            position={"x": box["width"] * (0.2 + i / 70), "y": box["height"] / 2}
        )
    assert ".npz:" in card.page.locator("#map-point-id").inner_text()
    assert card.page.locator("#map-rows tr").count() == 100
    assert card.page.locator("#map-rows tr").first.locator("td").nth(1).inner_text() == "suspect"
    card.page.locator("[data-page='1']").click()
    assert "page 2 of 3" in card.page.locator("#map-page").inner_text()
    card.page.locator("#map-class").select_option(label="stop")
    assert set(card.page.locator("#map-rows td:nth-child(2)").all_inner_texts()) == {"stop"}
    assert card.trouble == []


def test_tables_sort(visit: Callable[..., Visit], reports: ModuleType) -> None:
    card = visit(reports.report("promote"))
    unfold(card.page)
    head = card.page.locator("table.sortable th", has_text="Class")
    head.locator("button").click()
    names = card.page.locator("table.sortable tbody th").all_inner_texts()
    assert names == sorted(names)
    assert head.get_attribute("aria-sort") == "ascending"
    recall = card.page.locator("table.sortable th", has_text="Recall").first
    recall.locator("button").click()
    recall.locator("button").click()
    shown = card.page.locator("table.sortable tbody td:nth-child(3)").all_inner_texts()
    assert [float(s.rstrip("%")) for s in shown] == sorted(
        (float(s.rstrip("%")) for s in shown), reverse=True
    )


@pytest.mark.parametrize("width", [360, 768])
@pytest.mark.parametrize("kind", ["reject", "hold", "first", "thousand", "long"])
def test_no_horizontal_scroll(
    visit: Callable[..., Visit], reports: ModuleType, kind: str, width: int
) -> None:
    if kind == "thousand":
        report = reports.report("promote", class_names=[f"synset {i}" for i in range(1000)], points=40)
    elif kind == "long":
        report = reports.with_names("reject", "Donaudampfschifffahrt" * 12)
    else:
        report = dataclasses.replace(reports.report(kind), unsafe=("unsafe_allow_pickle",))
    page = visit(report, width=width).page
    unfold(page)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["reject", "hold", "promote"])
def test_contrast(visit: Callable[..., Visit], reports: ModuleType, kind: str, scheme: str) -> None:
    report = dataclasses.replace(reports.report(kind), unsafe=("unsafe_allow_pickle",))
    page = visit(report, scheme=scheme).page
    unfold(page)
    checked, poor = page.evaluate(CONTRAST)
    assert checked > 200
    assert poor == []


def test_dark_differs_from_light(visit: Callable[..., Visit], reports: ModuleType) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    report = reports.report("promote")
    assert visit(report).page.evaluate(paper) != visit(report, scheme="dark").page.evaluate(paper)


def test_print_opens_the_folds_and_closes_them_again(
    visit: Callable[..., Visit], reports: ModuleType
) -> None:
    card = visit(reports.report("promote"))
    count = "document.querySelectorAll('details.section:not([open])').length"
    before = card.page.evaluate(count)
    assert before > 5
    card.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert card.page.evaluate(count) == 0
    card.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert card.page.evaluate(count) == before
    assert card.page.pdf(prefer_css_page_size=True, print_background=True).startswith(b"%PDF")
    assert card.trouble == []


def test_readable_without_script(visit: Callable[..., Visit], reports: ModuleType) -> None:
    card = visit(reports.report("reject"), java_script_enabled=False)
    assert card.page.locator("#verdict").inner_text().endswith("REJECT")
    assert "promotion-gate rollback" in card.page.locator("#command-1").inner_text()
    assert card.page.locator(".copy").first.is_hidden()


def test_pictures_are_large_enough_to_see(visit: Callable[..., Visit], reports: ModuleType) -> None:
    page = visit(reports.report("reject"), width=360).page
    sizes = page.locator(".evidence .picture svg").evaluate_all("all => all.map(e => e.clientWidth)")
    assert len(sizes) == 9
    assert min(sizes) >= 96
    rendering = page.locator(".evidence image").first.evaluate("e => getComputedStyle(e).imageRendering")
    assert rendering == "pixelated"


def test_map_data_survives_its_escaping(visit: Callable[..., Visit], reports: ModuleType) -> None:
    name = "</script>&amp;<\u2028>"
    card = visit(reports.with_names("hold", name))
    data = json.loads(card.page.locator("#map-data").text_content())
    assert data["names"][0] == "</script>&amp;< >0"
    assert len(data["x"]) == len(data["ids"]) == 24
