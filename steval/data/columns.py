"""Which `obs` columns hold the perturbation, the cell type and the batch, and which label is the control."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pydantic import Field

from steval.data.labels import unique_labels
from steval.errors import DataError, nearest_names
from steval.settings import Settings
from steval.wording import listed

DEFAULT_PERTURBATION = "target_gene"
DEFAULT_CONTROL = "non-targeting"
DEFAULT_CELL_TYPE = "cell_type"
DEFAULT_BATCH = "batch"


class Columns(Settings):
    """Resolved column names of one data set."""

    perturbation: str = DEFAULT_PERTURBATION
    """`obs` column with the perturbation of each cell."""
    control: str = DEFAULT_CONTROL
    """Label of the unperturbed cells in the perturbation column."""
    cell_type: str | None = DEFAULT_CELL_TYPE
    """`obs` column with the cell type; none: all cells are of one type."""
    batch: str | None = DEFAULT_BATCH
    """`obs` column with the batch; none: one batch."""
    drop_unlabelled: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether cells without a label in a column that is used are left out; otherwise they are an error."""


class ColumnOptions(Settings):
    """What a user asked for (`--pert-col` and so on); none means: take the default."""

    perturbation: str | None = None
    """`obs` column with the perturbation of each cell."""
    control: str | None = None
    """Label of the unperturbed cells."""
    cell_type: str | None = None
    """`obs` column with the cell type."""
    batch: str | None = None
    """`obs` column with the batch."""
    drop_unlabelled: bool = Field(default=False, exclude_if=lambda value: not value)
    """Leave out cells without a label in a column that is used, in place of refusing them."""


def resolve_columns(
    obs: pd.DataFrame,
    record: Mapping[str, Any] | None = None,
    options: ColumnOptions | None = None,
    checkpoint: Columns | None = None,
    *,
    require_control: bool = True,
    source: str = "the data",
) -> Columns:
    """Column names by the order of defaults: option, checkpoint, the file's own record, built-in.

    `record` is the file's `uns["steval"]` (see `record.read_record`). A perturbation column that is not there, or any
    column that was asked for by option and is not there, is a `DataError` that lists the columns that exist. A cell
    type or batch column known only by default and not there resolves to None. With `require_control` the control
    label must occur.
    """
    options = options or ColumnOptions()
    recorded = dict((record or {}).get("columns") or {})
    from_checkpoint = checkpoint.as_dict() if checkpoint else {}

    def choose(field: str, builtin: str) -> str:
        candidates = (getattr(options, field), from_checkpoint.get(field), recorded.get(field), builtin)
        return next(str(value) for value in candidates if value)

    perturbation = choose("perturbation", DEFAULT_PERTURBATION)
    control = choose("control", DEFAULT_CONTROL)
    optional = {field: choose(field, default) for field, default in _OPTIONAL_DEFAULTS}
    asked = [perturbation, *(value for field in optional if (value := getattr(options, field)))]
    absent = [name for name in asked if name not in obs.columns]
    if absent:
        raise DataError(
            f"{source} has no obs column {', '.join(map(repr, absent))}; its columns are: "
            f"{listed(obs.columns, 30)}. Name the right one with --pert-col, --cell-type-col or --batch-col"
        )
    if require_control:
        _require_label(obs[perturbation], control, perturbation, source)
    present = {field: name if name in obs.columns else None for field, name in optional.items()}
    return Columns(perturbation=perturbation, control=control, drop_unlabelled=options.drop_unlabelled, **present)


_OPTIONAL_DEFAULTS = (("cell_type", DEFAULT_CELL_TYPE), ("batch", DEFAULT_BATCH))


def _require_label(labels: pd.Series, control: str, column: str, source: str) -> None:
    names = unique_labels(labels)
    if control in names:
        return
    near = nearest_names(control, names)
    hint = f"; nearest: {listed(near)}" if near else ""
    shown = listed(names, 8)
    raise DataError(
        f"{source} has no control cells: label {control!r} does not occur in column {column!r} (it holds {shown}{hint}). "
        "Name the control with --control"
    )
