"""From what was read of both sides to the value of a metric: one dispatch over the catalog's kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from steval.errors import EvaluationError, StevalError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import CellSide
from steval.evaluator.measure.de_tables import DEComparison
from steval.evaluator.measure.distances import ControlDistances, generic_energies
from steval.evaluator.measure.scan import SideTables
from steval.evaluator.metrics import de as de_metrics
from steval.evaluator.metrics.bulk import BULK_METRICS, pearson
from steval.evaluator.metrics.catalog import Metric
from steval.evaluator.metrics.clustering import clustering_agreement
from steval.evaluator.metrics.discrimination import discrimination_scores

Which = Literal["pred", "real"]
Value = float | dict[str, float] | dict[str, dict[str, int]]

METRIC_ERRORS = (StevalError, ValueError, TypeError, KeyError, IndexError, ArithmeticError, RuntimeError, MemoryError)
"""What may go wrong inside one metric without ending the others."""


@dataclass(frozen=True)
class Inputs:
    """Everything metrics read; pure functions of it."""

    pair: Pair
    pred: SideTables
    real: SideTables
    de: DEComparison | None
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
                [side.embedding(embed_key, name).mean(axis=0, dtype=np.float64) for name in side.groups]
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


def compute(metric: Metric, options: Mapping[str, Any], inputs: Inputs) -> Value:
    """The metric's value for each perturbation, or one value over all; raises where it cannot be computed."""
    return _COMPUTE[metric.kind](metric, dict(options), inputs)


def _bulk(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    function, of_change = BULK_METRICS[metric.name]
    key = options["embed_key"]
    if of_change:
        pred, real = inputs.effects("pred", key), inputs.effects("real", key)
    else:
        pred, real = (inputs.without_control(inputs.means(which, key)) for which in ("pred", "real"))
    return {name: function(pred[row], real[row]) for row, name in enumerate(inputs.pair.perturbations)}


def _discrimination(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    distance = options["metric"]
    key = None if distance in ("l1", "manhattan", "cityblock") else options["embed_key"]
    features = inputs.pair.genes if options["exclude_target_gene"] and not key else None
    real, pred = inputs.effects("real", key), inputs.effects("pred", key)
    return discrimination_scores(real, pred, inputs.pair.perturbations, features, distance)


def _edistance(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    key, distance = options.pop("embed_key"), options.pop("metric")
    options.pop("n_jobs", None)
    energies = [_energies(inputs, which, key, distance, options) for which in ("real", "pred")]
    return pearson(energies[0], energies[1])


def _energies(inputs: Inputs, which: Which, key: str | None, distance: str, options: dict[str, Any]) -> np.ndarray:
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


def _cells(side: CellSide, name: str, key: str | None) -> Any:
    return side.matrix(name) if key is None else side.embedding(key, name)


def _clustering(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    key = options.pop("embed_key")
    real, pred = (inputs.without_control(inputs.means(which, key, precise=True)) for which in ("real", "pred"))
    if len(real) < 3:
        raise EvaluationError(f"clusters need at least three perturbations, there are {len(real)}")
    return clustering_agreement(real, pred, inputs.pair.perturbations, options)


def _overlap(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    chosen = options.pop("sort_by")
    sort_by = getattr(chosen, "value", chosen)  # cell-eval has an enumeration here
    return de_metrics.overlap(_de(inputs), sort_by=sort_by, **options)


def _significant(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    functions: dict[str, Callable[..., Value]] = {
        "de_spearman_sig": de_metrics.spearman_of_counts,
        "de_direction_match": de_metrics.direction_match,
        "de_spearman_lfc_sig": de_metrics.spearman_of_changes,
        "de_sig_genes_recall": de_metrics.recall,
        "de_nsig_counts": de_metrics.significant_counts,
    }
    return functions[metric.name](_de(inputs), **options)


def _auc(metric: Metric, options: dict[str, Any], inputs: Inputs) -> Value:
    return de_metrics.area_under_curve(_de(inputs), "pr" if metric.name == "pr_auc" else "roc")


def _de(inputs: Inputs) -> DEComparison:
    if inputs.de is None:
        raise EvaluationError("differential expression was not computed")
    return inputs.de


_COMPUTE: dict[str, Callable[[Metric, dict[str, Any], Inputs], Value]] = {
    "bulk": _bulk,
    "discrimination": _discrimination,
    "edistance": _edistance,
    "clustering": _clustering,
    "overlap": _overlap,
    "significant": _significant,
    "auc": _auc,
}
