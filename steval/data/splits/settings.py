"""Settings of a split: by cells, by contexts, or by cell-load's TOML file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steval.data.splits.toml import SplitTable
from steval.limits import Seed
from steval.settings import Settings

ALL = "all"
"""In place of a list of perturbations: the whole context."""


class _Split(Settings):
    cell_type_key: str | None = None
    """`obs` column that holds the contexts; none: the cell type column."""
    controls: Literal["shared", "split"] = "shared"
    """`shared`: every control cell is an input in every part; `split`: each control cell belongs to one part."""
    seed: Seed = 42
    """Of the draw of cells (`by: cells`, `controls: split`)."""


class CellSplit(_Split):
    """Seeded fractions of the cells of each cell type and perturbation."""

    by: Literal["cells"] = "cells"
    """Seeded fractions of the cells of each cell type and perturbation."""
    val: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of each perturbation's cells."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of each perturbation's cells; 0: no test part."""

    @model_validator(mode="after")
    def _leaves_training(self) -> "CellSplit":
        if self.val + self.test >= 1:
            raise ValueError(
                f"val ({self.val}) and test ({self.test}) leave nothing to train on; their sum must be under 1"
            )
        return self


class _ListedSplit(_Split):
    control_val: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the control cells of each cell type under `controls: split`."""
    control_test: float = Field(default=0.1, ge=0, lt=1)
    """As `control_val`."""


class ContextSplit(_ListedSplit):
    """Perturbations held out by context: `val: {rep_2: [CUL3, IRF1]}`; `all` in place of the list is the whole context."""

    by: Literal["contexts"] = "contexts"
    """Lists of perturbations by context."""
    val: dict[str, tuple[str, ...] | Literal["all"]]
    """Context → perturbations that validate."""
    test: dict[str, tuple[str, ...] | Literal["all"]] = Field(default_factory=dict)
    """Context → perturbations that test; empty: no test part."""

    @model_validator(mode="after")
    def _held_out_once(self) -> "ContextSplit":
        both = [context for context, names in self.val.items() if names == ALL and self.test.get(context) == ALL]
        if both:
            raise ValueError(f"contexts held out as a whole in val and in test: {', '.join(both)}")
        return self


class TomlSplit(_ListedSplit):
    """A split file of cell-load: `[datasets]`, `[training]`, `[zeroshot]`, `[fewshot]`."""

    by: Literal["toml"] = "toml"
    """cell-load's split file."""
    path: str
    """The TOML file."""
    table: SplitTable | None = None
    """Its content; filled in when the data is opened, so that a checkpoint's data reference needs no second file."""
    file_datasets: tuple[str, ...] = ()
    """The data set of each data file, in their order; filled in with `table`."""


Split = CellSplit | ContextSplit | TomlSplit

SplitSettings = Annotated[Split, Field(discriminator="by")]
"""Settings of a split, told apart by `by: cells | contexts | toml`."""


class _Holder(Settings):
    split: SplitSettings


def parse_split(values: Mapping[str, Any]) -> Split:
    """Split settings from plain values, such as `DataReference.split`; a `ConfigError` lists all problems."""
    return _Holder.parse({"split": dict(values)}, source="the split").split
