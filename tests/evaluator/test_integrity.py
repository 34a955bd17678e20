"""Integrity checks: each known exploit, built from real cells, is caught; honest predictions raise nothing."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.effects.carry import carry, mean_of_cells
from steval.evaluator.cells.pair import Pair
from steval.evaluator.integrity.checks import Scored, check_integrity
from steval.evaluator.integrity.effect_checks import check_significant, sampled_share
from steval.evaluator.metrics.changes import de_counts
from steval.evaluator.metrics.evaluation import evaluate
from steval.evaluator.reference.training import read_training
from steval.evaluator.scoring import score
from support.score_screens import CONTROL, real_screen, synthetic_screen

SCREENS = {"real": real_screen(), "synthetic": synthetic_screen()}


def labels(cells, screen):
    return cells.obs[screen.columns.perturbation].astype(str).to_numpy()


def dense(cells, screen, name):
    return cells[labels(cells, screen) == name].X.toarray()


def findings(screen, prediction):
    pair = Pair.build(prediction, screen.real, screen.columns)
    training = read_training(screen.train, pair.genes, pair.columns, pair.perturbations)
    scored = Scored(pair, evaluate(pair, "vcc"), None, training, full=False, rescore=None)
    return check_integrity(scored)


def raised(screen, prediction):
    return {name for name, finding in findings(screen, prediction).items() if finding.status in ("warn", "fail")}


def carried(screen, scale=1.0):
    """An honest prediction: measured control cells whose expressing cells bear the training effect."""
    controls = dense(screen.real, screen, CONTROL)
    base = dense(screen.train, screen, CONTROL).mean(axis=0)

    def change(cells, name, generator):
        start = sp.csr_matrix(controls[generator.choice(len(controls), len(cells))])
        effect = scale * (dense(screen.train, screen, name).mean(axis=0) - base)
        return carry(start, mean_of_cells(start) + effect, generator, target_sum=10_000.0).cells.toarray()

    return screen.prediction(change)


def exact(screen, effects, spread=1.0):
    """Cells whose means are those of all control cells plus `effects(name)`, without any luck of the draw.

    `spread`: their variance around the mean, times that of control cells.
    """
    controls = dense(screen.real, screen, CONTROL)
    base = controls.mean(axis=0)

    def change(cells, name, generator):
        start = controls[generator.choice(len(controls), len(cells))]
        start = np.maximum(base + np.sqrt(spread) * (start - base), 0)
        wanted = np.maximum(base + effects(name), 0)
        return carry(sp.csr_matrix(start), wanted, generator, target_sum=10_000.0).cells.toarray()

    return screen.prediction(change)


def moved_controls(move):
    """Control cells, each passed through `move(cells, generator)`."""

    def made(screen):
        controls = dense(screen.real, screen, CONTROL)
        return lambda m, _, generator: move(controls[generator.choice(len(controls), len(m))], generator)

    return made


def too_alike(cells, _, generator):
    """Cells of a perturbation that hardly vary, with their own mean: every small difference from control is significant."""
    mean = cells.mean(axis=0)
    return mean + 0.1 * (cells - mean) + generator.normal(0, 0.02, len(mean))


def pooled(screen):
    return screen.held_out[labels(screen.held_out, screen) != CONTROL].X.toarray()


def additive(screen):
    """An honest simple model: training controls plus the perturbation's training effect plus noise."""
    controls = dense(screen.train, screen, CONTROL)

    def change(cells, name, generator):
        start = controls[generator.choice(len(controls), len(cells))]
        effect = dense(screen.train, screen, name).mean(axis=0) - controls.mean(axis=0)
        return start + effect + generator.normal(0, 0.1, cells.shape) * (start > 0)

    return screen.prediction(change)


