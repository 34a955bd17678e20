"""Metrics on differential expression; each a pure function of a `DEComparison` with cell-eval 0.8.2's values.

Significant: FDR under the threshold (float32, as cell-eval compares). Best value 1 throughout; counts have none.
A perturbation that a metric leaves out (cell-eval does where nothing is significant) is missing from its dictionary.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from steval.errors import ConfigError

if TYPE_CHECKING:
    from steval.evaluator.measure.de_tables import DEComparison, DETable

PerPerturbation = dict[str, float]
SORT_COLUMNS = ("log2_fold_change", "abs_log2_fold_change", "p_value", "fdr")


def overlap(data: "DEComparison", k: int | None, metric: str, sort_by: str, fdr_threshold: float) -> PerPerturbation:
    """|top real ∩ top predicted| / depth, both lists cut at that depth; 0 where there is none; 0 to 1.

    Depth is k, at most the number of significant real (overlap) or predicted (precision) genes; without k, all of them.
    """
    if sort_by not in SORT_COLUMNS:
        raise ConfigError(f"sort_by must be one of {', '.join(SORT_COLUMNS)}, got {sort_by!r}")
    if metric not in ("overlap", "precision"):
        raise ConfigError(f"metric must be overlap or precision, got {metric!r}")
    masks = [table.significant(fdr_threshold) for table in (data.real, data.pred)]
    if not masks[0].any() or not masks[1].any():
        return dict.fromkeys(data.perturbations, 0.0)
    result = {}
    for row, name in enumerate(data.perturbations):
        real = _ranked(data.real, masks[0], row, sort_by)
        pred = _ranked(data.pred, masks[1], row, sort_by)
        available = len(real) if metric == "overlap" else len(pred)
        depth = min(k or available, available)
        shared = np.intersect1d(real[:depth], pred[:depth], assume_unique=True)
        result[name] = len(shared) / depth if depth else 0.0
    return result


def _ranked(table: "DETable", mask: np.ndarray, row: int, sort_by: str) -> np.ndarray:
    """Significant genes of one perturbation, best first; ties in the table's order, NaN counts as largest."""
    genes = np.flatnonzero(mask[row])
    if table.order is not None:
        genes = genes[np.argsort(table.order[row, genes], kind="stable")]
    values = table.column(sort_by)[row, genes]
    if sort_by in ("log2_fold_change", "abs_log2_fold_change"):
        return genes[np.lexsort((-values, ~np.isnan(values)))]
    return genes[np.argsort(values, kind="stable")]


def spearman_of_counts(data: "DEComparison", fdr_threshold: float) -> float:
    """Spearman correlation of the numbers of significant genes, over perturbations with any real one; 1 where there are none."""
    real, pred = (table.significant(fdr_threshold).sum(axis=1) for table in (data.real, data.pred))
    some = real > 0
    return _spearman(real[some], pred[some]) if some.any() else 1.0


def direction_match(data: "DEComparison", fdr_threshold: float) -> PerPerturbation:
    """Share of the real significant genes, present in the prediction, whose fold changes have the same sign; 0 to 1."""
    mask = data.real.significant(fdr_threshold)
    if data.pred.present is not None:
        mask &= data.pred.present
    signs = [np.sign(table.log2_fold_change) for table in (data.real, data.pred)]
    same = (signs[0] == signs[1]) | (np.isnan(signs[0]) & np.isnan(signs[1]))
    return {name: float(same[row, mask[row]].mean()) for row, name in enumerate(data.perturbations) if mask[row].any()}


def spearman_of_changes(data: "DEComparison", fdr_threshold: float) -> PerPerturbation:
    """Spearman correlation of log2 fold changes over the real significant genes, −1 to 1; 0 stands for absent genes."""
    mask = data.real.significant(fdr_threshold)
    predicted = data.pred.log2_fold_change
    if data.pred.present is not None:
        predicted = np.where(data.pred.present, predicted, np.float32(0))
    return {
        name: _spearman(data.real.log2_fold_change[row, mask[row]], predicted[row, mask[row]])
        for row, name in enumerate(data.perturbations)
        if mask[row].any()
    }


def recall(data: "DEComparison", fdr_threshold: float) -> PerPerturbation:
    """Share of the real significant genes that are significant in the prediction; 0 to 1."""
    real, pred = (table.significant(fdr_threshold) for table in (data.real, data.pred))
    expected, found = real.sum(axis=1), (real & pred).sum(axis=1)
    return {name: float(found[row] / expected[row]) for row, name in enumerate(data.perturbations) if expected[row]}


def significant_counts(data: "DEComparison", fdr_threshold: float) -> dict[str, dict[str, int]]:
    """Numbers of significant genes, real and predicted."""
    real, pred = (table.significant(fdr_threshold).sum(axis=1) for table in (data.real, data.pred))
    return {name: {"real": int(real[row]), "pred": int(pred[row])} for row, name in enumerate(data.perturbations)}


def area_under_curve(data: "DEComparison", method: Literal["pr", "roc"]) -> PerPerturbation:
    """Average precision or ROC area of −log10 predicted FDR for real significance (FDR < 0.05); 0 to 1.

    NaN where all or none of the genes are significant.
    """
    from sklearn.metrics import auc, average_precision_score, roc_curve

    result = {}
    for row, name in enumerate(data.perturbations):
        real = slice(None) if data.real.present is None else data.real.present[row]
        labels = data.real.significant(0.05)[row, real].astype(np.float32)
        if not 0 < labels.sum() < len(labels):
            result[name] = float("nan")
            continue
        scores = _evidence(data.pred, row)[real]
        if method == "pr":
            result[name] = float(average_precision_score(labels, scores))
        else:
            false_rate, true_rate, _ = roc_curve(labels, scores)
            result[name] = float(auc(false_rate, true_rate))
    return result


def _evidence(table: "DETable", row: int) -> np.ndarray:
    """−log10 of the FDR, kept from 1e-10 to 1, in polars' float32 (whose ties decide the area); absent genes have FDR 1."""
    fdr = pl.Series(table.fdr[row])
    if table.present is not None:
        fdr = pl.select(pl.when(pl.Series(table.present[row])).then(fdr).otherwise(None)).to_series()
    frame = fdr.to_frame("fdr").with_columns(pl.col("fdr").fill_null(1.0).clip(1e-10, 1.0))
    return frame.select(-pl.col("fdr").log10()).to_series().to_numpy()


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    frame = pl.DataFrame({"first": first.astype(np.float64), "second": second.astype(np.float64)})
    value = frame.select(pl.corr("first", "second", method="spearman")).item()
    return float("nan") if value is None else float(value)
