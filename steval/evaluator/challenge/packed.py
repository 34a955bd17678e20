"""What packing a submission comes to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Season = Literal[2025, 2026]


@dataclass(frozen=True)
class Submission:
    """What was packed."""

    path: Path
    num_cells: int
    num_genes: int
    num_perturbations: int
    num_bytes: int
    reordered: bool
    """The genes stood in another order than the list and were moved."""
    normalised: bool
    """The predictions were counts and were turned into lognorm at the median of the cells' totals."""
    season: Season = 2025
    num_values: int = 0
    """Values that are stored, none of them 0."""
    contexts: Mapping[str, int] = field(default_factory=dict)
    """Cells of each context; none for a season without contexts."""
