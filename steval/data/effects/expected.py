"""How wrong a predicted effect is expected to be: a mean absolute error for each perturbation, with its 90 % interval.

A regression of log error, fitted on held-out pairs at the end of calibration, on what is known before anything is measured: the
size of the simple model's effect, and how many training cells of the perturbation there are. Where leaving pairs out does not
show, by more than a standard error, that these say something, every perturbation is expected the same. The interval comes from
the errors of left-out pairs.
"""

from collections.abc import Collection, Sequence

import numpy as np

from steval.data.effects.record import TrainingEffects
from steval.limits import Count
from steval.settings import Settings

FEWEST_PAIRS = 10
"""Held-out pairs from which an error is told."""
COVERED = 0.9
_RIDGE = 1.0
_TINY = 1e-12


class ExpectedErrorModel(Settings):
    """A fitted regression; logarithms are natural."""

    intercept: float
    """Log error of an average pair."""
    size: tuple[float, float, float]
    """Slope, and the centre and spread of the log size of effects."""
    cells: tuple[float, float, float]
    """The same for the log of one more than the training cells."""
    low: float
    """Log error less what is told, for the lower end of the interval."""
    high: float
    pairs: Count
    """Held-out pairs that it was fitted on."""
    measured_cells: Count
    """Median number of their measured cells, whose sampling noise is a part of the error."""
    rank_correlation: float
    """Of the errors of left-out pairs with what was told of them (Spearman)."""

    def told(self, sizes: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Expected error and the ends of its interval `[n, 3]`, lognorm; of effects of `sizes [n]` with `cells [n]` of training."""
        value = np.full(len(sizes), self.intercept)
        for (slope, centre, spread), feature in zip((self.size, self.cells), _features(sizes, cells), strict=True):
            value = value + slope * np.clip((feature - centre) / spread, -3, 3)
        return np.exp(value[:, None] + np.array([0.0, self.low, self.high]))


def effect_sizes(effects: np.ndarray) -> np.ndarray:
    """Mean absolute change of `effects [n, G]`."""
    return np.abs(effects).mean(axis=1)


def training_cells(
    record: TrainingEffects, perturbations: Sequence[str], hidden: Collection[tuple[str, str]] = ()
) -> np.ndarray:
    """Training cells of each perturbation in all contexts, those of `hidden` pairs (perturbation, context) left out."""
    counts = dict.fromkeys(perturbations, 0)
    left_out = frozenset(hidden)
    for pair, number in zip(record.pairs(), record.num_cells.tolist(), strict=True):
        if pair[0] in counts and pair not in left_out:
            counts[pair[0]] += number
    return np.array([counts[name] for name in perturbations])


def fit_expected_error(
    sizes: np.ndarray, cells: np.ndarray, errors: np.ndarray, measured_cells: int
) -> ExpectedErrorModel | None:
    """A model of `errors [n]`; None for fewer than `FEWEST_PAIRS`."""
    if len(errors) < FEWEST_PAIRS:
        return None
    target = np.log(np.maximum(errors, _TINY))
    features = np.stack(_features(sizes, cells), axis=1)
    centre, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    design = np.column_stack([np.ones(len(target)), (features - centre) / spread])
    penalty = np.diag([0.0, _RIDGE, _RIDGE])
    hat = np.linalg.solve(design.T @ design + penalty, design.T)
    slopes = hat @ target
    alone = (target.sum() - target) / (len(target) - 1)
    left_out = target - (target - design @ slopes) / (1 - np.einsum("nk,kn->n", design, hat))
    gained = (target - alone) ** 2 - (target - left_out) ** 2
    if gained.mean() <= gained.std(ddof=1) / np.sqrt(len(gained)):
        slopes, left_out = np.array([target.mean(), 0.0, 0.0]), alone
    tail = (1 - COVERED) / 2
    rank = tail * (len(target) + 1)
    residuals = np.sort(target - left_out)
    low, high = max(int(rank) - 1, 0), min(len(target) - int(rank), len(target) - 1)
    return ExpectedErrorModel(
        intercept=float(slopes[0]),
        size=(float(slopes[1]), float(centre[0]), float(spread[0])),
        cells=(float(slopes[2]), float(centre[1]), float(spread[1])),
        low=float(min(residuals[low], 0.0)),
        high=float(max(residuals[high], 0.0)),
        pairs=len(target),
        measured_cells=measured_cells,
        rank_correlation=rank_correlation(left_out, target) if slopes[1:].any() else 0.0,
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; 0 where one of them does not vary."""
    ranks = [
        np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64) for values in (first, second)
    ]
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _features(sizes: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.log(np.maximum(sizes, _TINY)), np.log1p(cells)
