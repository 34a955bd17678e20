"""The metrics of cell-eval 0.8.2: name, family, description, best value and options; the frozen catalog.

Values follow cell-eval 0.8.2 (MIT licence, Arc Research Institute), which stays the authority: tests hold every metric
against it.
"""

from typing import Any, Literal

from pydantic import Field

from steval.errors import ConfigError, nearest_names
from steval.settings import Settings

Family = Literal["de", "anndata"]
Best = Literal["high", "low", "none"]
Kind = Literal["bulk", "discrimination", "edistance", "clustering", "overlap", "significant", "auc"]

DEPTHS: tuple[int | None, ...] = (None, 50, 100, 200, 500)


class Metric(Settings):
    """One entry of the catalog."""

    name: str
    """Column name in the results (`de_nsig_counts` gives two: `_real` and `_pred`)."""
    family: Family
    """`de`: computed from differential expression tables; `anndata`: from the cells."""
    kind: Kind
    description: str
    best: Best
    """Whether high or low values are good; `none` has no best value and is no member of a score."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options with their defaults, named as in cell-eval."""
    over_all: bool = False
    """Whether one value is computed over all perturbations and repeated for each."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns in the results."""
        return (f"{self.name}_real", f"{self.name}_pred") if self.name == "de_nsig_counts" else (self.name,)

    def resolved(self, options: dict[str, Any] | None) -> dict[str, Any]:
        """Its options with `options` put over the defaults; an unknown one is a `ConfigError`."""
        unknown = sorted(set(options or {}) - set(self.options))
        if unknown and self.kind != "edistance":
            allowed = ", ".join(self.options) or "(none)"
            raise ConfigError(f"metric {self.name} has no option {', '.join(unknown)}; its options are: {allowed}")
        return {**self.options, **(options or {})}


_BULK = {"embed_key": None}
_DISCRIMINATION = {"embed_key": None, "exclude_target_gene": True}
_FDR = {"fdr_threshold": 0.05}
_CLUSTERING = {
    "embed_key": None,
    "real_resolution": 1.0,
    "pred_resolutions": (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0),
    "metric": "ami",
    "n_neighbors": 15,
}


def _bulk(name: str, best: Best, description: str) -> Metric:
    return Metric(name=name, family="anndata", kind="bulk", description=description, best=best, options=_BULK)


def _discrimination(distance: str) -> Metric:
    return Metric(
        name=f"discrimination_score_{distance}",
        family="anndata",
        kind="discrimination",
        description=f"1 − rank/P of the right perturbation among real effects, nearest first by {distance}, target gene left out",
        best="high",
        options={"metric": distance, **_DISCRIMINATION},
    )


def _overlap(kind: str, depth: int | None) -> Metric:
    side = "real" if kind == "overlap" else "predicted"
    top = "all" if depth is None else f"the top {depth}"
    return Metric(
        name=f"{kind}_at_{depth or 'N'}",
        family="de",
        kind="overlap",
        description=f"Share of {top} significant {side} genes (by |log2 fold change|) that the other side's top list holds too",
        best="high",
        options={"k": depth, "metric": kind, "sort_by": "abs_log2_fold_change", **_FDR},
    )


def _significant(name: str, best: Best, description: str, over_all: bool = False) -> Metric:
    return Metric(
        name=name,
        family="de",
        kind="significant",
        description=description,
        best=best,
        options=_FDR,
        over_all=over_all,
    )


def _auc(name: str, description: str) -> Metric:
    return Metric(name=name, family="de", kind="auc", description=description, best="high")


_ALL = (
    _bulk("pearson_delta", "high", "Pearson correlation of predicted and real mean change from control, over genes"),
    _bulk("mse", "low", "Mean squared error of the mean expression, over genes"),
    _bulk("mae", "low", "Mean absolute error of the mean expression, over genes"),
    _bulk("mse_delta", "low", "Mean squared error of the mean change from control, over genes"),
    _bulk("mae_delta", "low", "Mean absolute error of the mean change from control, over genes"),
    *(_discrimination(distance) for distance in ("l1", "l2", "cosine")),
    Metric(
        name="pearson_edistance",
        family="anndata",
        kind="edistance",
        description="Pearson correlation over perturbations of predicted and real energy distance to control",
        best="high",
        options={"embed_key": None, "metric": "euclidean"},
        over_all=True,
    ),
    *(_overlap(kind, depth) for kind in ("overlap", "precision") for depth in DEPTHS),
    _significant("de_spearman_sig", "high", "Spearman correlation of the numbers of significant genes", over_all=True),
    _significant(
        "de_direction_match", "high", "Share of real significant genes whose predicted change has the same sign"
    ),
    _significant(
        "de_spearman_lfc_sig", "high", "Spearman correlation of log2 fold changes over real significant genes"
    ),
    _significant(
        "de_sig_genes_recall", "high", "Share of real significant genes that are significant in the prediction"
    ),
    _significant("de_nsig_counts", "none", "Number of significant genes, real and predicted"),
    _auc("pr_auc", "Average precision of predicted FDR for real significance"),
    _auc("roc_auc", "Area under the ROC curve of predicted FDR for real significance"),
    Metric(
        name="clustering_agreement",
        family="anndata",
        kind="clustering",
        description="Best agreement (adjusted mutual information) of Leiden clusters of real and predicted mean profiles",
        best="high",
        options=_CLUSTERING,
        over_all=True,
    ),
)

CATALOG: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name, in cell-eval's order of registration."""


def find_metric(name: str) -> Metric:
    """The catalog's entry; an unknown name is a `ConfigError` with the nearest ones."""
    if name not in CATALOG:
        near = nearest_names(name, list(CATALOG)) or list(CATALOG)
        raise ConfigError(f"there is no metric {name!r}; nearest: {', '.join(near)}")
    return CATALOG[name]
