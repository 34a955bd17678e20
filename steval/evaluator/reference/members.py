"""Normalised members and the overall score: how far a metric lies from its baseline (0) towards its best value (1).

cell-eval 0.8.2's rule (`score_agg_metrics`): with u the prediction's mean over perturbations and b the baseline's,

    best value 0:  n = 1 - u / b            best value 1:  n = (u - b) / (1 - b)

NaN counts as 0, each member is clipped at 0, and the overall score is the mean of the clipped members. The unclipped
members show what clipping hides. A metric without a best value (counts of significant genes) is no member.

On counts a member lies between both ends of the replicate scale (cell-eval2 0.20.0): with b the generic response's mean and r
the replicates', n = (u - b) / (r - b) whichever is good, kept within the metric's stated limits; the overall score is their mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from steval.evaluator.metrics.metric import Best, Metric
from steval.evaluator.schemas import MEMBER_SCHEMA

if TYPE_CHECKING:
    from steval.evaluator.reference.replicates import ReplicateScale

LEADERBOARD_FACTOR = 100.0


@dataclass(frozen=True)
class Overall:
    """The overall score in its three forms; NaN where there is no baseline."""

    clipped: float
    """cell-eval's `avg_score`: mean of the members clipped at 0; best 1."""
    unclipped: float
    """Mean of the members as they are (a member that has no finite value counts as 0)."""

    @property
    def leaderboard(self) -> float:
        """The clipped score as the challenge's leaderboard shows it, ×100."""
        return self.clipped * LEADERBOARD_FACTOR


