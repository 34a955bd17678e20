"""Profiles: named lists of metrics, as in cell-eval 0.8.2.

    resolve("vcc") -> (Metric, ...)     resolve(["mae", "pr_auc"]) -> (Metric, ...)

Order: metrics of family `de` first, then `anndata`, each in the profile's order: the column order of cell-eval's tables.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from steval.errors import ConfigError, nearest_names
from steval.evaluator.metrics.catalog import CATALOG, Metric, find_metric

Profile = Literal["full", "vcc", "minimal", "de", "anndata", "pds"]

PROFILES: dict[str, tuple[str, ...]] = {
    "full": tuple(CATALOG),
    "vcc": ("mae", "discrimination_score_l1", "overlap_at_N"),
    "minimal": (
        "pearson_delta",
        "mse",
        "mae",
        "discrimination_score_l1",
        "overlap_at_N",
        "precision_at_N",
        "de_nsig_counts",
    ),
    "de": tuple(name for name, metric in CATALOG.items() if metric.family == "de"),
    "anndata": tuple(name for name, metric in CATALOG.items() if metric.family == "anndata"),
    "pds": ("discrimination_score_l1",),
}
assert set(PROFILES) == set(get_args(Profile))


def resolve(metrics: str | Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of a profile, of one metric's name or of a list of names, in the order of the result's columns."""
    if isinstance(metrics, str):
        if metrics in PROFILES:
            names: Sequence[str] = PROFILES[metrics]
        elif metrics in CATALOG:
            names = (metrics,)
        else:
            near = nearest_names(metrics, [*PROFILES, *CATALOG])
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise ConfigError(f"there is no profile {metrics!r}; profiles are {', '.join(PROFILES)}{hint}")
    else:
        names = tuple(dict.fromkeys(metrics))
    if not names:
        raise ConfigError("no metric was asked for; give a profile or at least one name")
    found = [find_metric(name) for name in names]
    return tuple(sorted(found, key=lambda metric: metric.family == "anndata"))
