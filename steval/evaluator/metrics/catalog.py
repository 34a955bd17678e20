"""The catalog: all that is known of each metric, in one frozen entry. A new metric is a function and an entry here.

Names, options, best values and order are those of cell-eval 0.8.2, on counts of cell-eval2 0.20.0 (MIT licence, Arc Research
Institute), which stay the authority for values: tests hold every metric against them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from steval.errors import ConfigError, nearest_names
from steval.evaluator.metrics import bulk, de, functions
from steval.evaluator.metrics.count_catalog import COUNT_METRICS
from steval.evaluator.metrics.metric import ARROWS, CORRELATION, POSITIVE, SHARE, Metric, Range

DEPTHS: tuple[int | None, ...] = (None, 50, 100, 200, 500)

_BULK = {"embed_key": None}
_FDR = {"fdr_threshold": 0.05}
_NO_SIGNIFICANT = "no gene is significant in the real data"
_ALL_OR_NONE = "all or none of the genes are significant in the real data"


def _error(name: str, measure: str, function: bulk.BulkFunction, of_change: bool, shown: int | None = None) -> Metric:
    what = "mean change from control" if of_change else "mean expression"
    return Metric(
        name=name,
        function=functions.of_means(function, of_change),
        family="anndata",
        kind="bulk",
        description=f"{measure} of the {what}, over genes",
        best="low",
        bounds=POSITIVE,
        options=_BULK,
        shown=shown,
    )


def _discrimination(distance: str, shown: int | None = None) -> Metric:
    return Metric(
        name=f"discrimination_score_{distance}",
        function=functions.discrimination,
        family="anndata",
        kind="discrimination",
        description=f"1 − rank/P of the right perturbation among real effects, nearest first by {distance}, target gene left out",
        best="high",
        bounds=SHARE,
        options={"metric": distance, "embed_key": None, "exclude_target_gene": True},
        corrected=True,
        shown=shown,
    )


def _overlap(kind: str, depth: int | None, shown: int | None = None) -> Metric:
    side = "real" if kind == "overlap" else "predicted"
    top = "all" if depth is None else f"the top {depth}"
    return Metric(
        name=f"{kind}_at_{depth or 'N'}",
        function=functions.of_de(de.overlap),
        family="de",
        kind="overlap",
        description=f"Share of {top} significant {side} genes (by |log2 fold change|) that the other side's top list holds too",
        best="high",
        bounds=SHARE,
        options={"k": depth, "metric": kind, "sort_by": "abs_log2_fold_change", **_FDR},
        corrected=True,
        shown=shown,
    )


def _significant(name: str, function: Callable[..., Any], description: str, bounds: Range, **facts: Any) -> Metric:
    given: dict[str, Any] = {"best": "high", "options": _FDR, "corrected": True, **facts}
    return Metric(
        name=name,
        function=functions.of_de(function),
        family="de",
        kind="significant",
        description=description,
        bounds=bounds,
        **given,
    )


def _area(name: str, method: Literal["pr", "roc"], description: str, shown: int | None = None) -> Metric:
    return Metric(
        name=name,
        function=functions.of_de(de.area_under_curve, method=method),
        family="de",
        kind="auc",
        description=description,
        best="high",
        bounds=SHARE,
        undefined=_ALL_OR_NONE,
        corrected=True,
        shown=shown,
    )


_ALL = (
    Metric(
        name="pearson_delta",
        function=functions.of_means(bulk.pearson, True),
        family="anndata",
        kind="bulk",
        description="Pearson correlation of predicted and real mean change from control, over genes",
        best="high",
        bounds=CORRELATION,
        undefined="the predicted or the real change from control is the same for all genes",
        options=_BULK,
        corrected=True,
        shown=3,
    ),
    _error("mse", "Mean squared error", bulk.squared_error, False, shown=8),
    _error("mae", "Mean absolute error", bulk.absolute_error, False, shown=0),
    _error("mse_delta", "Mean squared error", bulk.squared_error, True),
    _error("mae_delta", "Mean absolute error", bulk.absolute_error, True),
    _discrimination("l1", shown=1),
    _discrimination("l2"),
    _discrimination("cosine"),
    Metric(
        name="pearson_edistance",
        function=functions.energy_distances,
        family="anndata",
        kind="edistance",
        description="Pearson correlation over perturbations of predicted and real energy distance to control",
        best="high",
        bounds=CORRELATION,
        undefined="the predicted or the real energy distances are all equal",
        options={"embed_key": None, "metric": "euclidean"},
        free_options=True,
        over_all=True,
    ),
    _overlap("overlap", None, shown=2),
    *(_overlap("overlap", depth) for depth in DEPTHS[1:]),
    _overlap("precision", None, shown=4),
    *(_overlap("precision", depth) for depth in DEPTHS[1:]),
    _significant(
        "de_spearman_sig",
        de.spearman_of_counts,
        "Spearman correlation of the numbers of significant genes",
        CORRELATION,
        undefined="fewer than two perturbations have significant genes, or the numbers are all equal",
        over_all=True,
    ),
    _significant(
        "de_direction_match",
        de.direction_match,
        "Share of real significant genes whose predicted change has the same sign",
        SHARE,
        undefined=f"{_NO_SIGNIFICANT}, or none of them is in the predicted DE table",
        shown=5,
    ),
    _significant(
        "de_spearman_lfc_sig",
        de.spearman_of_changes,
        "Spearman correlation of log2 fold changes over real significant genes",
        CORRELATION,
        undefined="fewer than two genes are significant in the real data, or their fold changes are all equal",
        shown=6,
    ),
    _significant(
        "de_sig_genes_recall",
        de.recall,
        "Share of real significant genes that are significant in the prediction",
        SHARE,
        undefined=_NO_SIGNIFICANT,
    ),
    _significant(
        "de_nsig_counts",
        de.significant_counts,
        "Number of significant genes, real and predicted",
        POSITIVE,
        best="none",
        corrected=False,
        parts=("real", "pred"),
    ),
    _area("pr_auc", "pr", "Average precision of predicted FDR for real significance", shown=7),
    _area("roc_auc", "roc", "Area under the ROC curve of predicted FDR for real significance"),
    Metric(
        name="clustering_agreement",
        function=functions.clusters,
        family="anndata",
        kind="clustering",
        description="Best agreement (adjusted mutual information) of Leiden clusters of real and predicted mean profiles",
        best="high",
        bounds=SHARE,
        options={
            "embed_key": None,
            "real_resolution": 1.0,
            "pred_resolutions": (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0),
            "metric": "ami",
            "n_neighbors": 15,
        },
        over_all=True,
    ),
    *COUNT_METRICS,
)

CATALOG: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Every metric by name, in cell-eval's order of registration, those on counts behind."""
BY_COLUMN: Mapping[str, Metric] = MappingProxyType({column: metric for metric in _ALL for column in metric.columns})
"""The metric that a column of the results belongs to."""


def with_arrow(column: str) -> str:
    """A result column's name with the better direction beside it, for readers: `mae ↓`; other names are as they are."""
    metric = BY_COLUMN.get(column)
    return f"{column} {ARROWS[metric.best]}".rstrip() if metric else column


def find_metric(name: str) -> Metric:
    """The catalog's entry; an unknown name is a `ConfigError` with the nearest ones."""
    if name not in CATALOG:
        near = nearest_names(name, list(CATALOG)) or list(CATALOG)
        raise ConfigError(f"there is no metric {name!r}; nearest: {', '.join(near)}")
    return CATALOG[name]
