"""Uncertainty from the choice of perturbations: resampled with replacement, prediction and baseline together.

An interval says how much a number would move had other perturbations of the same kind been scored. It does not hold the
noise of training seeds, which reaches about 5 % of a member's span.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steval.evaluator.metrics.catalog import BY_COLUMN
from steval.evaluator.metrics.metric import Best, Metric
from steval.evaluator.reference.members import (
    clipped_members,
    limited_members,
    metric_means,
    overall_scores,
    replicate_members,
    replicate_overall,
    unclipped_members,
)
from steval.evaluator.reference.replicates import ReplicateScale
from steval.evaluator.schemas import INTERVAL_SCHEMA
from steval.limits import require_memory
from steval.wording import counted

LEVEL = 0.95
FEWEST_PERTURBATIONS = 3
"""With fewer there is nothing to resample, and intervals are left empty."""


@dataclass(frozen=True)
class MetricRows:
    """Per-perturbation values of metrics: `values [P, M]`, NaN where missing."""

    perturbations: tuple[str, ...]
    metrics: tuple[str, ...]
    values: np.ndarray
    resampled: np.ndarray
    """bool `[M]`: False for metrics that are one number for all perturbations, and for those whose mean is NaN."""


def metric_rows(results: pl.DataFrame, metrics: Sequence[str]) -> MetricRows:
    """The columns `metrics` of a results frame (perturbation × metric); a metric that is not there is all missing."""
    columns, usable = [], []
    for metric in metrics:
        if metric not in results.columns:
            columns.append(np.full(results.height, np.nan))
            usable.append(False)
            continue
        series = results[metric].cast(pl.Float64)
        has_nan = bool(series.is_nan().any())
        columns.append(series.fill_null(np.nan).to_numpy())
        usable.append(not _is_over_all(metric) and not has_nan and series.null_count() < series.len())
    values = np.column_stack(columns) if columns else np.empty((results.height, 0))
    names = tuple(results["perturbation"].cast(pl.String).to_list())
    return MetricRows(names, tuple(metrics), values, np.array(usable, dtype=bool))


def _is_over_all(column: str) -> bool:
    return column in BY_COLUMN and BY_COLUMN[column].over_all


def draw_weights(num_perturbations: int, draws: int, seed: int) -> np.ndarray:
    """How often each perturbation is drawn in each of `draws` resamples: float64 `[draws, P]`, rows sum to P."""
    require_memory(
        3 * 8 * draws * num_perturbations,
        f"{counted(draws, 'resample')} of {counted(num_perturbations, 'perturbation')}",
        "take fewer (--bootstrap)",
    )
    generator = np.random.default_rng(seed)
    share = np.full(num_perturbations, 1.0 / num_perturbations)
    return generator.multinomial(num_perturbations, share, size=draws).astype(np.float64)


def resampled_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of each resample: `values [P, M]`, `weights [B, P]` → `[B, M]`; missing values are left out."""
    present = ~np.isnan(values)
    totals = weights @ np.where(present, values, 0.0)
    counts = weights @ present.astype(np.float64)
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Percentile interval of finite samples; empty where fewer than half are finite."""
    finite = samples[np.isfinite(samples)]
    if finite.size < max(2, samples.size / 2):
        return None, None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score_intervals(
    results: pl.DataFrame,
    baseline: pl.DataFrame | None,
    metrics: Sequence[str],
    best: Sequence[Best],
    draws: int,
    seed: int,
) -> pl.DataFrame:
    """Intervals of every metric's value, normalised and unclipped member, and of the overall score.

    Returns rows (quantity, metric, low, high, num_perturbations); metric is `overall` for the overall score. A global
    metric is held at its point value when the overall score is resampled.
    """
    rows = metric_rows(results, metrics)
    num = len(rows.perturbations)
    if draws < 1 or num < FEWEST_PERTURBATIONS:
        return _interval_frame([], num)
    weights = draw_weights(num, draws, seed)
    samples = held_means(results, metrics, weights)
    found = [("value", m, *_of(samples[:, i], rows.resampled[i])) for i, m in enumerate(rows.metrics)]
    if baseline is None:
        return _interval_frame(found, num)
    matched = aligned(baseline, rows.perturbations)
    base = metric_rows(matched, metrics)
    unclipped = unclipped_members(samples, held_means(matched, metrics, weights), best)
    clipped = clipped_members(unclipped)
    for index, metric in enumerate(rows.metrics):
        usable = bool(rows.resampled[index] and base.resampled[index] and best[index] != "none")
        found.append(("normalised", metric, *_of(clipped[:, index], usable)))
        found.append(("unclipped", metric, *_of(unclipped[:, index], usable)))
    total, plain = overall_scores(unclipped, best)
    found.append(("normalised", "overall", *interval(total)))
    found.append(("unclipped", "overall", *interval(plain)))
    return _interval_frame(found, num)


def replicate_intervals(
    results: pl.DataFrame, scale: ReplicateScale | None, metrics: Sequence[Metric], draws: int, seed: int
) -> pl.DataFrame:
    """As `score_intervals`, of metrics on counts: both ends of the scale are held, the prediction's values are resampled.

    A ratio of sums is resampled by its parts where the results hold them.
    """
    names = [metric.name for metric in metrics]
    rows = metric_rows(results, names)
    num = len(rows.perturbations)
    if draws < 1 or num < FEWEST_PERTURBATIONS:
        return _interval_frame([], num)
    samples, usable = ratio_means(results, metrics, draw_weights(num, draws, seed))
    found = [("value", name, *_of(samples[:, i], usable[i])) for i, name in enumerate(names)]
    if scale is None:
        return _interval_frame(found, num)
    unclipped = replicate_members(samples, scale, metrics)
    limited = limited_members(unclipped, metrics)
    for index, metric in enumerate(metrics):
        is_member = bool(usable[index]) and metric.best != "none"
        found.append(("normalised", metric.name, *_of(limited[:, index], is_member)))
        found.append(("unclipped", metric.name, *_of(unclipped[:, index], is_member)))
    found.append(("normalised", "overall", *interval(replicate_overall(limited, metrics))))
    found.append(("unclipped", "overall", *interval(replicate_overall(unclipped, metrics))))
    return _interval_frame(found, num)


def ratio_means(results: pl.DataFrame, metrics: Sequence[Metric], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resampled means `[B, M]` as `held_means`, ratios of sums by their parts; and which were resampled `[M]`."""
    names = [metric.name for metric in metrics]
    samples, resampled = held_means(results, names, weights), metric_rows(results, names).resampled.copy()
    for index, metric in enumerate(metrics):
        if metric.ratio is not None and set(metric.ratio) <= set(results.columns):
            over, under = (resampled_means(metric_rows(results, [part]).values, weights)[:, 0] for part in metric.ratio)
            samples[:, index] = np.divide(over, under, out=np.full(len(weights), np.nan), where=under > 0)
            resampled[index] = True
    return samples, resampled


