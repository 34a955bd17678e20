"""Two scores of the same real data side by side: is the difference more than noise?

Perturbations are resampled in pairs: each draw takes the same perturbations of both scores (and of their baselines), so what
both find hard cancels. The p-value is two-sided, the share of draws on the other side of 0, doubled.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from steval.errors import EvaluationError
from steval.evaluator.metrics.catalog import BY_COLUMN
from steval.evaluator.metrics.metric import Best
from steval.evaluator.reference.baselines import REFERENCE
from steval.evaluator.reference.bootstrap import (
    FEWEST_PERTURBATIONS,
    aligned,
    draw_weights,
    held_means,
    interval,
    metric_rows,
    ratio_means,
    recorded_scale,
)
from steval.evaluator.reference.members import (
    limited_members,
    metric_means,
    overall_scores,
    replicate_members,
    replicate_overall,
    unclipped_members,
)
from steval.evaluator.report.report import ScoreReport, finite_or_none, of_type
from steval.evaluator.schemas import COMPARISON_SCHEMA
from steval.evaluator.tables import read_score_dir

SEED_NOISE = 0.05
"""Difference of normalised members that another training seed alone can make."""


def compare_scores(
    a: ScoreReport | Path | str, b: ScoreReport | Path | str, *, draws: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """Paired bootstrap test of two scores (reports or score directories) of the same real data.

    One row per metric for its `value` and, where both have baselines, its `unclipped` member, and rows for the overall score
    (`normalised` as cell-eval clips it, `unclipped`). `difference` is b − a with its 95 % interval; `exceeds_noise` says whether
    the interval excludes 0 (null: cannot be tested); `better` names the better one then. Raises `EvaluationError` where the
    real data differ.
    """
    reports = [report if isinstance(report, ScoreReport) else read_score_dir(report) for report in (a, b)]
    _require_same_real(reports)
    metrics = [m for m in _metrics(reports[0]) if m in set(_metrics(reports[1]))]
    if not metrics:
        raise EvaluationError("the two scores have no metric in common")
    types = reports[0].results["cell_type"].unique(maintain_order=True).to_list()
    rows = [row for cell_type in types for row in _compare_type(reports, cell_type, metrics, draws, seed)]
    return pl.DataFrame(rows, schema=COMPARISON_SCHEMA)


def _require_same_real(reports: Sequence[ScoreReport]) -> None:
    digests = [report.record["inputs"]["real"]["sha256"] for report in reports]
    ways = [report.record["options"]["by"] for report in reports]
    problems = []
    if digests[0] != digests[1]:
        names = [report.record["inputs"]["real"]["name"] for report in reports]
        problems.append(
            f"they were scored on different real cells: {names[0]} ({digests[0][:12]}…), {names[1]} ({digests[1][:12]}…)"
        )
    if ways[0] != ways[1]:
        problems.append(f"one was scored by cell type and the other was not ({ways[0]}, {ways[1]})")
    if problems:
        raise EvaluationError("the two scores cannot be compared perturbation by perturbation", problems)


def _metrics(report: ScoreReport) -> list[str]:
    return report.breakdown["metric"].unique(maintain_order=True).to_list()


def _compare_type(
    reports: Sequence[ScoreReport], cell_type: str | None, metrics: list[str], draws: int, seed: int
) -> list[dict[str, object]]:
    best = _best(reports[0], metrics)
    results = [of_type(report.results, cell_type) for report in reports]
    names = [name for name in results[0]["perturbation"] if name in set(results[1]["perturbation"])]
    weights = draw_weights(len(names), draws, seed) if len(names) >= FEWEST_PERTURBATIONS else None
    on_counts = reports[0].on_counts
    samples, points = _means(results, names, metrics, weights)
    usable = [metric_rows(aligned(frame, names), metrics).resampled for frame in results]
    testable = usable[0] & usable[1]
    rows = [
        _row(cell_type, "value", metric, points[:, i], _pick(samples, i) if testable[i] else None, best[i])
        for i, metric in enumerate(metrics)
    ]
    if on_counts:
        return [*rows, *_on_replicate_scale(reports[0], cell_type, metrics, samples, points, testable)]
    baselines = [
        of_type(report.baseline_results, cell_type).filter(pl.col("baseline") == REFERENCE) for report in reports
    ]
    if any(frame.is_empty() for frame in baselines):
        return rows
    base_samples, base_points = _means(baselines, names, metrics, weights)
    members = unclipped_members(points, base_points, best)
    drawn = None if samples is None or base_samples is None else unclipped_members(samples, base_samples, best)
    for i, metric in enumerate(metrics):
        if best[i] != "none":
            picked = _pick(drawn, i) if testable[i] else None
            rows.append(_row(cell_type, "unclipped", metric, members[:, i], picked, "high"))
    totals = overall_scores(members, best)
    drawn_totals = (None, None) if drawn is None else overall_scores(drawn, best)
    for quantity, point, draw in zip(("normalised", "unclipped"), totals, drawn_totals, strict=True):
        rows.append(_row(cell_type, quantity, "overall", point, draw, "high"))
    return rows


def _means(
    frames: Sequence[pl.DataFrame], names: Sequence[str], metrics: Sequence[str], weights: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Resampled means `[2, B, M]` and means `[2, M]` over the perturbations `names`."""
    parts = [aligned(frame, names) for frame in frames]
    means = [metric_means(part, metrics) for part in parts]
    points = np.array([[np.nan if mean[m] is None else mean[m] for m in metrics] for mean in means], dtype=np.float64)
    if weights is None:
        return None, points
    entries = [BY_COLUMN[metric] for metric in metrics if metric in BY_COLUMN]
    if len(entries) == len(metrics) and entries[0].scale == "counts":
        return np.stack([ratio_means(part, entries, weights)[0] for part in parts]), points
    return np.stack([held_means(part, metrics, weights) for part in parts]), points


