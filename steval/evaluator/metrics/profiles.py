"""Profiles: named lists of metrics on cells of one scale. A new profile is an entry in `PROFILES`.

    resolve("vcc") -> (Metric, ...)     resolve(["mae", "pr_auc"]) -> (Metric, ...)

Order: metrics of family `de` first, then `anndata`, each in the profile's order: the column order of cell-eval's tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from steval.errors import ConfigError, nearest_names

if TYPE_CHECKING:  # help lists the profiles, and is to be quick
    from steval.data.cells.scale import Scale
    from steval.evaluator.metrics.metric import Metric


@dataclass(frozen=True)
class Profile:
    """A named list of metrics."""

    name: str
    sentence: str
    """For readers: what it is for."""
    metrics: tuple[str, ...] = ()
    families: tuple[Literal["de", "anndata"], ...] = ()
    """In place of `metrics`: all metrics of these families."""
    scale: "Scale" = "lognorm"
    """The scale of the cells that it scores."""
    context: str | None = None
    """The obs column whose groups it scores apart wherever both sides have it."""


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
    Profile(
        "vcc2026",
        "The six members of the Virtual Cell Challenge of 2026 and what explains them; on counts, context by context.",
        (
            "pds_cosine",
            "expr_mse_unbiased_capped_norm",
            "de_wilcoxon_direction_fidelity_yield_raw",
            "de_wilcoxon_direction_reach_raw",
            "de_wilcoxon_sig_jaccard",
            "de_wilcoxon_lfc_nmae",
            "expr_mse_unbiased",
            "expr_mse_unbiased_capped",
            "expr_distance_unbiased",
            "expr_real_mass_ratio",
        ),
        scale="counts",
        context="context",
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
    of_families = (
        name for name, metric in CATALOG.items() if metric.family in profile.families and metric.scale == profile.scale
    )
    return profile.metrics or tuple(of_families)


def scored_scale(metrics: str | Sequence[str]) -> "Scale":
    """The scale of the cells that a profile, or metrics by name, are computed on."""
    if isinstance(metrics, str) and metrics in PROFILES:
        return PROFILES[metrics].scale
    return resolve(metrics)[0].scale


def takers(scale: "Scale") -> str:
    """For messages: the profiles that score cells on `scale`; empty where none does."""
    return ", ".join(name for name, profile in PROFILES.items() if profile.scale == scale)


def context_column(metrics: str | Sequence[str]) -> str | None:
    """The obs column whose groups a profile scores apart; None for all others and for metrics by name."""
    return PROFILES[metrics].context if isinstance(metrics, str) and metrics in PROFILES else None


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
    if len({metric.scale for metric in found}) > 1:
        on = {scale: [m.name for m in found if m.scale == scale] for scale in ("lognorm", "counts")}
        raise ConfigError(
            f"{', '.join(on['lognorm'])} are computed on lognorm, {', '.join(on['counts'])} on counts; score them in two runs"
        )
    return tuple(sorted(found, key=lambda metric: metric.family == "anndata"))