def smoothed(screen):
    """As a network predicts: cells drawn towards their mean, effects too small, a small error in every gene."""
    controls = dense(screen.train, screen, CONTROL)
    mean = controls.mean(axis=0)

    def change(cells, name, generator):
        start = controls[generator.choice(len(controls), len(cells))]
        effect = 0.6 * (dense(screen.train, screen, name).mean(axis=0) - mean) + generator.normal(0, 0.02, len(mean))
        return 0.5 * start + 0.5 * mean + effect + generator.normal(0, 0.05, cells.shape)

    return screen.prediction(change)


def spike(screen, above=None):
    """The target gene at 7, or so much above its mean in control cells."""
    genes = list(screen.real.var_names)
    base = dense(screen.real, screen, CONTROL).mean(axis=0)

    def change(cells, name, _):
        if name in genes:
            gene = genes.index(name)
            cells[:, gene] = 7.0 if above is None else base[gene] + above
        return cells

    return change


def totals(screen):
    names = sorted(set(labels(screen.real, screen)) - {CONTROL})
    return lambda cells, name, _: np.log1p(np.expm1(cells) * (1 + 0.15 * names.index(name)))


def boost(screen):
    mean = dense(screen.real, screen, CONTROL).mean(axis=0)

    def change(cells, _, generator):
        boosted = (mean <= np.quantile(mean, 0.25)) & (generator.random(len(mean)) < 0.5)
        return cells + boosted * generator.exponential(0.3, cells.shape)

    return change


def scatter(cells, _, generator):
    direction = generator.normal(0, 1.0, cells.shape[1])
    return cells + np.where(np.arange(len(cells)) % 2, 1, -1)[:, None] * direction


def near_zero(screen):
    base = dense(screen.real, screen, CONTROL).mean(axis=0)
    return lambda cells, _, __: cells - 0.9 * (cells.mean(axis=0) - base)


def source(screen, part, noise):
    cells_of = getattr(screen, part)
    return lambda cells, name, generator: (
        np.resize(dense(cells_of, screen, name), cells.shape) + generator.normal(0, noise, cells.shape)
    )


