"""The metrics on counts: the six members of the Virtual Cell Challenge of 2026 and the four that explain them.

Names, best values and limits of members are those of cell-eval2 0.20.0 (MIT licence, Arc Research Institute) under `vcc2026`.
"""

from typing import Any

from steval.evaluator.metrics import count_functions as counts
from steval.evaluator.metrics.metric import POSITIVE, SHARE, Metric, Range

ANY: Range = (None, None)
_NO_SIGNIFICANT = "no gene but its own is significant in the real data"


def _metric(name: str, function, description: str, bounds: Range, **facts) -> Metric:  # type: ignore[no-untyped-def]
    given: dict[str, Any] = {"family": "anndata", "best": "none", **facts}
    return Metric(
        name=name, function=function, kind="counts", scale="counts", description=description, bounds=bounds, **given
    )


def _of_genes(name: str, function, description: str, bounds: Range, **facts) -> Metric:  # type: ignore[no-untyped-def]
    given: dict[str, Any] = {"best": "high", "undefined": _NO_SIGNIFICANT, **facts}
    return _metric(f"de_wilcoxon_{name}", function, description, bounds, family="de", **given)


COUNT_METRICS = (
    _of_genes(
        "direction_fidelity_yield_raw",
        counts.fidelity_yield,
        "Genes called significant with the right direction, over the larger of their number and the real one",
        SHARE,
        undefined="no gene but its own is significant in the real or the predicted data",
    ),
    _of_genes(
        "direction_reach_raw",
        counts.reach,
        "How far down the predicted ranking of the real significant genes 90 % of the directions are right, over their number",
        SHARE,
    ),
    _of_genes(
        "sig_jaccard",
        counts.significant_jaccard,
        "Significant genes of both sides over those of either",
        SHARE,
    ),
    _of_genes(
        "lfc_nmae",
        counts.fold_change_error,
        "Mean error of the log2 fold changes of the real significant genes, over their mean size",
        POSITIVE,
        best="low",
        member_limits=(-6.0, None),
        undefined=f"fewer than {counts.FEWEST_GENES} genes but its own are significant in the real data",
    ),
    _metric(
        "pds_cosine",
        counts.discrimination,
        "1 − rank/(P − 1) of the right perturbation among real effects, nearest first by cosine, all target genes left out",
        SHARE,
        best="high",
    ),
    _metric(
        "expr_mse_unbiased_capped_norm",
        counts.relative_error,
        "Sum over perturbations of the capped squared error of profiles, over the sum of the real effects' squared sizes",
        ANY,
        best="low",
        member_limits=(0.0, 1.0),
        over_all=True,
        ratio=("expr_mse_unbiased_capped", "expr_distance_unbiased"),
        undefined="the real effects are no larger than sampling noise",
    ),
    _metric(
        "expr_mse_unbiased",
        counts.squared_error,
        "Mean squared error of the log profile over genes, less the sampling noise of both sides",
        ANY,
        options={"capped": False},
    ),
    _metric(
        "expr_mse_unbiased_capped",
        counts.squared_error,
        "Mean squared error of the log profile over genes, less sampling noise, the predicted one bounded by the real one",
        ANY,
        options={"capped": True},
    ),
    _metric(
        "expr_distance_unbiased",
        counts.effect_size,
        "Mean squared change of the real log profile from the controls' over genes, less sampling noise",
        ANY,
    ),
    _metric(
        "expr_real_mass_ratio",
        counts.mass_ratio,
        "Total of the real log profile, taken back, over the total it was brought to: 1, or 0 without counts",
        POSITIVE,
    ),
)
"""In the order of tables."""
