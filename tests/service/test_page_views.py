"""The other views of the page in headless Chromium: side by side, scoring, batches; narrow, dark, by keyboard, and axe-core."""

import json
import os
import shutil

import httpx
import pytest

from support.browser import playwright
from support.service_batches import write_batch
from support.service_models import NAMES as SERVED

pytestmark = pytest.mark.slow
driver = playwright()
NAMES = ["TET1", "SRC", "STAT1"]
SERIOUS = ("serious", "critical")
VIEWS = ("predict", "score", "batches")


def predict(page, *names: str) -> None:
    for name in names[:-1]:
        page.fill("#perturbation", name)
        page.click("#add")
    page.fill("#perturbation", names[-1])
    page.click("#predict")
    driver.expect(page.locator("#result-title")).to_have_text(names[0])


@pytest.fixture
def predictions(service_url, tmp_path):
    body = {"perturbations": SERVED, "cells": 40, "output": "cells"}
    answer = httpx.post(service_url + "/predict", json=body, headers={"Accept": "application/x-hdf5"})
    path = tmp_path / "preds.h5ad"
    path.write_bytes(answer.content)
    return path


@pytest.fixture
def batch(service_dir, service_cells):
    directory = write_batch(service_dir / "data" / "night.batch")
    yield directory
    shutil.rmtree(directory)


def score(page, path) -> None:
    page.click("#tab-score")
    page.set_input_files("#score-predictions", path)
    page.locator("#score-profile").select_option("pds")
    page.click("#score-submit")


def test_several_perturbations_stand_side_by_side(page, service_url):
    predict(page, *NAMES)
    answer = httpx.post(service_url + "/predict", json={"perturbations": NAMES, "cells": 100}).json()
    assert page.locator("#summary tbody th").all_inner_texts() == NAMES
    assert page.locator("#heat-map thead th").all_inner_texts() == ["Gene", *NAMES]
    lines = page.locator("#heat-map tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
    )
    assert 12 <= len(lines) <= 36
    before = answer["controls"][0]["mean"]
    for gene, *shown in lines:
        place = answer["genes"].index(gene)
        changes = [one["mean"][place] - before[place] for one in answer["predictions"]]
        assert [float(value.replace("−", "-")) for value in shown] == pytest.approx(changes, abs=0.006)
    page.get_by_role("button", name="Show SRC below").click()
    driver.expect(page.locator("#result-title")).to_have_text("SRC")
    driver.expect(page.locator("#result-title")).to_be_focused()
    page.reload()
    driver.expect(page.locator("#summary tbody th")).to_have_text(NAMES)


def test_added_perturbations_can_be_taken_away_by_keyboard(page):
    page.fill("#perturbation", "TET1")
    page.focus("#add")
    page.keyboard.press("Enter")
    driver.expect(page.locator("#added li span")).to_have_text(["TET1"])
    driver.expect(page.locator("#perturbation")).to_be_focused()
    page.focus("#added button")
    page.keyboard.press("Enter")
    driver.expect(page.locator("#added li")).to_have_count(0)


def test_an_unknown_one_of_several_is_replaced_by_the_nearest(page):
    page.fill("#perturbation", "SRC")
    page.click("#add")
    page.fill("#perturbation", "TETT1")
    page.click("#predict")
    page.locator("#error").get_by_role("button", name="TET1").click()
    driver.expect(page.locator("#summary tbody th")).to_have_text(["SRC", "TET1"])