def _on_replicate_scale(
    report: ScoreReport,
    cell_type: str | None,
    metrics: Sequence[str],
    samples: np.ndarray | None,
    points: np.ndarray,
    testable: np.ndarray,
) -> list[dict[str, object]]:
    """Rows of members and overall scores on counts; both reports have the same real cells and so the same scale."""
    scale, entries = recorded_scale(of_type(report.breakdown, cell_type).filter(pl.col("metric").is_in(list(metrics))))
    members = replicate_members(points, scale, entries)
    drawn = None if samples is None else replicate_members(samples, scale, entries)
    rows = []
    for i, metric in enumerate(entries):
        if metric.best != "none":
            picked = _pick(drawn, i) if testable[i] or metric.ratio else None
            rows.append(_row(cell_type, "unclipped", metric.name, members[:, i], picked, "high"))
    for quantity, keep in (("normalised", limited_members), ("unclipped", lambda values, _: values)):
        point = replicate_overall(keep(members, entries), entries)
        draw = None if drawn is None else replicate_overall(keep(drawn, entries), entries)
        rows.append(_row(cell_type, quantity, "overall", point, draw, "high"))
    return rows


def _pick(samples: np.ndarray | None, index: int) -> np.ndarray | None:
    return None if samples is None else samples[:, :, index]


def _best(report: ScoreReport, metrics: Sequence[str]) -> list[Best]:
    kinds = dict(report.breakdown.select("metric", "best").iter_rows())
    return [kinds[metric] for metric in metrics]


def _row(
    cell_type: str | None, quantity: str, metric: str, points: np.ndarray, samples: np.ndarray | None, best: Best
) -> dict[str, object]:
    difference = float(points[1] - points[0])
    drawn = None if samples is None else samples[1] - samples[0]
    low, high = (None, None) if drawn is None else interval(drawn)
    exceeds = None if low is None or high is None else bool(low > 0 or high < 0)
    better = None
    if exceeds and best != "none":
        better = "b" if (difference > 0) == (best == "high") else "a"
    return {
        "cell_type": cell_type,
        "quantity": quantity,
        "metric": metric,
        "a": finite_or_none(points[0]),
        "b": finite_or_none(points[1]),
        "difference": finite_or_none(difference),
        "low": low,
        "high": high,
        "p_value": None if drawn is None or low is None else _p_value(drawn),
        "exceeds_noise": exceeds,
        "better": better,
        "sentence": _sentence(quantity, difference, exceeds, better),
    }


def _p_value(drawn: np.ndarray) -> float:
    finite = drawn[np.isfinite(drawn)]
    smaller = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2.0 * (smaller + 1) / (finite.size + 1))


def _sentence(quantity: str, difference: float, exceeds: bool | None, better: str | None) -> str:
    if exceeds is None:
        return "cannot be tested: one value for all perturbations, an undefined mean, or too few perturbations"
    if not exceeds:
        return "no difference beyond the choice of perturbations"
    verdict = f"{better} is better" if better else "they differ"
    if quantity != "value" and abs(difference) < SEED_NOISE:
        return (
            f"{verdict} on these perturbations, but by less than the {SEED_NOISE:g} that another training seed can make"
        )
    return f"{verdict}, beyond the choice of perturbations"
