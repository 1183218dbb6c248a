"""The validation report and the contact sheet in a real headless Chromium."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from promotion_gate.cli import main

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.integration

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
HOSTILE = "<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / "signs" / ("stop", HOSTILE)[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    (folder / "signs" / "stop" / "=cmd()<b>.png").write_bytes(b"bad")
    shutil.copy(folder / "signs" / "stop" / "0.png", folder / "signs" / HOSTILE / "copy.png")
    data = str(folder / "signs")
    (folder / "e.toml").write_text(
        'version = 1\n[labels]\nexact = ["stop"]\n[duplicates]\n[leakage]\n[balance]\nmin_rows = 5\n'
    )
    assert (
        main(
            [
                "validate",
                data,
                "--expect",
                str(folder / "e.toml"),
                "--html",
                str(folder / "v.html"),
                "--quiet",
            ]
        )
        == 3
    )
    assert main(["audit-sample", data, "-n", "20", "--out", str(folder / "sheet.html"), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the pages were not tried in a browser")
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, pages):
    contexts = []

    def opened(name, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(message.text))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:", "blob:"))
                else page.trouble.append(request.url)
            ),
        )
        page.goto((pages / name).as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["v.html", "sheet.html"])
def test_nothing_foreign_runs_and_phones_can_read_it(visit, name):
    page = visit(name, width=390, scheme="dark")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[onerror]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").is_visible()
    assert page.trouble == []


def test_marks_are_counted_and_saved(visit, pages, capsys):
    page = visit("sheet.html")
    boxes = page.locator("input[type=checkbox]")
    assert boxes.count() == 20
    assert page.locator("#count").inner_text() == "nothing marked"
    boxes.nth(1).check()
    boxes.nth(12).check()
    boxes.nth(2).check()
    boxes.nth(2).uncheck()
    assert page.locator("#count").inner_text() == "2 of 20 marked"
    with page.expect_download() as download:
        page.locator("#save-json").click()
    saved = pages / "marks.json"
    download.value.save_as(saved)
    assert page.locator(".said").inner_text() == "Saved as marks.json."
    marked = [i for i, one in enumerate(json.loads(saved.read_text())["images"]) if one["wrong"]]
    assert marked == [1, 12]
    assert json.loads(page.locator("#marks").input_value()) == json.loads(saved.read_text())
    assert main(["audit-sample", "--marks", str(saved), str(pages / "signs")]) == 0
    assert "1 of 10 labels marked wrong" in capsys.readouterr().out
    assert page.trouble == []


def test_the_csv_holds_no_formula(visit, pages):
    page = visit("sheet.html")
    page.evaluate("document.querySelectorAll('input[type=checkbox]').forEach(box => box.click())")
    with page.expect_download() as download:
        page.locator("#save-csv").click()
    download.value.save_as(pages / "marks.csv")
    lines = (pages / "marks.csv").read_text().splitlines()
    assert len(lines) == 21
    assert all(line.endswith('"true"') for line in lines[1:])
    assert not any(
        cell.startswith(("=", "+", "-", "@")) for line in lines for cell in line.strip('"').split('","')
    )


def test_a_box_is_marked_by_keyboard(visit):
    page = visit("sheet.html")
    page.locator("input[type=checkbox]").first.focus()
    page.keyboard.press("Space")
    assert page.locator("#count").inner_text() == "1 of 20 marked"
