"""The page in headless Chromium: a prediction by keyboard, the charts, the downloads. Needs playwright and Debian's chromium."""

import csv
import io
import itertools
import time
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import pytest

from support.browser import playwright
from support.service_models import write_checkpoint

pytestmark = pytest.mark.slow
driver = playwright()


def predict_by_keyboard(page) -> None:
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "perturbation":
        page.keyboard.press("Tab")
    page.keyboard.type("tet", delay=20)
    driver.expect(page.locator("#options li")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    driver.expect(page.locator("#perturbation")).to_have_value("TET1")
    page.keyboard.press("Tab")  # to the button that adds another
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("40")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    driver.expect(page.locator("#result-title")).to_have_text("TET1")


def answer_of(service_url: str) -> dict:
    body = {"perturbations": ["TET1"], "cells": 40, "seed": 3}
    return httpx.post(service_url + "/predict", json=body).json()


def test_a_prediction_by_keyboard_shows_the_strongest_genes(page, service_url):
    predict_by_keyboard(page)
    answer = answer_of(service_url)
    change = np.array(answer["predictions"][0]["mean"]) - np.array(answer["controls"][0]["mean"])
    order = np.argsort(-change, kind="stable")
    up = [answer["genes"][index] for index in order if change[index] > 0][:12]
    down = [answer["genes"][index] for index in order if change[index] < 0][-12:]
    assert (len(up), len(down)) == (12, 12)
    shown = page.locator("#chart g").evaluate_all("groups => groups.map(group => group.dataset.gene)")
    assert shown == up + down
    assert page.locator("#table tbody th").all_inner_texts() == up + down
    first = page.locator("#table tbody tr").first.locator("td").all_inner_texts()
    assert float(first[1]) - float(first[0]) == pytest.approx(change.max(), abs=2e-4)
    widths = page.locator("#chart rect").evaluate_all("bars => bars.map(bar => Number(bar.getAttribute('width')))")
    expected = np.abs(change[[answer["genes"].index(gene) for gene in shown]])
    np.testing.assert_allclose(
        np.array(widths) / max(widths), np.maximum(expected / expected.max(), 1 / max(widths)), rtol=1e-3
    )


def test_downloads_hold_the_values_of_the_api(page, service_url, tmp_path):
    predict_by_keyboard(page)
    answer = answer_of(service_url)
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text())))
    assert caught.value.suggested_filename == "TET1-40cells-seed3.csv"
    assert [row["gene"] for row in rows] == answer["genes"]
    assert [float(row["predicted_mean"]) for row in rows] == answer["predictions"][0]["mean"]
    assert [float(row["control_mean"]) for row in rows] == answer["controls"][0]["mean"]
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download h5ad").click()
    caught.value.save_as(tmp_path / "cells.h5ad")
    cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    predicted = cells[cells.obs["predicted"].to_numpy()].X.toarray()
    np.testing.assert_allclose(predicted.mean(axis=0), answer["predictions"][0]["mean"], rtol=1e-4, atol=1e-6)


def test_an_unknown_name_offers_the_nearest(page):
    page.fill("#perturbation", "TETT1")
    page.keyboard.press("Enter")
    error = page.locator("#error")
    driver.expect(error).to_contain_text("unknown perturbation")
    error.get_by_role("button", name="TET1").click()
    driver.expect(page.locator("#result-title")).to_have_text("TET1")
    driver.expect(error).to_be_hidden()


def test_an_error_takes_the_old_result_away(page):
    predict_by_keyboard(page)
    page.fill("#perturbation", "TETT1")
    page.click("#predict")
    driver.expect(page.locator("#error")).to_contain_text("unknown perturbation")
    driver.expect(page.locator("#answer")).to_be_hidden()


