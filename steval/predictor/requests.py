"""What is to be predicted: perturbations with cell numbers, a seed, and which control cells they start from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator

from steval.data.columns import Columns
from steval.data.effects.decoding import DecodingChoice
from steval.errors import ConfigError, UnknownPerturbationError
from steval.settings import Settings
from steval.wording import counted

DEFAULT_CELLS = 100
"""Cells per perturbation where a request does not say."""
MOST_CELLS = 10**8
"""Cells of one request in all: days of computing and terabytes of disk. More is a slip of the keyboard."""
LARGEST_SEED = 2**63 - 1
ALL_CELL_TYPES = "all"
"""In place of names: every cell type that there is."""
NumCells = Annotated[int, Field(ge=1, le=MOST_CELLS)]
Output = Literal["cells", "mean"]


@dataclass(frozen=True)
class PredictionVocabulary:
    """What can be asked for: of a checkpoint and its control cells here, or of a service."""

    names: Sequence[str]
    """Perturbations that are known, the control among them."""
    control: str
    cell_types: Sequence[str]
    """Those of the control cells."""
    columns: Columns | None = None
    """Where the training data had its labels."""


class RequestItem(Settings):
    """Cells of one perturbation, all of one cell type (and one batch, where that is given)."""

    perturbation: str = Field(min_length=1)
    num_cells: NumCells = DEFAULT_CELLS
    cell_type: str | None = None
    """None: the request's, else the only one that the controls have."""
    batch: str | None = None
    """Start from control cells of this batch alone. None: the request's, else any."""
    median_umi: PositiveFloat | None = None
    """Median total count of a cell, for counts (VCC's `median_umi_per_cell`). None: as deep as the control cells."""


class PredictionRequest(Settings):
    """Everything that a prediction depends on besides checkpoint and control cells."""

    items: tuple[RequestItem, ...]
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Together with perturbation, cell type, batch and set number it decides which controls a set starts from."""
    cell_type: str | None = None
    batch: str | None = None
    output: Output = "cells"
    """`cells`: every predicted cell; `mean`: one mean profile for each item."""
    decoding: DecodingChoice = "checkpoint"
    """How predictions become cells: as the checkpoint says, as the network puts them out, or carried by control cells."""

    @field_validator("items")
    @classmethod
    def _some(cls, items: tuple[RequestItem, ...]) -> tuple[RequestItem, ...]:
        if not items:
            raise ValueError("name at least one perturbation")
        if (total := sum(item.num_cells for item in items)) > MOST_CELLS:
            raise ValueError(
                f"{counted(total, 'cell')} of {counted(len(items), 'perturbation')}; a request has at most {MOST_CELLS:,} in all"
            )
        return items

    @property
    def num_cells(self) -> int:
        """Cells to predict in all."""
        return sum(item.num_cells for item in self.items)

    def with_limits(self, min_cells: int | None = None, max_cells: int | None = None) -> "PredictionRequest":
        """The request with each item's cell number brought into `[min_cells, max_cells]`."""
        if min_cells is not None and max_cells is not None and min_cells > max_cells:
            raise ConfigError(f"--min-cells {min_cells} is more than --max-cells {max_cells}")
        low, high = min_cells or 1, max_cells or MOST_CELLS
        items = [{**item.model_dump(), "num_cells": min(max(item.num_cells, low), high)} for item in self.items]
        return PredictionRequest.parse({**self.model_dump(), "items": items}, source="the request")


def request_names(
    names: Sequence[str],
    num_cells: int = DEFAULT_CELLS,
    *,
    seed: int = 0,
    cell_types: Sequence[str | None] = (None,),
    batch: str | None = None,
    output: Output = "cells",
) -> PredictionRequest:
    """`num_cells` cells of each of `names`, in each of `cell_types`. Raises `ConfigError` with every problem."""
    items = [
        {"perturbation": name, "num_cells": num_cells, "cell_type": cell_type}
        for cell_type in cell_types
        for name in names
    ]
    require_items(items, "the request")
    values = {"items": items, "seed": seed, "batch": batch, "output": output}
    request = PredictionRequest.parse(values, source="the request")
    require_unique(request.items, "the request")
    return request


def require_items(items: Sequence[object], source: str) -> None:
    """An empty request is a `ConfigError`."""
    if not items:
        raise ConfigError(f"{source} names no perturbation; name at least one, or ask for all known ones with --all")


def require_unique(items: Iterable[RequestItem], source: str) -> None:
    """Each perturbation once per cell type and batch: the same cells twice would look like independent ones."""
    counted = Counter((item.perturbation, item.cell_type, item.batch) for item in items)
    repeated = [key for key, count in counted.items() if count > 1]
    if repeated:
        raise ConfigError(
            f"{source} lists a perturbation more than once; add the cell numbers up, one line each",
            [f"{name!r}" + (f" in {cell_type}" if cell_type else "") for name, cell_type, _ in repeated[:20]],
        )


def split_names(text: str, known: Iterable[str]) -> list[str]:
    """Names of a comma-separated list, where known names may hold commas themselves (drugs with their dose do)."""
    vocabulary = set(known)
    pieces = text.split(",")
    names: list[str] = []
    start = 0
    while start < len(pieces):
        for end in range(min(len(pieces), start + MOST_COMMAS + 1), start, -1):
            name = ",".join(pieces[start:end]).strip()
            if name in vocabulary or end == start + 1:
                names.append(name)
                start = end
                break
    return [name for name in names if name]


MOST_COMMAS = 8
"""Commas that one perturbation's name may hold on the command line."""


def require_known(names: Iterable[str], known: Sequence[str], control: str) -> None:
    """Raise `UnknownPerturbationError` for all of `names` outside `known`, with the nearest names of each."""
    vocabulary = set(known)
    unknown = list(dict.fromkeys(name for name in names if name not in vocabulary))
    if unknown:
        raise UnknownPerturbationError(unknown, [name for name in known if name != control])