EXPLOITS = {
    "variance inflated": ("variance over cells", lambda s: lambda m, *_: m.mean(0) + 3 * (m - m.mean(0))),
    "controls pasted": ("control cells pasted", lambda s: lambda m, *_: np.resize(dense(s.real, s, CONTROL), m.shape)),
    "some controls pasted": (
        "control cells pasted",
        lambda s: lambda m, *_: np.vstack([dense(s.train, s, CONTROL)[: len(m) // 4], m[len(m) // 4 :]]),
    ),
    "controls with a little added": (
        "control cells pasted",
        moved_controls(lambda cells, _: cells + 0.005 * (cells > 0)),
    ),
    "controls with a little noise": (
        "control cells pasted",
        moved_controls(lambda cells, generator: cells + generator.normal(0, 0.03, cells.shape) * (cells > 0)),
    ),
    "controls scaled a little": ("control cells pasted", moved_controls(lambda cells, _: cells * 1.001)),
    "one profile, varied cells": (
        "one profile for all",
        lambda s: lambda m, _, g: pooled(s)[g.choice(len(pooled(s)), len(m))],
    ),
    "one profile, constant": ("one profile for all", lambda s: lambda m, *_: np.tile(pooled(s).mean(0), (len(m), 1))),
    "constant cells": ("variance over cells", lambda s: lambda m, *_: np.tile(m.mean(0), (len(m), 1))),
    "target spiked": ("target gene spiked", spike),
    "target spiked less": ("target gene spiked", lambda s: spike(s, 3.0)),
    "real cells copied": ("copies of real cells", lambda s: source(s, "real", 0.0)),
    "real cells with noise": ("copies of real cells", lambda s: source(s, "real", 0.05)),
    "training cells copied": ("copies of training cells", lambda s: source(s, "train", 0.0)),
    "training cells with noise": ("copies of training cells", lambda s: source(s, "train", 0.05)),
    "mean of the real cells": (
        "error below noise",
        lambda s: lambda m, n, g: dense(s.real, s, n).mean(0) + g.normal(0, 0.1, m.shape),
    ),
    "totals differ": ("total counts", totals),
    "cells scattered": ("scattered cells", lambda s: scatter),
    "other target sum": ("scale", lambda s: lambda m, *_: np.log1p(np.expm1(m) * 5)),
    "error hidden": ("error hidden by clipping", lambda s: lambda m, *_: m + 0.5),
    "effects lost": ("effect size", near_zero),
}


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS)
@pytest.mark.parametrize("exploit", EXPLOITS)
def test_exploit_is_caught(screen, exploit):
    check, make = EXPLOITS[exploit]
    assert check in raised(screen, screen.prediction(make(screen)))


def test_low_genes_boosted_are_caught():
    assert "low genes significant" in raised(SCREENS["real"], SCREENS["real"].prediction(boost(SCREENS["real"])))


def test_cell_numbers_that_follow_significance_are_caught():
    screen = SCREENS["synthetic"]
    honest = screen.prediction()
    counts = de_counts(evaluate(Pair.build(honest, screen.real, screen.columns), "vcc"))
    order = counts.sort("num_real")["perturbation"].to_list()
    keep = np.ones(honest.n_obs, dtype=bool)
    for rank, name in enumerate(order):
        keep[np.flatnonzero(labels(honest, screen) == name)[6 + 2 * rank :]] = False
    assert findings(screen, honest[keep].copy())["cell numbers"].status == "fail"
    half = np.ones(honest.n_obs, dtype=bool)
    half[::2] = labels(honest, screen)[::2] == CONTROL
    assert findings(screen, honest[half].copy())["cell numbers"].status == "ok"


def test_shifted_controls_are_caught():
    screen = SCREENS["synthetic"]
    prediction = screen.prediction()
    matrix = prediction.X.toarray()
    matrix[labels(prediction, screen) == CONTROL] += 0.3
    prediction.X = sp.csr_matrix(matrix)
    assert "predicted controls" in raised(screen, prediction)


def test_constant_controls_are_caught():
    """Their mean is the measured one, so that no effect changes, but every gene becomes significant."""
    screen = SCREENS["real"]
    prediction = screen.prediction()
    matrix = prediction.X.toarray()
    controls = labels(prediction, screen) == CONTROL
    matrix[controls] = matrix[controls].mean(axis=0)
    prediction.X = sp.csr_matrix(matrix)
    found = findings(screen, prediction)
    assert found["predicted controls"].status == "ok"
    assert found["variance of controls"].status == "fail"


def test_evaluated_cells_among_the_training_cells_are_caught():
    screen = SCREENS["real"]
    both = ad.concat([screen.train, screen.real])
    both.obs_names_make_unique()
    leaked = type(screen)(both, screen.real, screen.held_out, screen.columns)
    assert findings(leaked, screen.prediction())["evaluated cells in training"].status == "fail"


def test_an_error_that_clipping_hides_is_said_and_flagged_beyond_noise():
    """A true replicate of few cells has a larger error than the mean of many: worth knowing, but no flag."""
    check = "error hidden by clipping"
    real, synthetic = SCREENS["real"], SCREENS["synthetic"]
    noted = findings(real, real.prediction())[check]
    assert noted.status == "note"
    assert -0.5 < noted.measurement < 0
    assert f"the member is {noted.measurement:.2f}, which the score hides by counting 0" in noted.sentence
    assert "a true prediction can look like this" in noted.sentence
    flagged = findings(real, real.prediction(lambda m, *_: m + 0.1))[check]
    assert flagged.status == "warn"
    assert "explains an error of" in flagged.sentence
    passed = findings(synthetic, synthetic.prediction())[check]
    assert passed.status == "ok"
    assert passed.measurement > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [real_screen, synthetic_screen])
def test_honest_predictions_raise_nothing(make, seed):
    screen = make(seed)
    assert raised(screen, screen.prediction()) == set()
    assert raised(screen, additive(screen)) == set()
    assert raised(screen, smoothed(screen)) == set()
    # an effect of 40 training cells, carried whole, has their noise: its error may be truly larger than the baseline's
    assert raised(screen, carried(screen)) <= {"error hidden by clipping"}


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS)
def test_controls_that_carry_an_effect_are_not_pasted(screen, scale):
    assert findings(screen, carried(screen, scale))["control cells pasted"].measurement == 0