def drawn_scores(
    results: pl.DataFrame, scale: ReplicateScale, metrics: Sequence[Metric], weights: np.ndarray
) -> np.ndarray:
    """Resampled overall scores `[B]` on the replicate scale."""
    members = replicate_members(ratio_means(results, metrics, weights)[0], scale, metrics)
    return replicate_overall(limited_members(members, metrics), metrics)


def recorded_scale(breakdown: pl.DataFrame) -> tuple[ReplicateScale, list[Metric]]:
    """The scale and the metrics of a report's breakdown on counts (of one cell type)."""
    rows = list(breakdown.select("metric", "baseline", "replicate").iter_rows())
    scale = ReplicateScale({name: low for name, low, _ in rows}, {name: high for name, _, high in rows})
    return scale, [BY_COLUMN[name] for name, _, _ in rows]


def held_means(results: pl.DataFrame, metrics: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Resampled means `[B, M]`; metrics that cannot be resampled are held at their mean as cell-eval takes it."""
    rows = metric_rows(results, metrics)
    samples = resampled_means(rows.values, weights)
    means = metric_means(results, metrics)
    for index in np.flatnonzero(~rows.resampled):
        mean = means[rows.metrics[index]]
        samples[:, index] = np.nan if mean is None else mean
    return samples


def aligned(frame: pl.DataFrame, perturbations: Sequence[str]) -> pl.DataFrame:
    """The rows of `perturbations` in their order."""
    order = pl.DataFrame({"perturbation": list(perturbations)}, schema={"perturbation": pl.String})
    return order.join(frame.with_columns(pl.col("perturbation").cast(pl.String)), on="perturbation", how="left")


def _of(samples: np.ndarray, usable: bool) -> tuple[float | None, float | None]:
    return interval(samples) if usable else (None, None)


def _interval_frame(found: list[tuple[str, str, float | None, float | None]], num: int) -> pl.DataFrame:
    return pl.DataFrame([(*row, num) for row in found], schema=INTERVAL_SCHEMA, orient="row")
