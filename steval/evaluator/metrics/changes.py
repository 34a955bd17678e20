"""Differential expression of both sides, cut down to what a report shows."""

import numpy as np
import polars as pl

from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.evaluation import Evaluation
from steval.evaluator.schemas import CHANGE_SCHEMA, DE_COUNT_SCHEMA

SIGNIFICANT_FDR = 0.05
KEPT_PERTURBATIONS = 100
KEPT_GENES = 200
"""Genes kept of each perturbation: those with the largest change on either side."""


def spread(number: int, most: int) -> np.ndarray:
    """Places of at most `most` of `number` things, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int))


def de_counts(evaluation: Evaluation) -> pl.DataFrame:
    """Numbers of significant genes (FDR < 0.05) on each side and on both, by perturbation."""
    if evaluation.de_real is None or evaluation.de_pred is None:
        return pl.DataFrame(schema=DE_COUNT_SCHEMA)
    joined = _joined(evaluation.de_real, evaluation.de_pred)
    real, pred = pl.col("real_fdr") < SIGNIFICANT_FDR, pl.col("pred_fdr") < SIGNIFICANT_FDR
    counts = joined.group_by("perturbation").agg(
        num_real=real.sum(), num_pred=pred.sum(), num_shared=(real & pred).sum()
    )
    return counts.sort("perturbation").select([pl.col(name).cast(kind) for name, kind in DE_COUNT_SCHEMA.items()])


def shown_changes(pair: Pair, evaluation: Evaluation) -> pl.DataFrame:
    """Real and predicted change of mean lognorm expression of the most changed genes of each perturbation.

    The largest real effect comes first; of more than `KEPT_PERTURBATIONS`, those that are spread evenly over its size.
    """
    real, pred = evaluation.pseudobulk_real, evaluation.pseudobulk_pred
    if real is None or pred is None:
        return pl.DataFrame(schema=CHANGE_SCHEMA)
    control = real.names.index(pair.control)
    names = [name for name in real.names if name != pair.control]
    rows = [real.names.index(name) for name in names]
    real_change = real.values[rows] - real.values[control]
    pred_change = pred.values[rows] - pred.values[control]
    order = np.argsort(-np.abs(real_change).sum(axis=1), kind="stable")
    picked = order[spread(len(order), KEPT_PERTURBATIONS)]
    genes = np.array(pair.genes)
    frames = []
    for index in picked:
        size = np.maximum(np.abs(real_change[index]), np.abs(pred_change[index]))
        kept = np.sort(np.argsort(-size, kind="stable")[:KEPT_GENES])
        frames.append(
            pl.DataFrame(
                {
                    "perturbation": [names[index]] * len(kept),
                    "gene": genes[kept].tolist(),
                    "real_change": real_change[index, kept],
                    "pred_change": pred_change[index, kept],
                }
            )
        )
    return _with_fdr(pl.concat(frames), evaluation).select([pl.col(c).cast(t) for c, t in CHANGE_SCHEMA.items()])


def _with_fdr(frame: pl.DataFrame, evaluation: Evaluation) -> pl.DataFrame:
    if evaluation.de_real is None or evaluation.de_pred is None:
        return frame.with_columns(pl.lit(None).alias("real_fdr"), pl.lit(None).alias("pred_fdr"))
    shown = frame["perturbation"].unique()
    tables = [
        table.filter(pl.col("target").cast(pl.String).is_in(shown.implode()))
        for table in (evaluation.de_real, evaluation.de_pred)
    ]
    return frame.join(_joined(*tables), on=["perturbation", "gene"], how="left")


def _joined(real: pl.DataFrame, pred: pl.DataFrame) -> pl.DataFrame:
    sides = [
        table.select(
            pl.col("target").cast(pl.String).alias("perturbation"),
            pl.col("feature").cast(pl.String).alias("gene"),
            pl.col("fdr").cast(pl.Float64).alias(f"{name}_fdr"),
        )
        for table, name in ((real, "real"), (pred, "pred"))
    ]
    return sides[0].join(sides[1], on=["perturbation", "gene"], how="left")
