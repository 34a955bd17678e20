"""From what was measured of both sides to the value of a metric: the functions that the catalog's entries hold.

Each takes the metric's options and `Inputs`. What is slow to import (compiled kernels) comes when a value is asked for, so
that the catalog can be read for names and facts alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steval.errors import EvaluationError, StevalError
from steval.evaluator.metrics.bulk import BulkFunction, pearson

if TYPE_CHECKING:
    from steval.evaluator.cells.pair import Pair
    from steval.evaluator.cells.sides import Cells
    from steval.evaluator.measure.de_tables import DEComparison
    from steval.evaluator.measure.scan import SideTables

Which = Literal["pred", "real"]
Value = float | dict[str, float] | dict[str, dict[str, int]]
Options = dict[str, Any]

METRIC_ERRORS = (StevalError, ValueError, TypeError, KeyError, IndexError, ArithmeticError, RuntimeError, MemoryError)
"""What may go wrong inside one metric without ending the others."""


@dataclass(frozen=True)
class Inputs:
    """Everything metrics read; pure functions of it."""

    pair: "Pair"
    pred: "SideTables"
    real: "SideTables"
    de: "DEComparison | None"
    _embedded: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)

    def means(self, which: Which, embed_key: str | None, precise: bool = False) -> np.ndarray:
        """Mean profiles `[P+1, D]`, rows in sorted order of names, of X or of an `obsm` matrix."""
        tables = self.pred if which == "pred" else self.real
        if embed_key is None:
            return tables.means if precise else tables.pseudobulk
        key = (which, embed_key)
        if key not in self._embedded:
            side = self.pair.side(which)
            self._embedded[key] = np.vstack(
                [_embedding(side, embed_key, name).mean(axis=0, dtype=np.float64) for name in side.groups]
            )
        values = self._embedded[key]
        return values if precise else values.astype(np.float32)

    def without_control(self, values: np.ndarray) -> np.ndarray:
        """Rows of the perturbations."""
        return values[[name != self.pair.control for name in self.real.names]]

    def effects(self, which: Which, embed_key: str | None) -> np.ndarray:
        """Mean change from control `[P, D]`."""
        means = self.means(which, embed_key)
        return self.without_control(means) - means[self.real.names.index(self.pair.control)]


def of_means(function: BulkFunction, of_change: bool) -> Callable[[Options, Inputs], Value]:
    """`function` of predicted and real mean expression of each perturbation, or of its change from control."""
    return partial(_of_means, function, of_change)


def _of_means(function: BulkFunction, of_change: bool, options: Options, inputs: Inputs) -> Value:
    key = options["embed_key"]
    if of_change:
        pred, real = inputs.effects("pred", key), inputs.effects("real", key)
    else:
        pred, real = (inputs.without_control(inputs.means(which, key)) for which in ("pred", "real"))
    return {name: function(pred[row], real[row]) for row, name in enumerate(inputs.pair.perturbations)}


def of_de(function: Callable[..., Value], **fixed: Any) -> Callable[[Options, Inputs], Value]:
    """`function` of the compared DE tables and the metric's options."""
    return partial(_of_de, function, fixed)


def _of_de(function: Callable[..., Value], fixed: Options, options: Options, inputs: Inputs) -> Value:
    if inputs.de is None:
        raise EvaluationError("differential expression was not computed")
    plain = {name: getattr(value, "value", value) for name, value in options.items()}  # cell-eval has enumerations here
    return function(inputs.de, **fixed, **plain)


def discrimination(options: Options, inputs: Inputs) -> Value:
    """Rank of the right perturbation; L1 distances stay in gene space whatever the embedding, as in cell-eval."""
    from steval.evaluator.metrics.discrimination import discrimination_scores

    distance = options["metric"]
    key = None if distance in ("l1", "manhattan", "cityblock") else options["embed_key"]
    features = inputs.pair.genes if options["exclude_target_gene"] and not key else None
    real, pred = inputs.effects("real", key), inputs.effects("pred", key)
    return discrimination_scores(real, pred, inputs.pair.perturbations, features, distance)


def energy_distances(options: Options, inputs: Inputs) -> Value:
    """Correlation over perturbations of both sides' energy distances to control."""
    distance = {name: value for name, value in options.items() if name not in ("embed_key", "metric", "n_jobs")}
    energies = [
        _energies(inputs, which, options["embed_key"], options["metric"], distance) for which in ("real", "pred")
    ]
    return pearson(energies[0], energies[1])


def _energies(inputs: Inputs, which: Which, key: str | None, distance: str, options: Options) -> np.ndarray:
    from steval.evaluator.measure.distances import ControlDistances, generic_energies

    tables = inputs.pred if which == "pred" else inputs.real
    plain = distance in ("euclidean", "l2") and not options
    if plain and key is None and tables.energy is not None:
        return tables.energy
    side = inputs.pair.side(which)
    if not plain:
        matrices = {name: _cells(side, name, key) for name in side.groups}
        return generic_energies(matrices, inputs.pair.control, distance, options)
    distances = ControlDistances(_cells(side, inputs.pair.control, key))
    return np.array([distances.energy(_cells(side, name, key)) for name in inputs.pair.perturbations])


def _cells(side: "Cells", name: str, key: str | None) -> Any:
    from steval.evaluator.cells.sides import whole_group

    return whole_group(side, name) if key is None else _embedding(side, key, name)


def _embedding(side: "Cells", key: str, name: str) -> np.ndarray:
    """`obsm[key]` of the cells of `name`, `[n, D]`, every value a finite number."""
    values = side.embedding(key, name)
    if not np.isfinite(values).all():
        raise EvaluationError(f"obsm {key!r} of the {side.name} cells of {name} holds NaN or infinite values")
    return values


def clusters(options: Options, inputs: Inputs) -> Value:
    """Agreement of the clusters of real and predicted mean profiles."""
    from steval.evaluator.metrics.clustering import clustering_agreement

    key = options["embed_key"]
    real, pred = (inputs.without_control(inputs.means(which, key, precise=True)) for which in ("real", "pred"))
    if len(real) < 3:
        raise EvaluationError(f"clusters need at least three perturbations, there are {len(real)}")
    how = {name: value for name, value in options.items() if name != "embed_key"}
    return clustering_agreement(real, pred, inputs.pair.perturbations, how)
