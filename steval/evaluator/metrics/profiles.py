"""Profiles: named lists of metrics on cells of one scale. A new profile is an entry in `PROFILES`.

    resolve("vcc") -> (Metric, ...)     resolve(["mae", "pr_auc"]) -> (Metric, ...)

Order: metrics of family `de` first, then `anndata`, each in the profile's order: the column order of cell-eval's tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from steval.data.cells.scale import Scale
from steval.errors import ConfigError, nearest_names

if TYPE_CHECKING:
    from steval.evaluator.metrics.catalog import Metric


@dataclass(frozen=True)
class Profile:
    """A named list of metrics."""

    name: str
    sentence: str
    """For readers: what it is for."""
    metrics: tuple[str, ...] = ()
    families: tuple[Literal["de", "anndata"], ...] = ()
    """In place of `metrics`: all metrics of these families."""
    scale: Scale = "lognorm"
    """The scale of the cells that it scores."""


_ALL = (
    Profile(
        "vcc",
        "The three members of the Virtual Cell Challenge of 2025.",
        ("mae", "discrimination_score_l1", "overlap_at_N"),
    ),
    Profile(
        "minimal",
        "The quick ones of cell-eval.",
        (
            "pearson_delta",
            "mse",
            "mae",
            "discrimination_score_l1",
            "overlap_at_N",
            "precision_at_N",
            "de_nsig_counts",
        ),
    ),
    Profile("full", "Every metric of cell-eval.", families=("de", "anndata")),
    Profile("de", "Every metric on differential expression.", families=("de",)),
    Profile("anndata", "Every metric on the cells themselves.", families=("anndata",)),
    Profile("pds", "The discrimination score alone.", ("discrimination_score_l1",)),
)

PROFILES: Mapping[str, Profile] = MappingProxyType({profile.name: profile for profile in _ALL})
"""Every profile by name, the default first."""

if TYPE_CHECKING:
    ProfileName = str
else:  # a schema lists the names that there are
    ProfileName = Literal[tuple(PROFILES)]


def profile_metrics(name: str) -> tuple[str, ...]:
    """Names of a profile's metrics."""
    from steval.evaluator.metrics.catalog import CATALOG

    profile = PROFILES[name]
    return profile.metrics or tuple(name for name, metric in CATALOG.items() if metric.family in profile.families)


def scored_scale(metrics: str | Sequence[str]) -> Scale:
    """The scale of the cells that a profile, or metrics by name, are computed on."""
    return PROFILES[metrics].scale if isinstance(metrics, str) and metrics in PROFILES else "lognorm"


def resolve(metrics: str | Sequence[str]) -> "tuple[Metric, ...]":
    """The metrics of a profile, of one metric's name or of a list of names, in the order of the result's columns."""
    from steval.evaluator.metrics.catalog import CATALOG, find_metric

    if not isinstance(metrics, str):
        names: Sequence[str] = tuple(dict.fromkeys(metrics))
    elif metrics in PROFILES:
        names = profile_metrics(metrics)
    elif metrics in CATALOG:
        names = (metrics,)
    else:
        near = nearest_names(metrics, [*PROFILES, *CATALOG])
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError(f"there is no profile {metrics!r}; profiles are {', '.join(PROFILES)}{hint}")
    if not names:
        raise ConfigError("no metric was asked for; give a profile or at least one name")
    found = [find_metric(name) for name in names]
    return tuple(sorted(found, key=lambda metric: metric.family == "anndata"))