@pytest.mark.parametrize("spread", [0.5, 1.7])
@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS)
def test_means_that_are_exact_have_no_sampling_noise_to_remove(screen, spread):
    """However much the cells vary: shrunk effects differ by as much as they say, and one profile for all by nothing."""
    base = dense(screen.train, screen, CONTROL).mean(axis=0)
    names = sorted(set(labels(screen.real, screen)) - {CONTROL})
    effects = {name: dense(screen.train, screen, name).mean(axis=0) - base for name in names}
    largest = {name: np.where(np.abs(e) > np.quantile(np.abs(e), 0.7), e, 0) for name, e in effects.items()}
    found = findings(screen, exact(screen, lambda name: 0.7 * largest[name], spread))
    assert found["one profile for all"].status == "ok"
    assert found["effect size"].status == "ok"
    shared = np.mean(list(effects.values()), axis=0)
    found = findings(screen, exact(screen, lambda _: shared, spread))
    assert found["one profile for all"].status == "fail"
    assert found["one profile for all"].measurement == pytest.approx(0, abs=0.01)
    nothing = findings(screen, exact(screen, lambda name: 0.02 * largest[name], spread))
    assert nothing["effect size"].status == "warn"


@pytest.mark.parametrize("num_perturbations", [2, 5, 60])
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_cells_drawn_one_by_one_have_all_their_sampling_noise(num_perturbations, share):
    """In sparse genes and dense ones, of few perturbations and many."""
    generator = np.random.default_rng(0)
    cells = generator.lognormal(0, 0.5, (num_perturbations, 40, 3000)) * (
        generator.random((num_perturbations, 40, 3000)) < share
    )
    means, noise = cells.mean(axis=1), cells.var(axis=1, ddof=1).mean(axis=0) / 40
    freedom = np.full(3000, num_perturbations - 1.0)
    assert sampled_share(means.var(axis=0, ddof=1), noise, freedom) > 0.9
    assert sampled_share(np.zeros(3000), noise, freedom) == 0


@pytest.mark.parametrize("num_perturbations", [2, 8, 60])
@pytest.mark.parametrize("part", [0.05, 0.3, 1.0])
def test_a_part_of_the_sampling_noise_is_told_for_any_number_of_perturbations(num_perturbations, part):
    """Carried cells have a little of it."""
    generator = np.random.default_rng(1)
    means = np.sqrt(part) * generator.standard_normal((num_perturbations, 4000))
    means[:, 3000:] += 5 * generator.standard_normal((num_perturbations, 1000))  # effects
    found = sampled_share(means.var(axis=0, ddof=1), np.ones(4000), np.full(4000, num_perturbations - 1.0))
    # effects in a quarter of the genes: the lower quarter of all is the lower third of the others
    assert part * 0.95 <= found <= part * 1.8


@pytest.mark.parametrize("part", [0.1, 0.5])
def test_some_controls_moved_by_next_to_nothing_are_caught(part):
    """In some perturbations, beside honest cells that carry an effect in the others."""
    screen = SCREENS["synthetic"]
    controls = dense(screen.real, screen, CONTROL)
    prediction = carried(screen)
    names = sorted(set(labels(prediction, screen)) - {CONTROL})
    matrix = prediction.X.toarray()
    for name in names[: max(1, int(part * len(names)))]:
        rows = np.flatnonzero(labels(prediction, screen) == name)
        matrix[rows] = np.resize(controls, (len(rows), matrix.shape[1])) * 1.0005
    prediction.X = sp.csr_matrix(matrix)
    assert findings(screen, prediction)["control cells pasted"].status == "fail"


