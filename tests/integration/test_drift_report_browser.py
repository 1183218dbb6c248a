"""The drift report in a real headless Chromium."""

import shutil

import numpy as np
import pytest
from PIL import Image

from promotion_gate.monitor.drift_report import DriftReport
from promotion_gate.monitor.images import LiveImages

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.integration

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def page_file(looks, tmp_path_factory):
    """A report with every kind of hostile string in it."""
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    shutil.copy(folder / "0.png", folder / looks.HOSTILE)
    report = DriftReport(images=LiveImages(str(folder)), notes=[looks.HOSTILE])
    for outcome in looks.surged(120, 60, [looks.HOSTILE, *(f"{i}.png" for i in range(9)), "../x", "none"]):
        report(outcome)
    script = looks.NAMES[3]
    report(looks.look(200, 950, alarms=[looks.alarm(script)], firing=[looks.alarm(script)]))
    report.write(folder / "drift.html")
    return folder / "drift.html"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_foreign_runs_and_every_screen_can_read_it(page_file, width, scheme):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the report was not tried in a browser")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
        trouble = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else trouble.append(request.url)
            ),
        )
        page.goto(page_file.as_uri())
        assert page.evaluate("window.pwned") is None
        assert page.locator("img, script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".verdict-word").inner_text() == "DRIFT"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(20, 22, 25)") == (scheme == "dark")
        page.locator("summary").first.click()
        assert page.locator("details table").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert trouble == []
