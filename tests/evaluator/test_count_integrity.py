"""Integrity checks on counts: each known exploit of the challenge of 2026 is built and caught; honest predictions raise nothing."""

import numpy as np
import pytest

from steval.evaluator.scoring import score
from support.count_screens import CONTROL, CountScreen, of_controls, without_controls

LAW = CountScreen(num_perturbations=8, num_genes=400, affected=60, depth=4000.0, skew=0.3, seed=11)
SIZES = {"each": 60, "controls": 300}
REAL = LAW.cells(0, **SIZES)
HONEST = LAW.cells(1, factor=0.7, **SIZES)


def column(name):
    return LAW.genes.index(name)


def pool():
    return REAL[(REAL.obs["target_gene"] == CONTROL).to_numpy()].X.toarray()


def carried():
    """Control cells whose counts are thinned or multiplied by the true fold changes: an honest simple model."""
    controls = pool()

    def change(cells, name, generator):
        fold = np.exp(0.8 * LAW.effect(max(LAW.targets.index(name), 1)))  # some effect for the one that has none
        start = controls[generator.choice(len(controls), len(cells))]
        thinned = generator.binomial(start.astype(int), np.minimum(fold, 1.0))
        return thinned + generator.poisson(start * np.maximum(fold - 1.0, 0.0))

    return LAW.changed(REAL, change)


def spiked(cells, name, generator):
    """The target gene itself raised far beyond anything measured."""
    made = cells.copy()
    made[:, column(name)] = generator.poisson(0.1 * cells.sum(axis=1))
    return made


def boosted(cells, _, generator):
    """One count for many a cell in each gene that the controls express at 1 to 5 CPM."""
    cpm = pool().sum(axis=0) * 1e6 / pool().sum()
    low = np.flatnonzero((cpm > 1) & (cpm <= 5))
    assert len(low) >= 5
    made = cells.copy()
    made[:, low] += generator.random((len(cells), len(low))) < 0.3
    return made


def cancelling():
    """The same sums for every perturbation, each gene's counts dealt out to the cells anew: scatter whose errors cancel."""
    start = pool()[: SIZES["each"]]

    def change(cells, name, generator):
        made = generator.permuted(start, axis=0)
        made[:, column(name)] = np.rint(0.3 * made[:, column(name)])
        return made

    return LAW.changed(REAL, change)


def injected(cells, _, generator):
    """A third as many counts again, all of them in one gene."""
    made = cells.copy()
    made[:, 7] += generator.poisson(0.3 * cells.sum(axis=1))
    return made


def deeper(cells, _, generator):
    """Every cell three times as deep."""
    return 3 * cells


def flags(prediction, **options):
    report = score(prediction, REAL, profile="vcc2026", threads=1, bootstrap=0, **options)
    assert "note" not in report.integrity.filter(report.integrity["sentence"].str.starts_with("Not checked"))["status"]
    return set(report.findings["check"].to_list()), report


@pytest.mark.parametrize("make", [lambda: HONEST, carried, lambda: without_controls(LAW.cells(2, **SIZES))])
def test_honest_predictions_raise_nothing(make):
    found, report = flags(make())
    assert found == set()
    assert report.integrity["status"].to_list().count("ok") >= 18


EXPLOITS = {
    "target gene spiked": ("target gene spiked", lambda: LAW.changed(HONEST, spiked)),
    "4 to 5 CPM boosted": ("untested genes boosted", lambda: LAW.changed(HONEST, boosted)),
    "scatter that cancels": ("scatter that cancels", cancelling),
    "library mass injected": ("counts put on few genes", lambda: LAW.changed(HONEST, injected)),
    "library mass multiplied": ("scale", lambda: LAW.changed(HONEST, deeper)),
    "controls pasted": ("control cells pasted", lambda: of_controls(LAW, REAL)),
    "answers pasted": ("copies of real cells", lambda: REAL.copy()),
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_known_exploits_are_flagged(name):
    check, make = EXPLOITS[name]
    found, _ = flags(make())
    assert check in found


def test_the_checks_that_score_again_work_on_counts():
    found, report = flags(HONEST, integrity="full")
    assert found == set()
    rows = {row["check"]: row for row in report.integrity.iter_rows(named=True)}
    assert rows["score by predicted controls"]["measurement"] == 0
    scaled = rows["effects × 2"]
    assert scaled["status"] in ("ok", "note")
    assert scaled["measurement"] != 0
    assert f"instead of {report.score:.3f}" in scaled["sentence"]
