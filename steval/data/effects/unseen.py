"""Effects of perturbations that were never measured, told from features by kernel ridge regression.

Features are standardised over the measured perturbations; the kernel is the cosine of their vectors. The penalty is the one
with the least leave-one-out error; where no penalty beats the mean effect, the mean effect is what is predicted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEAST_PERTURBATIONS = 5
"""Measured perturbations with features from which a regression is tried."""
PENALTIES = np.logspace(-2, 3, 21)


@dataclass(frozen=True)
class FeatureModel:
    """A fitted regression of effects on features."""

    vectors: Mapping[str, np.ndarray]
    centre: np.ndarray
    spread: np.ndarray
    units: np.ndarray
    """Standardised features of the measured perturbations at length 1 `[m, D]`."""
    weights: np.ndarray
    """`[m, G]`."""
    mean: np.ndarray
    """Mean effect `[G]`."""
    explained: float
    """Share of the variance around the mean effect that is predicted when each perturbation is left out."""

    def predict(self, name: str) -> np.ndarray | None:
        """The effect `[G]` float32 of a perturbation; None where it has no features."""
        if name not in self.vectors:
            return None
        unit = _units((np.asarray(self.vectors[name], dtype=np.float64).ravel()[None, :] - self.centre) / self.spread)
        return (self.mean + (unit @ self.units.T @ self.weights)[0]).astype(np.float32)


def fit_features(effects: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray]) -> FeatureModel | None:
    """A model of the `effects [G]` of perturbations that have `features [D]`; None where it would not beat the mean effect."""
    names = [name for name in effects if name in features]
    if len(names) < LEAST_PERTURBATIONS:
        return None
    inputs = np.stack([np.asarray(features[name], dtype=np.float64).ravel() for name in names])
    targets = np.stack([np.asarray(effects[name], dtype=np.float64) for name in names])
    centre, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread[spread == 0] = 1.0
    units = _units((inputs - centre) / spread)
    mean = targets.mean(axis=0)
    values, vectors = np.linalg.eigh(units @ units.T)
    projected = vectors.T @ (targets - mean)
    errors = [_left_out_error(values, vectors, projected, targets - mean, penalty) for penalty in PENALTIES]
    nothing = _mean_left_out_error(targets - mean)
    best = int(np.argmin(errors))
    if errors[best] >= nothing:
        return None
    weights = vectors @ (projected / (values + PENALTIES[best])[:, None])
    return FeatureModel(features, centre, spread, units, weights, mean, 1.0 - errors[best] / nothing)


def _units(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def _left_out_error(
    values: np.ndarray, vectors: np.ndarray, projected: np.ndarray, targets: np.ndarray, penalty: float
) -> float:
    """Sum of squared errors, each perturbation left out of regression and mean; from the kernel's eigenvectors."""
    shrink = np.maximum(values, 0.0) / (np.maximum(values, 0.0) + penalty)
    leverage = (vectors**2) @ shrink + 1.0 / len(vectors)
    residual = targets - vectors @ (projected * shrink[:, None])
    return float(((residual / np.maximum(1.0 - leverage, 1e-6)[:, None]) ** 2).sum())


def _mean_left_out_error(centred: np.ndarray) -> float:
    """The same of the mean effect alone."""
    return float((centred**2).sum()) * (len(centred) / (len(centred) - 1)) ** 2
