"""Columns of a foreign `obs` under the names that steval gives them."""

import pandas as pd

from steval.data.columns import DEFAULT_BATCH, DEFAULT_CELL_TYPE, Columns
from steval.data.labels import label_codes
from steval.errors import DataError
from steval.wording import counted


def with_standard_columns(
    obs: pd.DataFrame, columns: Columns, cell_type_name: str | None, done: list[str]
) -> tuple[pd.DataFrame, Columns]:
    """`obs` under steval's column names, and these; a column that has such a name already is kept as `NAME_original`.

    `cell_type_name`: cell type of all cells, where no column has it. What was done is added to `done`.
    """
    standard = Columns(control=columns.control)
    aside: dict[str, str] = {}
    names = [
        (columns.perturbation, standard.perturbation),
        (columns.cell_type, DEFAULT_CELL_TYPE),
        (columns.batch, DEFAULT_BATCH),
    ]
    renames = {old: new for old, new in names if old is not None and old != new}
    for old, new in renames.items():
        if new in obs.columns and new not in renames:
            aside[new] = f"{new}_original"
            if aside[new] in obs.columns:
                raise DataError(
                    f"column {old!r} is to become {new!r}, and the column {new!r} of the file {aside[new]!r}, which is there "
                    "already; rename or drop one of them first"
                )
            done.append(f"column {new!r} renamed to {aside[new]!r}")
        done.append(f"column {old!r} renamed to {new!r}")
    frame = obs.rename(columns={**aside, **renames}).copy()
    has_type = columns.cell_type is not None
    if cell_type_name is not None:
        if has_type:
            raise DataError(
                f"--cell-type-name {cell_type_name!r}: the file has cell types in column {columns.cell_type!r} already"
            )
        frame[standard.cell_type] = cell_type_name
        done.append(f"cell type of all cells set to {cell_type_name!r}")
        has_type = True
    for name in (standard.perturbation, standard.cell_type, standard.batch):
        if name in frame:
            names, codes = label_codes(frame[name])
            frame[name] = pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))
            if num_missing := int((codes < 0).sum()):
                done.append(
                    f"{counted(num_missing, 'cell')} without a value in {name!r}: what uses that column will refuse them"
                )
    frame.index = frame.index.astype(str)
    resolved = Columns(
        control=columns.control,
        cell_type=standard.cell_type if has_type else None,
        batch=standard.batch if columns.batch is not None else None,
    )
    return frame, resolved
