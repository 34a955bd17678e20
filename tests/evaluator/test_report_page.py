"""The score report in headless Chromium: tables sort, the picker draws, figures are saved as PNG; also under the policy that the
service sends it with. Needs playwright and Debian's chromium."""

import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

from steval.evaluator.report.html import render_report
from steval.evaluator.scoring import score
from support.score_screens import real_screen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.slow

if "STEVAL_REQUIRE_BROWSER" in os.environ:
    import playwright.sync_api as driver
else:
    driver = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed", allow_module_level=True)

PNG = b"\x89PNG\r\n\x1a\n"
READABLE = 8
"""Pixels of the smallest text of a figure on a phone."""


@pytest.fixture(scope="module")
def served():
    """The address of a report that is sent as the service sends it."""
    from steval.service.score.handlers import REPORT_POLICY

    screen = real_screen()
    report = score(screen.prediction(), screen.real, columns=screen.columns, train=screen.train, bootstrap=50)
    content = render_report(report).encode()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", REPORT_POLICY)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", report
    server.shutdown()
    server.server_close()


def test_a_served_report_sorts_picks_and_saves(served):
    url, report = served
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 360, "height": 800}, accept_downloads=True)
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        heights = "[...document.querySelectorAll('.drawing svg text')].map(text => text.getBoundingClientRect().height)"
        assert min(page.evaluate(heights)) >= READABLE

        page.get_by_text("All perturbations").click()
        table = page.locator("details table.sortable")
        values = report.results["mae"].to_list()
        for click, expected in ((1, max(values)), (2, min(values))):
            table.get_by_role("button", name="mae").click()
            assert (
                float(table.locator("tbody tr").first.locator("td").nth(2).get_attribute("data-value")) == expected
            ), click

        name = report.changes["perturbation"].unique(maintain_order=True).to_list()[-1]
        page.locator(".picker select").select_option(name)
        drawn = page.locator(".picker circle")
        assert drawn.count() == min(100, (report.changes["perturbation"] == name).sum())
        assert name in page.locator(".picker svg").get_attribute("aria-label")

        for link in (
            page.locator("a.png").first,
            page.locator("a.png").last,
            page.locator("a[download$='.svg']").first,
        ):
            with page.expect_download() as waiting:
                link.click()
            content = Path(waiting.value.path()).read_bytes()
            assert content.startswith((PNG, b"<svg"))
            assert len(content) > 5000
        browser.close()
    assert troubles == []