def test_the_expected_error_is_shown_where_the_answer_has_it(page):
    def with_error(route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["predictions"][0]["expected_error"] = {"mae": 0.1234, "low": 0.05, "high": 0.3}
        route.fulfill(response=answer, body=json.dumps(body))

    page.route("**/predict", with_error)
    predict(page, "TET1", "SRC")
    driver.expect(page.locator("#expected-error")).to_contain_text("0.123 (90 %: 0.050 to 0.300)")
    assert page.locator("#summary tbody tr").nth(0).locator("td").nth(1).inner_text() == "0.123 (90 %: 0.050 to 0.300)"
    assert page.locator("#summary tbody tr").nth(1).locator("td").nth(1).inner_text() == "–"
    page.get_by_role("button", name="Show SRC below").click()
    driver.expect(page.locator("#expected-error")).to_be_hidden()


def test_an_uploaded_file_is_scored_and_its_report_shown_without_an_origin(page, predictions):
    keys = []
    page.on("request", lambda one: keys.append(one.headers.get("authorization")) if "report.html" in one.url else None)
    page.evaluate("sessionStorage.setItem('steval-key', 'stv_x')")
    score(page, predictions)
    driver.expect(page.locator("#score-answer")).to_be_visible(timeout=120_000)
    assert page.locator("#score-table tbody th").all_inner_texts() == ["Overall score", "Integrity"]
    report = page.frame_locator("#score-report iframe")
    driver.expect(report.locator("h1").first).to_be_visible()
    (frame,) = [one for one in page.frames if one != page.main_frame]
    assert frame.evaluate("origin") == "null"
    assert keys == ["Bearer stv_x"]
    page.get_by_text("Files", exact=True).click()
    with page.expect_download() as caught:
        page.get_by_role("button", name="score.json").click()
    assert caught.value.suggested_filename == "score.json"


def test_a_file_that_cannot_be_scored_says_so_and_takes_the_old_score_away(page, predictions, tmp_path):
    bad = tmp_path / "bad.h5ad"
    bad.write_text("no")
    page.evaluate("document.getElementById('score-answer').hidden = false")
    score(page, bad)
    driver.expect(page.locator("#score-error")).to_contain_text("HDF5")
    driver.expect(page.locator("#score-answer")).to_be_hidden()
    driver.expect(page.locator("#score-submit")).to_be_enabled()


def test_a_batch_shows_its_leaderboard_and_reports(page, batch):
    page.click("#tab-batches")
    row = page.locator("#leaderboard tbody tr").first
    driver.expect(row).to_contain_text("0.500 [0.400, 0.600]")
    driver.expect(row).to_contain_text("−1.3 [−2.0, +0.5]")
    driver.expect(page.locator("#leaderboard tbody tr").nth(1)).to_contain_text("no genes")
    page.get_by_role("button", name="Report of a on cells, all").click()
    driver.expect(page.frame_locator("#batch-report iframe").locator("p")).to_have_text("nothing to see")


def test_views_are_tabs_that_arrows_move_between(page):
    page.focus("#tab-predict")
    for name in ("score", "batches", "predict"):
        page.keyboard.press("ArrowRight")
        driver.expect(page.locator(f"#tab-{name}")).to_be_focused()
        driver.expect(page.locator(f"#view-{name}")).to_be_visible()
        assert page.locator('[role="tab"][aria-selected="true"]').count() == 1
    page.keyboard.press("ArrowLeft")
    driver.expect(page.locator("#tab-batches")).to_be_focused()
    page.keyboard.press("Home")
    driver.expect(page.locator("#tab-predict")).to_be_focused()


def test_nothing_is_wider_than_a_narrow_phone(page, batch):
    page.set_viewport_size({"width": 320, "height": 640})
    predict(page, *NAMES)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        driver.expect(page.locator(f"#view-{view}")).to_be_visible()
        if view == "batches":
            driver.expect(page.locator("#leaderboard tbody tr")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, view


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing_serious(page, batch, predictions, look):
    """axe-core (Deque, MPL-2.0), the rules of WCAG 2.2 AA and of good practice."""
    if "STEVAL_REQUIRE_BROWSER" not in os.environ:
        pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=look)
    predict(page, *NAMES)
    found = {}
    for view in VIEWS:
        page.click(f"#tab-{view}")
        if view == "batches":
            driver.expect(page.locator("#leaderboard tbody tr")).to_have_count(2)
        for problem in Axe().run(page).response["violations"]:
            if problem["impact"] in SERIOUS:
                found[f"{view}: {problem['id']}"] = [node["html"] for node in problem["nodes"]][:5]
    assert not found
