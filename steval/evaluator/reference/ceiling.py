"""How well the real data predict themselves: the score that no model can be expected to beat.

Two estimates, both from the real cells alone:

- cell-eval 0.8.2's ceiling: each perturbation's cells are split once into two disjoint halves, one half is scored
  against the other, and the mean r of each bounded agreement metric is carried to full depth by Spearman–Brown,
  r' = 2r / (1 + r). Errors, counts and a few others have none (NaN).
- replicates: the plain mean of the same self-score over k splits, for every metric, uncorrected: what a second
  experiment of half the size would reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import StoredCells
from steval.evaluator.metrics.catalog import BY_COLUMN
from steval.evaluator.metrics.evaluation import evaluate
from steval.evaluator.reference.members import metric_means
from steval.wording import counted


def disjoint_halves(
    labels: pd.Series | Sequence[str], control: str, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Row numbers of two disjoint halves of floor(n / 2) cells of each label, and the labels with too few cells.

    Same cells as cell-eval's split with the same seed; a categorical series is gone through in the order of its
    categories, as cell-eval does, anything else in the order of its sorted labels. Raises `EvaluationError` where the
    control has fewer than 2 cells.
    """
    generator = np.random.default_rng(seed)
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    dropped: list[str] = []
    series = (
        labels.reset_index(drop=True) if isinstance(labels, pd.Series) else pd.Series(np.asarray(labels, dtype=object))
    )
    groups = series.groupby(series, observed=True).indices
    for label, rows in groups.items():
        shuffled = generator.permutation(np.asarray(rows))
        half = shuffled.size // 2
        if half < 1:
            dropped.append(str(label))
            continue
        first.append(shuffled[:half])
        second.append(shuffled[half : 2 * half])
    if control in dropped or control not in groups:
        raise EvaluationError(f"the control {control!r} has fewer than 2 real cells, so no ceiling can be estimated")
    if len(first) < 2:
        raise EvaluationError("no perturbation has 2 real cells or more, so no ceiling can be estimated")
    return np.concatenate(first), np.concatenate(second), dropped


def spearman_brown(metric: str, half_depth: float | None) -> float:
    """cell-eval's ceiling of a metric from its mean at half depth; NaN where it has none (`Metric.corrected`)."""
    if not BY_COLUMN[metric].corrected or half_depth is None or not half_depth > 0:
        return float("nan")
    return 2.0 * half_depth / (1.0 + half_depth)


@dataclass(frozen=True)
class Ceiling:
    """Ceilings of each metric column."""

    corrected: dict[str, float]
    """cell-eval's ceiling; NaN where it has none."""
    replicate: dict[str, float | None]
    """Mean over the splits of one half scored against the other."""
    splits: int
    notes: tuple[str, ...]


def estimate_ceiling(
    pair: Pair,
    metrics: str | Sequence[str],
    columns: Sequence[str],
    *,
    splits: int,
    seed: int,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    threads: int | None = None,
) -> Ceiling:
    """Both ceilings of the metric columns `columns`; split i is seeded `seed + i`, cell-eval's ceiling is the first's."""
    means: list[dict[str, float | None]] = []
    dropped: list[str] = []
    for index in range(splits):
        halves, dropped = split_pair(pair, seed + index)
        results = evaluate(halves, metrics, options=options, threads=threads).results
        means.append(metric_means(results, columns))
    notes = []
    if dropped:
        notes.append(f"ceiling: {counted(len(dropped), 'perturbation')} with fewer than 2 real cells left out")
    return Ceiling(
        corrected={column: spearman_brown(column, means[0][column]) for column in columns},
        replicate={column: _mean([mean[column] for mean in means]) for column in columns},
        splits=splits,
        notes=tuple(notes),
    )


def split_pair(pair: Pair, seed: int) -> tuple[Pair, list[str]]:
    """Real cells against real cells: a pair of disjoint halves, and the perturbations that could not be split."""
    rows = np.sort(np.concatenate(list(pair.real.groups.values())))
    labels = pair.real.file.obs[pair.columns.perturbation].iloc[rows]
    first, second, dropped = disjoint_halves(labels, pair.control, seed)
    sides = [_half(pair.real, rows[half], f"half {part} of split {seed}") for part, half in ((1, first), (2, second))]
    perturbations = tuple(name for name in sides[0].groups if name != pair.control)
    return replace(pair, real=sides[0], pred=sides[1], perturbations=perturbations, notes=()), dropped


def _half(side: StoredCells, rows: np.ndarray, name: str) -> StoredCells:
    keep = np.zeros(side.file.num_cells, dtype=bool)
    keep[rows] = True
    return side.restricted(keep, f"{side.subset} {name}".strip())


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
