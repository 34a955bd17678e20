"""Metrics on mean expression (pseudobulk) of each perturbation, in the data's own precision as cell-eval 0.8.2 has them."""

from collections.abc import Callable

import numpy as np

BulkFunction = Callable[[np.ndarray, np.ndarray], float]
"""Of (predicted, real) `[G]`."""


def squared_error(predicted: np.ndarray, real: np.ndarray) -> float:
    """Mean over genes of (predicted − real)²; from 0, best 0."""
    return float(np.average((real - predicted) ** 2))


def absolute_error(predicted: np.ndarray, real: np.ndarray) -> float:
    """Mean over genes of |predicted − real|; from 0, best 0."""
    return float(np.average(np.abs(predicted - real)))


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation, −1 to 1, best 1; NaN where one side is constant. scipy's order of operations."""
    if len(first) < 2:
        raise ValueError("a correlation needs at least two values")
    if (first == first[0]).all() or (second == second[0]).all():
        return float("nan")
    centred = [values - values.mean() for values in (first, second)]
    largest = [np.abs(values).max() for values in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        units = [
            values / (top * np.linalg.norm(values / top, axis=-1)) for values, top in zip(centred, largest, strict=True)
        ]
    return float(np.clip(np.vecdot(units[0], units[1]), -1.0, 1.0))
