"""What steval makes for comparison (baselines, ceiling, checks, tables beside the score, figures) costs a note, never the score."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import anndata as ad
import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from steval.errors import EvaluationError
from steval.evaluator.reference.baselines import baseline_pair
from steval.evaluator.report.drawing import plain
from steval.evaluator.report.html import FIGURES, render_report
from steval.evaluator.scoring import score
from steval.evaluator.tables import read_score_dir, write_score_dir
from support.score_screens import CONTROL, synthetic_screen

SCREEN = synthetic_screen(num_genes=60, num_perturbations=4, cells_per_perturbation=40, num_controls=80)
METRICS = ("mae", "discrimination_score_l1", "overlap_at_N")


def scored(**options):
    given = {"metrics": METRICS, "ceiling": True, "splits": 1, "bootstrap": 20, "integrity": "full"} | options
    return score(SCREEN.prediction(), SCREEN.real, columns=SCREEN.columns, train=SCREEN.train, **given)


@pytest.fixture(scope="module")
def whole():
    return scored()


def broken(error):
    def raises(*_, **__):
        raise error

    return raises


PLACES = {
    "ceiling": ("stages.estimate_ceiling", EvaluationError("too few cells"), "the ceiling could not be made"),
    "evidence": ("integrity.checks.gather_evidence", MemoryError(), "the table of integrity checks could not be made"),
    "check": (
        "integrity.effect_checks.check_effect_size",
        KeyError("g3"),
        "the integrity check 'effect size' could not",
    ),
    "changes": ("assembly.shown_changes", ZeroDivisionError("by zero"), "the table of changes could not be made"),
    "counts": (
        "assembly.de_counts",
        pl.exceptions.ComputeError("no"),
        "the table of significant genes could not be made",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_made_is_a_warning_and_the_score_stays(whole, monkeypatch, tmp_path, place):
    name, error, sentence = PLACES[place]
    monkeypatch.setattr(f"steval.evaluator.{name}", broken(error))
    report = scored()
    assert report.results.equals(whole.results, null_equal=True)
    assert report.score == whole.score
    (told,) = [warning for warning in report.record["warnings"] if sentence in warning]
    assert told.endswith(str(error) or type(error).__name__)
    directory = write_score_dir(report, tmp_path / "score")
    assert told in json.loads((directory / "score.json").read_text())["warnings"]
    assert sentence.split("'")[0] in (directory / "report.html").read_text()


def test_intervals_that_cannot_be_made_are_empty(whole, monkeypatch):
    from steval.evaluator import assembly

    made = assembly.score_intervals

    def fails_when_it_draws(*arguments):
        if arguments[4]:
            raise ValueError("no draw")
        return made(*arguments)

    monkeypatch.setattr(assembly, "score_intervals", fails_when_it_draws)
    report = scored()
    assert report.score == whole.score
    assert report.intervals.is_empty()
    assert "the table of intervals could not be made and is left out: ValueError: no draw" in report.record["warnings"]


def test_a_check_that_breaks_is_a_note_and_the_others_are_made(whole, monkeypatch):
    monkeypatch.setattr("steval.evaluator.integrity.effect_checks.check_effect_size", broken(KeyError("g3")))
    found = {row["check"]: row for row in scored().integrity.iter_rows(named=True)}
    assert found["effect size"]["status"] == "note"
    assert "KeyError" in found["effect size"]["sentence"]
    expected = {row["check"]: row for row in whole.integrity.iter_rows(named=True)}
    assert {name: row for name, row in found.items() if name != "effect size"} == {
        name: row for name, row in expected.items() if name != "effect size"
    }


@pytest.mark.parametrize("kind", ["additive", "mean"])
def test_a_baseline_that_breaks_leaves_the_other_columns(whole, monkeypatch, kind):
    def breaks(pair, training, one, **given):
        made = baseline_pair(pair, training, one, **given)
        if one != kind:
            return made
        name = pair.perturbations[0]

        def out_of_range(group):
            cells = made.pred.make(group)
            return cells * 100 if group == name else cells

        return replace(made, pred=replace(made.pred, make=out_of_range))

    monkeypatch.setattr("steval.evaluator.stages.baseline_pair", breaks)
    report = scored()
    assert report.results.equals(whole.results, null_equal=True)
    (told,) = [warning for warning in report.record["warnings"] if f"the {kind} baseline could not be made" in warning]
    assert "lognorm values lie from 0" in told
    others = [other for other in ("mean", "control", "additive") if other != kind]
    assert report.baseline_results["baseline"].unique(maintain_order=True).to_list() == others
    if kind == "mean":
        assert report.score is None
        assert any("the normalised columns and the overall score are empty" in w for w in report.record["warnings"])
        assert report.baselines.filter(pl.col("baseline") == "additive")["value"].null_count() == 0
    else:
        assert report.score == whole.score
    render_report(report)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_that_fails_costs_a_figure(whole, monkeypatch, tmp_path, name, caplog):
    from steval.evaluator.report import html

    caption = FIGURES[name][1]
    monkeypatch.setattr(html, "FIGURES", {**FIGURES, name: (broken(RuntimeError("no font")), caption)})
    directory = write_score_dir(whole, tmp_path / "score")
    note = f"the figure '{name}' could not be made and is left out: RuntimeError: no font"
    assert json.loads((directory / "score.json").read_text())["warnings"] == [*whole.record["warnings"], note]
    assert note in caplog.text
    page = (directory / "report.html").read_text()
    assert page.count(DRAWN) == len(FIGURES) - 1
    assert "no font" in page
    assert read_score_dir(directory).results.equals(whole.results, null_equal=True)


def test_a_page_that_fails_costs_the_page(whole, monkeypatch, tmp_path):
    monkeypatch.setattr("steval.evaluator.report.html._section", broken(TypeError("no page")))
    directory = write_score_dir(whole, tmp_path / "score")
    assert "TypeError: no page" in json.loads((directory / "score.json").read_text())["warnings"][-1]
    assert "hold everything" in (directory / "report.html").read_text()
    assert read_score_dir(directory).results.equals(whole.results, null_equal=True)


def test_a_baseline_of_another_version_is_drawn_too(whole):
    def renamed(frame, column):
        return frame.with_columns(pl.col(column).replace({"additive": "unheard-of"}))

    foreign = replace(
        whole,
        baselines=renamed(whole.baselines, "baseline"),
        baseline_results=renamed(whole.baseline_results, "baseline"),
        overall=renamed(whole.overall, "predictor"),
    )
    notes = []
    page = render_report(foreign, notes)
    assert notes == []
    assert "unheard-of baseline" in page


DRAWN = '<svg role="img" aria-label='
"""How a figure that was drawn begins; the picker of perturbations draws its own in the browser."""
ODD_NAMES = [
    r"$\foo$",
    r"a$^2$ b$",
    "<script>alert(1)</script>",
    "x" * 400,
    "遺伝子",
    "line\nbreak\x07",
    "=1+1",
    r"\$",
    "%s {0}",
]


def odd_screen():
    """Names that a formula, a page, a figure or a spreadsheet could trip over, of perturbations and genes alike."""
    sides = []
    names = sorted(set(SCREEN.real.obs["target_gene"].astype(str)) - {CONTROL})
    for side in (SCREEN.prediction(), SCREEN.real, SCREEN.train):
        parts = []
        for number, odd in enumerate(ODD_NAMES):
            part = side[side.obs["target_gene"] == names[number % len(names)]].copy()
            part.obs["target_gene"] = odd
            parts.append(part)
        cells = ad.concat(
            [side[side.obs["target_gene"] == CONTROL].copy(), *parts], index_unique="-", keys=range(1 + len(parts))
        )
        cells.var_names = [*ODD_NAMES, *cells.var_names[len(ODD_NAMES) :]]
        sides.append(cells)
    return sides


def test_odd_names_are_drawn_letter_by_letter_and_come_back(tmp_path, caplog):
    pred, real, train = odd_screen()
    report = score(pred, real, columns=SCREEN.columns, train=train, metrics=METRICS, bootstrap=0)
    directory = write_score_dir(report, tmp_path / "score")
    assert not [record for record in caplog.records if "figure" in record.getMessage()]
    page = (directory / "report.html").read_text()
    assert page.count(DRAWN) == len(FIGURES)
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script") == 2  # the page's own: the picker's numbers, what it does
    again = read_score_dir(directory)
    assert again.de_counts.equals(report.de_counts)
    assert set(again.results["perturbation"]) == set(ODD_NAMES)
    for file in directory.glob("*.csv"):
        with file.open(newline="") as handle:
            cells = [cell for row in csv.reader(handle) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=+@\t\r\n]|-(?![\d.]|inf)", cell)], file.name


@pytest.mark.parametrize("name", ODD_NAMES)
def test_no_name_is_a_formula(name):
    from matplotlib.cbook import is_math_text
    from matplotlib.text import Text

    shown = plain(name)
    assert not is_math_text(shown)
    assert len(shown) <= 80
    text, is_math = Text(0, 0, shown)._preprocess_math(shown)
    assert is_math is False
    assert text == (name if len(name) < 40 else name[:39] + "…").replace("\n", "\ufffd").replace("\x07", "\ufffd")


def test_a_users_matplotlib_settings_do_not_apply(whole):
    import matplotlib

    expected = render_report(whole)
    with matplotlib.rc_context({"text.usetex": True, "font.family": "no such font", "axes.facecolor": "red"}):
        notes = []
        assert render_report(whole, notes) == expected
    assert notes == []


def test_a_notebooks_environment_costs_nothing(tmp_path):
    for name, cells in {"real": SCREEN.real, "pred": SCREEN.prediction()}.items():
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    environment = os.environ | {
        "MPLBACKEND": "module://nowhere.to_be_found",
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
    }
    arguments = ["score", "pred.h5ad", "--real", "real.h5ad", "-o", "score", "--bootstrap", "0"]
    command = [sys.executable, "-m", "steval", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "score" / "report.html").read_text(encoding="utf-8").count("<svg") > 1
    assert "figure" not in done.stderr


def test_stored_duplicates_and_zeros_change_no_value():
    def untidy(cells):
        changed = cells.copy()
        matrix = sp.coo_matrix(cells.X)
        half = matrix.data / 2
        pad = np.arange(0, cells.n_obs), np.full(cells.n_obs, 5)
        order = np.random.default_rng(0).permutation(2 * matrix.nnz + cells.n_obs)
        rows = np.concatenate([matrix.row, matrix.row, pad[0]])[order]
        columns = np.concatenate([matrix.col, matrix.col, pad[1]])[order]
        values = np.concatenate([half, half, np.zeros(cells.n_obs, half.dtype)])[order]
        by_row = np.argsort(rows, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=cells.n_obs))])
        changed.X = sp.csr_matrix((values[by_row], columns[by_row], indptr), shape=cells.shape)
        assert not changed.X.has_canonical_format
        return changed

    sides = (SCREEN.prediction(), SCREEN.real, SCREEN.train)
    tidy, other = (
        score(
            *given[:2],
            columns=SCREEN.columns,
            train=given[2],
            metrics=[*METRICS, "pearson_edistance", "roc_auc"],
            bootstrap=0,
        )
        for given in (sides, [untidy(side) for side in sides])
    )
    for frame in ("results", "baseline_results"):
        values = [getattr(one, frame).select(pl.col(pl.Float64)).to_numpy() for one in (tidy, other)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5, atol=1e-6)
    same = pl.col("check") != "genes and perturbations"
    assert tidy.integrity.filter(same)["status"].equals(other.integrity.filter(same)["status"])
