"""What is known of a metric, in one frozen entry (`catalog` holds them)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from steval.data.cells.scale import Scale
from steval.errors import ConfigError

if TYPE_CHECKING:
    from steval.evaluator.metrics.functions import Value

Family = Literal["de", "anndata"]
Best = Literal["high", "low", "none"]
Kind = Literal["bulk", "discrimination", "edistance", "clustering", "overlap", "significant", "auc", "counts"]
Range = tuple[float | None, float | None]

SHARE: Range = (0.0, 1.0)
CORRELATION: Range = (-1.0, 1.0)
POSITIVE: Range = (0.0, None)

GOOD: Mapping[Best, str] = MappingProxyType(
    {"high": "high is good", "low": "low is good", "none": "neither high nor low is good in itself"}
)
ARROWS: Mapping[str, str] = MappingProxyType({"high": "↑", "low": "↓", "none": ""})
"""Beside a metric's name: the better direction."""


@dataclass(frozen=True)
class Metric:
    """One entry of the catalog."""

    name: str
    function: "Callable[[dict[str, Any], Any], Value]"
    """Its value for each perturbation, or one over all, of its options and what was measured (`Inputs` or `CountInputs`)."""
    family: Family
    """`de`: computed from differential expression tables; `anndata`: from the cells."""
    kind: Kind
    """Metrics of a kind read the same and cost the same."""
    description: str
    best: Best
    """Whether high or low values are good; `none` has no best value and is no member of a score."""
    bounds: Range
    """Smallest and largest value it can have; None: no bound."""
    undefined: str = "the value is not defined"
    """Why a perturbation may have no value."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options with their defaults, named as in cell-eval."""
    free_options: bool = False
    """Whether it takes further options, which go to the distance."""
    over_all: bool = False
    """One value is computed over all perturbations and repeated for each, so their rows cannot be resampled."""
    corrected: bool = False
    """Whether cell-eval's ceiling carries it from half to full depth by Spearman–Brown (its `SB_METRICS`)."""
    shown: int | None = None
    """Its place among the metrics that get a panel in the report before others; None: after them."""
    parts: tuple[str, ...] = ()
    """Where it gives several numbers: their names, which are appended to its own in the results."""
    scale: Scale = "lognorm"
    """The scale of the cells that it is computed on."""
    member_limits: Range = (None, None)
    """On counts: what its member is kept within; a missing value counts as the lower one, else as the metric's value 0."""
    ratio: tuple[str, str] | None = None
    """Where it is a ratio of two metrics' sums over perturbations: their names."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns in the results."""
        return tuple(f"{self.name}_{part}" for part in self.parts) or (self.name,)

    @property
    def limits(self) -> str:
        """For readers: which values it can have."""
        low, high = self.bounds
        return f"{low:g} to {high:g}" if high is not None else f"{low:g} up" if low is not None else "any number"

    @property
    def sentence(self) -> str:
        """For readers: what it is, which values it can have, which are good."""
        limits = self.limits if self.bounds[0] is None else f"from {self.limits}"
        return f"{self.description}; {limits}, {GOOD[self.best]}."

    def as_dict(self) -> dict[str, Any]:
        """What readers need, as plain JSON types."""
        bounds = dict(zip(("low", "high"), self.bounds, strict=True))
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()}
        named = {name: getattr(self, name) for name in ("name", "family", "description", "best", "undefined")}
        return {**named, "bounds": bounds, "options": options}

    def resolved(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Its options with `options` put over the defaults; an unknown one is a `ConfigError`."""
        unknown = sorted(set(options or {}) - set(self.options))
        if unknown and not self.free_options:
            allowed = ", ".join(self.options) or "(none)"
            raise ConfigError(f"metric {self.name} has no option {', '.join(unknown)}; its options are: {allowed}")
        return {**self.options, **(options or {})}