def test_on_a_phone_the_result_comes_into_view_and_before_the_model(page):
    page.set_viewport_size({"width": 390, "height": 800})
    top = "document.getElementById('{}').getBoundingClientRect().top"
    assert page.evaluate(top.format("results")) < page.evaluate(top.format("card-title"))
    page.fill("#perturbation", "TET1")
    page.click("#predict")
    driver.expect(page.locator("#result-title")).to_have_text("TET1")
    assert 0 <= page.evaluate(top.format("results")) < 100
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_says_how_far_to_trust_the_model(page, service_url):
    evidence = httpx.get(f"{service_url}/model").json()["evidence"]
    assert "held-out" in evidence
    driver.expect(page.locator("#evidence")).to_have_text(evidence)


def test_the_look_switches_and_stays(page):
    def back() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = back()
    page.get_by_role("button", name="Switch between light and dark look").click()
    dark = back()
    assert dark != light
    page.reload()
    assert back() == dark


def test_all_genes_are_drawn_by_level_and_change_and_the_pointed_one_is_named(page, service_url):
    predict_by_keyboard(page)
    answer = answer_of(service_url)
    dots = page.locator("#scatter .dots").evaluate_all(
        "paths => paths.map(path => path.getAttribute('d').split('M').length - 1)"
    )
    assert sum(dots) == len(answer["genes"]) == 120 and dots[1:] == [12, 12]
    after, before = (np.array(answer[side][0]["mean"]) for side in ("predictions", "controls"))
    change, level = after - before, (after + before) / 2
    box = page.locator("#scatter").bounding_box()
    scale = box["width"] / 860
    place = int(np.argmax(change))
    most = np.abs(change).max() * 1.08
    x = 52 + level[place] / level.max() * (860 - 68)
    y = 14 + (most - change[place]) / (2 * most) * (360 - 54)
    page.locator("#scatter").hover(position={"x": x * scale, "y": y * scale})
    driver.expect(page.locator("#scatter .pointed")).to_contain_text(answer["genes"][place])


@pytest.mark.parametrize("width", [1280, 320])
def test_names_in_the_plot_of_all_genes_do_not_run_into_each_other(page, service_url, width):
    page.set_viewport_size({"width": width, "height": 900})
    predict_by_keyboard(page)
    answer = answer_of(service_url)
    after, before = (np.array(answer[side][0]["mean"]) for side in ("predictions", "controls"))
    named = page.locator("#scatter .gene")
    assert answer["genes"][int(np.argmax(np.abs(after - before)))] in named.all_text_contents()
    boxes = named.evaluate_all(
        "all => all.map(one => one.getBBox()).map(box => [box.x, box.y, box.x + box.width, box.y + box.height])"
    )
    touching = [
        (one, other)
        for one, other in itertools.combinations(boxes, 2)
        if one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
    ]
    assert not touching


def test_a_link_shows_the_same_prediction(page, service_url):
    predict_by_keyboard(page)
    genes = page.locator("#table tbody th").all_inner_texts()
    link = page.url
    assert "perturbation=TET1&cells=40&seed=3" in link
    page.goto("about:blank")
    page.goto(link)
    driver.expect(page.locator("#result-title")).to_have_text("TET1")
    assert page.locator("#table tbody th").all_inner_texts() == genes
    driver.expect(page.locator("#model-card")).to_contain_text("120")


def test_a_model_is_chosen_and_kept_in_the_link(page, service_url, models_dir, service_cells):
    write_checkpoint(models_dir / "chosen.safetensors", service_cells, seed=7)
    deadline = time.monotonic() + 30
    while "chosen" not in httpx.get(f"{service_url}/models").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    page.reload()
    driver.expect(page.locator("#model")).to_have_value("tiny")
    page.locator("#model").select_option("chosen")
    driver.expect(page.locator("#model-name")).to_have_text("chosen.safetensors")
    page.locator("#perturbation").fill("SRC")
    page.locator("#predict").click()
    driver.expect(page.locator("#result-title")).to_have_text("SRC")
    assert "model=chosen" in page.url
    page.reload()
    driver.expect(page.locator("#model")).to_have_value("chosen")
    driver.expect(page.locator("#result-title")).to_have_text("SRC")
