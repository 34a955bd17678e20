"""Metrics of a pair: what scoring computes and hands to tables, baselines and reports.

    evaluation = evaluate(pair, "vcc")                      # or a list of metric names
    evaluation.results      pl.DataFrame: `perturbation` + one column per metric, cell-eval's row and column order;
                            null: cell-eval leaves the value out (e.g. no significant gene); NaN: undefined or failed
    evaluation.failures     pl.DataFrame (perturbation | null, metric, reason): why a value is null or NaN
    evaluation.de_real, .de_pred      pl.DataFrame with pdex's columns, or None where no metric needs DE
    evaluation.pseudobulk_real, .pseudobulk_pred   Pseudobulk(names, values [P+1, G]), control included, or None
    evaluation.timings      dict stage -> seconds;  evaluation.notes  tuple of sentences

Nothing else is promised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steval.evaluator.pair import Pair
from steval.evaluator.profiles import resolve

FAILURE_SCHEMA = {"perturbation": pl.String, "metric": pl.String, "reason": pl.String}


@dataclass(frozen=True)
class Pseudobulk:
    """Mean lognorm expression of each perturbation and of the control."""

    names: tuple[str, ...]
    """Sorted; the control is among them."""
    values: np.ndarray
    """`[P+1, G]`, rows as `names`."""


@dataclass(frozen=True)
class Evaluation:
    """Results of one pair; see the module."""

    results: pl.DataFrame
    failures: pl.DataFrame
    de_real: pl.DataFrame | None
    de_pred: pl.DataFrame | None
    pseudobulk_real: Pseudobulk | None
    pseudobulk_pred: Pseudobulk | None
    timings: dict[str, float]
    notes: tuple[str, ...]


def evaluate(
    pair: Pair,
    metrics: str | Sequence[str] = "full",
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    de_real: pl.DataFrame | None = None,
    de_pred: pl.DataFrame | None = None,
    cache: Path | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Compute `metrics` of `pair`.

    `options`: per metric, named as in cell-eval; `de_real`, `de_pred`: DE tables computed elsewhere (pdex's columns);
    `cache`: directory that keeps what depends on the real side alone; `threads`: default all cores.
    """
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp
    from cell_eval import MetricPipeline, PerturbationAnndataPair, initialize_de_comparison
    from pdex import pdex

    def whole(side):
        parts = [(name, side.matrix(name)) for name in side.groups]
        labels = np.repeat([name for name, _ in parts], [matrix.shape[0] for _, matrix in parts])
        obs = pd.DataFrame({"p": labels}, index=[str(i) for i in range(len(labels))])
        return ad.AnnData(
            sp.csr_matrix(sp.vstack([m for _, m in parts])), obs=obs, var=pd.DataFrame(index=list(pair.genes))
        )

    chosen = resolve(metrics)
    real, pred = whole(pair.real), whole(pair.pred)
    needs_de = any(metric.family == "de" for metric in chosen)
    if needs_de:
        arguments = {"groupby": "p", "reference": pair.control, "is_log1p": True, "epsilon": 0.0}
        de_real = de_real if de_real is not None else pdex(real, mode="ref", **arguments)
        de_pred = de_pred if de_pred is not None else pdex(pred, mode="ref", **arguments)
    anndata_pair = PerturbationAnndataPair(real=real, pred=pred, pert_col="p", control_pert=pair.control)
    pipeline = MetricPipeline(profile=None, metric_configs={k: dict(v) for k, v in (options or {}).items()})
    pipeline.add_metrics([metric.name for metric in chosen])
    pipeline.compute_de_metrics(initialize_de_comparison(real=de_real, pred=de_pred) if needs_de else None)
    pipeline.compute_anndata_metrics(anndata_pair)
    anndata_pair._initialize_bulk_arrays(None)
    bulks = [
        Pseudobulk(tuple(b["_default"][0]), b["_default"][1]) for b in (anndata_pair.bulk_real, anndata_pair.bulk_pred)
    ]
    return Evaluation(
        results=pipeline.get_results(),
        failures=pl.DataFrame(schema=FAILURE_SCHEMA),
        de_real=de_real if needs_de else None,
        de_pred=de_pred if needs_de else None,
        pseudobulk_real=bulks[0],
        pseudobulk_pred=bulks[1],
        timings={},
        notes=pair.notes,
    )
