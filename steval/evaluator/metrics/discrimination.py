"""Discrimination score: how near the predicted effect of a perturbation lies to its own real effect, among all real effects.

With P perturbations and r the number of real effects nearer to the predicted one than the right one (0 … P − 1), the
score is 1 − r/P, best 1. The perturbation's own gene is left out of the distance. cell-eval 0.8.2 takes r from an argsort,
which has no rule for ties, of distances that scikit-learn computes in the data's precision: here all distances are computed
at once in float64, and only where another effect lies so near to the right one that rounding could decide is cell-eval's
own computation repeated.
"""

from collections.abc import Sequence

import numpy as np

from steval.data.compiled import compiled

DOUBT = {"l1": 1e-9, "l2": 1e-6, "cosine": 1e-5}
"""Differences of distances under which rounding could decide the order: relative to the distances (l1), to the effects'
norms (l2), absolute (cosine)."""
ALIASES = {"manhattan": "l1", "cityblock": "l1", "euclidean": "l2"}


def discrimination_scores(
    real_effects: np.ndarray,
    predicted_effects: np.ndarray,
    perturbations: Sequence[str],
    features: Sequence[str] | None,
    metric: str,
) -> dict[str, float]:
    """Score of each perturbation; effects `[P, D]` are mean differences from control.

    `features` are the D gene names, of which the one named like the perturbation is left out; None leaves out nothing.
    """
    kind = ALIASES.get(metric, metric)
    left_out = _left_out(perturbations, features)
    ranks = np.full(len(perturbations), -1)
    if kind in DOUBT and all(len(columns) <= 1 for columns in left_out):
        distances = _distances(real_effects, predicted_effects, left_out, kind)
        ranks = _certain_ranks(distances, DOUBT[kind] * _scale(distances, real_effects, predicted_effects, kind))
    for row in np.flatnonzero(ranks < 0):
        ranks[row] = _rank_as_upstream(real_effects, predicted_effects[row], left_out[row], int(row), metric)
    return {name: float(1 - rank / len(perturbations)) for name, rank in zip(perturbations, ranks, strict=True)}


def _left_out(perturbations: Sequence[str], features: Sequence[str] | None) -> list[np.ndarray]:
    if features is None:
        return [np.empty(0, dtype=np.int64) for _ in perturbations]
    names = np.asarray(features, dtype=object)
    wanted = set(perturbations)
    columns: dict[str, list[int]] = {}
    for column in np.flatnonzero([name in wanted for name in names]):
        columns.setdefault(names[column], []).append(int(column))
    return [np.array(columns.get(name, []), dtype=np.int64) for name in perturbations]


def _distances(real: np.ndarray, predicted: np.ndarray, left_out: list[np.ndarray], kind: str) -> np.ndarray:
    """`[P predicted, P real]` in float64, each row without its left-out column."""
    real, predicted = real.astype(np.float64), predicted.astype(np.float64)
    skipped = np.array([columns[0] if len(columns) else -1 for columns in left_out], dtype=np.int64)
    if kind == "l1":
        return _city_block(real, predicted, skipped)
    has = skipped >= 0
    real_column = np.where(has[:, None], real[:, skipped].T, 0.0)
    own_column = np.where(has, predicted[np.arange(len(predicted)), skipped], 0.0)
    products = predicted @ real.T - own_column[:, None] * real_column
    real_squares = (real**2).sum(axis=1)[None, :] - real_column**2
    own_squares = ((predicted**2).sum(axis=1) - own_column**2)[:, None]
    if kind == "l2":
        return np.sqrt(np.maximum(real_squares + own_squares - 2.0 * products, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - products / np.sqrt(np.maximum(real_squares, 0.0) * np.maximum(own_squares, 0.0))


@compiled
def _city_block(real, predicted, skipped):  # type: ignore[no-untyped-def]
    result = np.empty((predicted.shape[0], real.shape[0]))
    for i in range(predicted.shape[0]):
        for j in range(real.shape[0]):
            total = 0.0
            for g in range(real.shape[1]):
                if g != skipped[i]:
                    total += abs(real[j, g] - predicted[i, g])
            result[i, j] = total
    return result


def _scale(distances: np.ndarray, real: np.ndarray, predicted: np.ndarray, kind: str) -> np.ndarray | float:
    """What the rounding of each distance `[P predicted, P real]` is measured against."""
    if kind == "cosine":
        return 1.0
    if kind == "l1":
        return np.maximum(distances, np.diagonal(distances)[:, None])
    norms = [np.linalg.norm(effects.astype(np.float64), axis=1) for effects in (predicted, real)]
    return np.maximum(norms[0][:, None], norms[1].max())


def _certain_ranks(distances: np.ndarray, doubt: np.ndarray | float) -> np.ndarray:
    """Ranks `[P]`; -1 where another distance is within doubt of the right one or not finite."""
    own = np.diagonal(distances)[:, None]
    doubtful = ~(np.abs(distances - own) > doubt)
    np.fill_diagonal(doubtful, False)
    ranks = (distances < own).sum(axis=1)
    return np.where(doubtful.any(axis=1) | ~np.isfinite(distances).all(axis=1), -1, ranks)


def _rank_as_upstream(real: np.ndarray, predicted: np.ndarray, left_out: np.ndarray, row: int, metric: str) -> int:
    """Position of the right perturbation in cell-eval's own order."""
    from sklearn.metrics import pairwise_distances

    kept = np.setdiff1d(np.arange(real.shape[1]), left_out)
    distances = pairwise_distances(real[:, kept], predicted[kept].reshape(1, -1), metric=metric).ravel()
    return int(np.flatnonzero(np.argsort(distances) == row)[0])