def test_significant_genes_where_the_real_data_has_none_are_caught():
    screen = SCREENS["real"]
    found = findings(screen, screen.prediction(too_alike))["significant genes"]
    assert found.status in ("warn", "fail")
    assert "too alike" in found.sentence


@pytest.mark.parametrize(
    ("real", "pred", "status"),
    [
        pytest.param([0, 1, 2], [50, 70, 100], "fail", id="50 to 100 where there are none to two"),
        pytest.param([2, 2, 2], [50, 50, 50], "warn", id="50 beside two"),
        pytest.param([0, 1, 2, 90, 90, 90, 90], [50, 60, 70, 90, 90, 90, 90], "fail", id="in the quiet ones alone"),
        pytest.param([0, 0, 40, 60, 60], [90, 0, 45, 50, 70], "ok", id="too few quiet ones"),
        pytest.param([0, 0, 0, 1, 4, 40], [3, 5, 7, 8, 12, 45], "ok", id="as an effect with noise has"),
        pytest.param([200, 300, 500], [0, 3, 10], "ok", id="fewer"),
        pytest.param([0], [100], "fail", id="one perturbation"),
    ],
)
def test_numbers_of_significant_genes(real, pred, status):
    assert check_significant(np.array(real), np.array(pred)).status == status


def test_a_held_out_prediction_with_other_measured_controls_raises_nothing():
    screen = SCREENS["synthetic"]
    honest = screen.prediction()
    controls = screen.train[labels(screen.train, screen) == CONTROL]
    prediction = ad.concat([honest[labels(honest, screen) != CONTROL], controls])
    prediction.obs_names_make_unique()
    found = findings(screen, prediction)
    assert {name for name, finding in found.items() if finding.status in ("warn", "fail")} == set()
    assert 0.7 < found["predicted controls"].measurement < 1.4


def rescored(screen, prediction):
    report = score(prediction, screen.real, columns=screen.columns, train=screen.train, integrity="full", bootstrap=0)
    return report, {row["check"]: row for row in report.integrity.iter_rows(named=True)}


def test_full_level_gives_both_scores_of_predicted_controls():
    screen = SCREENS["synthetic"]
    prediction = screen.prediction()
    offset = np.abs(np.random.default_rng(0).normal(0, 0.5, prediction.n_vars))
    prediction.X = sp.csr_matrix(prediction.X.toarray() + offset)
    report, found = rescored(screen, prediction)
    row = found["score by predicted controls"]
    assert row["status"] == "fail"
    assert row["measurement"] > 0.02
    assert f"{report.score:.3f} with the prediction's own" in row["sentence"]


def test_full_level_says_when_scaling_raises_the_score():
    screen = SCREENS["synthetic"]
    base = dense(screen.real, screen, CONTROL).mean(axis=0)
    _, found = rescored(screen, screen.prediction(lambda m, *_: m - 0.6 * (m.mean(0) - base)))
    assert found["effects × 2"]["status"] == "warn"
    _, found = rescored(screen, screen.prediction(lambda m, *_: m + 1.5 * (m.mean(0) - base)))
    assert found["effects × 0.5"]["status"] == "warn"
    _, found = rescored(screen, screen.prediction(lambda m, *_: m - 0.4 * (m.mean(0) - base)))
    assert found["effects × 2"]["status"] == "note"
    assert "wants calibration" in found["effects × 2"]["sentence"]


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS)
def test_full_level_raises_nothing_on_honest_predictions(screen):
    for prediction in (screen.prediction(), additive(screen)):
        _, found = rescored(screen, prediction)
        assert {row["status"] for row in found.values()} <= {"ok", "note", "skipped"}


def test_every_finding_has_a_measurement_or_a_reason():
    for finding in findings(SCREENS["real"], SCREENS["real"].prediction()).values():
        assert finding.sentence.endswith(".") or finding.status == "skipped"
        assert finding.measurement is not None or finding.status == "skipped" or "too few" in finding.sentence
