"""How predictions are scored: one set of options for the command line, Python, batches and the service."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from steval.limits import Seed
from steval.settings import Settings

IntegrityLevel = Literal["none", "basic", "full"]
MOST_DRAWS = 100_000
"""Resamples: their results are held beside each other."""
MOST_SPLITS = 1000


class ScoreChoice(Settings):
    """What is scored; the part of the options that a service lets its clients choose."""

    profile: str = "vcc"
    """A named list of metrics; or the name of one metric."""
    metrics_only: bool = False
    """No baselines, no intervals and no integrity checks."""
    seed: Seed = 0
    """Of every random choice: resamples, splits, what simple models draw."""


class ScoreSettings(ScoreChoice):
    """Every option of scoring that changes a result."""

    metrics: tuple[str, ...] | None = None
    """Names of metrics in place of a profile."""
    metric_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of single metrics, named as in cell-eval."""
    ceiling: bool = False
    """Add the replicate ceiling."""
    integrity: IntegrityLevel = "basic"
    """`full`: also the checks that score again."""
    by: Literal["cell_type", "context"] | None = None
    """Score each cell type (or context) apart; the headline is their mean. `vcc2026` does so by itself where both sides have
    the obs column `context`."""
    bootstrap: int = Field(default=1000, le=MOST_DRAWS)
    """Resamples of the perturbations for intervals; 0: no intervals."""
    splits: int = Field(default=3, le=MOST_SPLITS)
    """Splits of the replicate ceiling."""

    @property
    def chosen(self) -> str | tuple[str, ...]:
        """The profile, or the metrics in its place."""
        return self.metrics or self.profile

    def record(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Plain JSON types of what is done after all: `metrics` by name, and nothing beside them where `metrics_only`.

        The seed is on record elsewhere.
        """
        nothing = {"integrity": "none", "bootstrap": 0} if self.metrics_only else {}
        profile = None if self.metrics else self.profile
        values = self.model_dump(mode="json", exclude={"seed"})
        return {**values, "profile": profile, "metrics": list(metrics), **nothing}

    @field_validator("by", mode="before")
    @classmethod
    def _known_grouping(cls, value: Any) -> Any:
        if value not in (None, "cell_type", "context"):
            raise ValueError("cells are scored together (None) or by 'cell_type' or 'context'")
        return value

    @field_validator("integrity", mode="before")
    @classmethod
    def _known_level(cls, value: Any) -> Any:
        if value not in get_args(IntegrityLevel):
            raise ValueError("'basic', 'full' or 'none'")
        return value

    @field_validator("bootstrap")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("a number of resamples, 0 or more")
        return value

    @field_validator("splits")
    @classmethod
    def _one_or_more(cls, value: int) -> int:
        if value < 1:
            raise ValueError("at least 1 split of the real cells")
        return value
