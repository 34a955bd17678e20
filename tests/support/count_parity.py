"""Comparing a score on counts with cell-eval2's values, as `cell_eval2_values.py` prints them."""

import numpy as np

from steval.data.columns import Columns
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.evaluation import evaluate
from steval.evaluator.report.report import ScoreReport, of_type
from steval.evaluator.scoring import score

METRICS, P_VALUES = 1e-6, 1e-9
"""How far values may lie apart."""


def scored(pred, real) -> ScoreReport:
    """The pair as `steval score --profile vcc2026` scores it."""
    return score(pred, real, profile="vcc2026", integrity="none", bootstrap=0, threads=1)


def compare(report: ScoreReport, theirs: dict, context: str | None = None) -> dict[str, float]:
    """Largest differences from cell-eval2's values, by what they are of; what it refused must have no value here."""
    breakdown = {row["metric"]: row for row in of_type(report.breakdown, context).iter_rows(named=True)}
    gaps: dict[str, float] = {}
    if isinstance(theirs["metrics"], str):
        refused = next(name for name in breakdown if name in theirs["metrics"])
        assert breakdown[refused]["value"] is None or np.isnan(breakdown[refused]["value"])
    else:
        results = {row["perturbation"]: row for row in of_type(report.results, context).iter_rows(named=True)}
        ours = [results[name][metric] for metric, name, _ in theirs["metrics"]["rows"]]
        gaps["metrics"] = _gap(ours, [value for *_, value in theirs["metrics"]["rows"]])
        assert len(ours) >= 9 * len(results) - sum(row["de_wilcoxon_lfc_nmae"] is None for row in results.values())
        names = list(theirs["metrics"]["means"])
        gaps["means"] = _gap([breakdown[name]["value"] for name in names], list(theirs["metrics"]["means"].values()))
        assert set(names) == set(breakdown)
    for end, column in (("b", "baseline"), ("r", "replicate")):
        if isinstance(theirs[end], str):
            assert any(breakdown[name][column] is None for name in breakdown)
        else:
            gaps[end] = _gap([breakdown[name][column] for name in theirs[end]], list(theirs[end].values()))
    overall = of_type(report.overall, context).row(0, named=True)["overall"]
    if isinstance(theirs["score"], str):
        assert overall is None
    else:
        members = {name: value for name, value in theirs["score"].items() if name != "avg_score"}
        assert {name for name, row in breakdown.items() if row["best"] != "none"} == set(members)
        gaps["s"] = _gap([breakdown[name]["normalised"] for name in members], list(members.values()))
        gaps["overall"] = _gap([overall], [theirs["score"]["avg_score"]])
    return gaps


def p_value_gap(pred, real, theirs: dict) -> float:
    """Largest difference of p-values of both sides; the tested genes must be the same."""
    with Pair.build(pred, real, Columns(), takes="counts") as pair:
        evaluation = evaluate(pair, "vcc2026", threads=1)
    worst = 0.0
    for side, frame in (("real", evaluation.de_real), ("pred", evaluation.de_pred)):
        ours = {(target, gene): p for target, gene, p in frame.select("target", "feature", "p_value").iter_rows()}
        expected = {(target, gene): p for target, gene, p in theirs["p"][side]}
        assert ours.keys() == expected.keys()
        worst = max(worst, max(abs(ours[key] - expected[key]) for key in ours))
    return worst


def _gap(ours, theirs) -> float:
    first, second = (
        np.array([np.nan if value is None else value for value in values], dtype=float) for values in (ours, theirs)
    )
    np.testing.assert_array_equal(np.isnan(first), np.isnan(second))
    differences = np.abs(first - second)[~np.isnan(first)]
    return float(differences.max()) if differences.size else 0.0
