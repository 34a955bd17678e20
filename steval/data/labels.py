"""Labels of cells as text: the one rule for perturbation, cell type, batch and gene names, the same in every command.

A label is missing where there is no value (NaN, None, NA, no category) or where its text is blank. Any other text is a name,
`nan`, `NA` and `0012` included: nothing is guessed. A cell that lacks a label which is used is refused with the count and the
column, or left out where `drop_unlabelled` says so; where the column is not used, it does not matter.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steval.errors import DataError
from steval.wording import counted

logger = logging.getLogger(__name__)


def label_codes(values: Iterable[Any]) -> tuple[list[str], np.ndarray]:
    """Distinct labels as text, in no particular order, and the position of each value's in them, int64 `[n]`; -1 where missing."""
    series = pd.Series(values)
    if isinstance(series.dtype, pd.CategoricalDtype):
        kept, codes = list(series.cat.categories), series.cat.codes.to_numpy().astype(np.int64)
    else:
        codes, found = pd.factorize(series)
        kept, codes = list(found), codes.astype(np.int64)
    names = [label_text(value) for value in kept]
    known: dict[str, int] = {}
    position = np.array([known.setdefault(name, len(known)) if name.strip() else -1 for name in names] + [-1])
    return list(known), position[codes]


def label_text(value: Any) -> str:
    """One value as text; blank where it is missing."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None or value is pd.NA or value is pd.NaT or value != value else str(value)


def is_labelled(values: Iterable[Any]) -> np.ndarray:
    """bool `[n]`: whether a value is a label."""
    return label_codes(values)[1] >= 0


def unique_labels(values: Iterable[Any]) -> list[str]:
    """The distinct labels, sorted."""
    names, codes = label_codes(values)
    return sorted(names[code] for code in np.unique(codes[codes >= 0]).tolist())


def labels_of(obs: pd.DataFrame, column: str, source: str) -> np.ndarray:
    """The labels of a column, text `[n]` (object); a missing one is a `DataError`."""
    names, codes = label_codes(obs[column])
    num_missing = int((codes < 0).sum())
    if num_missing:
        raise unlabelled(num_missing, len(codes), column, source)
    return np.array(names, dtype=object)[codes] if len(codes) else np.empty(0, dtype=object)


def labels_or(obs: pd.DataFrame, column: str | None, single: str, source: str) -> np.ndarray:
    """As `labels_of`; where there is no such column, `single` for every cell."""
    return np.full(len(obs), single, dtype=object) if column is None else labels_of(obs, column, source)


def labelled_rows(obs: pd.DataFrame, columns: Sequence[str], source: str, *, drop: bool) -> np.ndarray | None:
    """Numbers of the rows that have a label in each of `columns`; None: all have.

    Without `drop`, missing labels are one `DataError` about all columns; with it their number goes to the log.
    """
    missing = {column: ~is_labelled(obs[column]) for column in dict.fromkeys(columns)}
    lacking = {column: int(mask.sum()) for column, mask in missing.items() if mask.any()}
    if not lacking:
        return None
    if not drop:
        errors = [unlabelled(count, len(obs), column, source) for column, count in lacking.items()]
        if len(errors) == 1:
            raise errors[0]
        raise DataError(f"{source}: cells without a label", [str(error) for error in errors])
    kept = ~np.logical_or.reduce(list(missing.values()))
    told = ", ".join(f"{count} without {column!r}" for column, count in lacking.items())
    logger.warning(
        "%s: %d of %s left out, without a label (%s)", source, (~kept).sum(), counted(len(obs), "cell"), told
    )
    return np.flatnonzero(kept)


def unlabelled(count: int, total: int, column: str, source: str) -> DataError:
    """The error about cells without a label."""
    return DataError(
        f"{source}: {count} of {counted(total, 'cell')} have no value in obs column {column!r}; label them, or leave them out with "
        "--drop-unlabelled (in a configuration: columns.drop_unlabelled)"
    )