def unclipped_members(values: np.ndarray, baselines: np.ndarray, best: Sequence[Best]) -> np.ndarray:
    """Normalised members before clipping; `values` and `baselines` are `[..., M]`, NaN or infinite where undefined."""
    values, baselines = np.asarray(values, dtype=np.float64), np.asarray(baselines, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        towards_one = (values - baselines) / (1.0 - baselines)
        towards_zero = 1.0 - values / baselines
    is_high = np.array([kind == "high" for kind in best], dtype=bool)
    is_member = np.array([kind != "none" for kind in best], dtype=bool)
    return np.where(is_member, np.where(is_high, towards_one, towards_zero), np.nan)


def clipped_members(unclipped: np.ndarray) -> np.ndarray:
    """cell-eval's members: NaN becomes 0, negative ones become 0."""
    return np.clip(np.where(np.isnan(unclipped), 0.0, unclipped), 0.0, None)


def overall_scores(unclipped: np.ndarray, best: Sequence[Best]) -> tuple[np.ndarray, np.ndarray]:
    """Clipped and unclipped overall score of members `[..., M]`; NaN where no metric is a member."""
    is_member = np.array([kind != "none" for kind in best], dtype=bool)
    if not is_member.any():
        empty = np.full(unclipped.shape[:-1], np.nan)
        return empty, empty.copy()
    members = unclipped[..., is_member]
    finite = np.where(np.isfinite(members), members, 0.0)
    return clipped_members(members).mean(axis=-1), finite.mean(axis=-1)


def metric_means(results: pl.DataFrame, metrics: Sequence[str]) -> dict[str, float | None]:
    """Mean of each metric over perturbations as cell-eval takes it: nulls are left out, NaN makes the mean NaN."""
    means: dict[str, float | None] = {}
    for metric in metrics:
        mean: Any = results[metric].mean() if metric in results.columns else None
        means[metric] = None if mean is None else float(mean)
    return means


def member_table(
    values: Mapping[str, float | None], baselines: Mapping[str, float | None] | None, best: Mapping[str, Best]
) -> tuple[pl.DataFrame, Overall]:
    """One row per metric: metric, value, baseline, normalised, unclipped; and the overall score.

    Without `baselines` the last three columns are empty and the overall score is NaN. Rows keep the order of `values`.
    """
    metrics = list(values)
    kinds = [best[metric] for metric in metrics]
    value = _array(values, metrics)
    baseline = _array(baselines or {}, metrics)
    unclipped = unclipped_members(value, baseline, kinds)
    is_member = np.array([kind != "none" for kind in kinds], dtype=bool)
    has_baseline = baselines is not None
    clipped, plain = overall_scores(unclipped, kinds) if has_baseline else (np.nan, np.nan)
    table = pl.DataFrame(
        {
            "metric": metrics,
            "value": [values[metric] for metric in metrics],
            "baseline": [(baselines or {}).get(metric) for metric in metrics],
            "normalised": _optional(clipped_members(unclipped), is_member & has_baseline),
            "unclipped": _optional(unclipped, is_member & has_baseline),
        },
        schema=MEMBER_SCHEMA,
    )
    return table, Overall(clipped=float(clipped), unclipped=float(plain))


def replicate_members(values: np.ndarray, scale: "ReplicateScale", metrics: Sequence[Metric]) -> np.ndarray:
    """Members on the replicate scale before limits; `values [..., M]`.

    NaN where a metric is no member or its scale has no two ends. A value that is missing counts as the worst there is.
    """
    values = np.asarray(values, dtype=np.float64)
    ends = [scale.ends(metric) for metric in metrics]
    low, high = (np.array([np.nan if end is None else end[i] for end in ends]) for i in range(2))
    worst = np.array([0.0 if metric.member_limits[0] is None else np.nan for metric in metrics])
    floors = np.array([np.nan if metric.member_limits[0] is None else metric.member_limits[0] for metric in metrics])
    members = (np.where(np.isnan(values), worst, values) - low) / (high - low)
    return np.where(np.isnan(members) & ~np.isnan(low), floors, members)


def limited_members(unclipped: np.ndarray, metrics: Sequence[Metric]) -> np.ndarray:
    """Members kept within the limits that each metric states; NaN stays."""
    low = [-np.inf if metric.member_limits[0] is None else metric.member_limits[0] for metric in metrics]
    high = [np.inf if metric.member_limits[1] is None else metric.member_limits[1] for metric in metrics]
    return np.clip(unclipped, low, high)


def replicate_overall(members: np.ndarray, metrics: Sequence[Metric]) -> np.ndarray:
    """Mean of the members `[..., M]` of the challenge; NaN where one of them has no scale."""
    is_member = np.array([metric.best != "none" for metric in metrics], dtype=bool)
    if not is_member.any():
        return np.full(members.shape[:-1], np.nan)
    return members[..., is_member].mean(axis=-1)


def replicate_table(
    values: Mapping[str, float | None], scale: "ReplicateScale | None", columns: Mapping[str, Metric]
) -> tuple[pl.DataFrame, Overall]:
    """As `member_table`, on the replicate scale; without one the last three columns are empty."""
    metrics = [columns[name] for name in values]
    value = _array(values, list(values))
    unclipped = np.full(len(metrics), np.nan) if scale is None else replicate_members(value, scale, metrics)
    limited = limited_members(unclipped, metrics)
    has_scale = ~np.isnan(unclipped)
    table = pl.DataFrame(
        {
            "metric": list(values),
            "value": list(values.values()),
            "baseline": [None if scale is None else scale.baseline.get(name) for name in values],
            "normalised": _optional(limited, has_scale),
            "unclipped": _optional(unclipped, has_scale),
        },
        schema=MEMBER_SCHEMA,
    )
    clipped, plain = (float(replicate_overall(members, metrics)) for members in (limited, unclipped))
    return table, Overall(clipped=clipped, unclipped=plain)


def _array(values: Mapping[str, float | None], metrics: Sequence[str]) -> np.ndarray:
    picked = (values.get(metric) for metric in metrics)
    return np.array([np.nan if value is None else value for value in picked], dtype=np.float64)


def _optional(values: np.ndarray, present: np.ndarray) -> list[float | None]:
    return [float(value) if there else None for value, there in zip(values, present, strict=True)]
