"""Requests from files: a CSV or TSV table (ours or the Virtual Cell Challenge's), or "as in this h5ad".

Table columns (letter case ignored): `perturbation` or `target_gene`; `num_cells` or `n_cells` (without it every line
gets the default); optionally `cell_type`, `batch`, `median_umi_per_cell` or `median_umi`.
"""

import csv
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from steval.data.cells.cellfile import CellFile
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.files import read_text, require_file
from steval.data.labels import labels_of, labels_or
from steval.errors import ConfigError, DataError, nearest_names
from steval.predictor.requests import (
    ALL_CELL_TYPES,
    DEFAULT_CELLS,
    MOST_CELLS,
    Output,
    PredictionRequest,
    RequestItem,
    require_items,
    require_known,
    require_unique,
)
from steval.wording import counted, listed

logger = logging.getLogger(__name__)

MAX_PROBLEMS = 50
_COLUMNS = {
    "perturbation": "perturbation",
    "target_gene": "perturbation",
    "num_cells": "num_cells",
    "n_cells": "num_cells",
    "cell_type": "cell_type",
    "batch": "batch",
    "median_umi_per_cell": "median_umi",
    "median_umi": "median_umi",
}


def read_request(
    path: Path,
    *,
    known: Sequence[str],
    control: str,
    num_cells: int = DEFAULT_CELLS,
    seed: int = 0,
    cell_types: Sequence[str] = (),
    present_types: Sequence[str] = (),
    batch: str | None = None,
    output: Output = "cells",
    columns: ColumnOptions | None = None,
    recorded: Columns | None = None,
    by_batch: bool = False,
) -> PredictionRequest:
    """The request that a `.csv`, `.tsv`, `.txt` or `.h5ad` file makes.

    `num_cells` is for tables without such a column; `columns` and `recorded` (the checkpoint's) say where an h5ad has its labels,
    `cell_types` which of its cells are meant (empty: all). Where the file has no cell types, its requests are made in each of
    these, `all` meaning `present_types`.
    Raises `ConfigError` with every bad line, unknown names included, or `UnknownPerturbationError` where only names are wrong.
    """
    path = Path(path)
    if path.suffix == ".h5ad":
        with CellFile.open(path) as cells:
            items = items_like(cells, columns, recorded, by_batch=by_batch)
    elif path.suffix in (".csv", ".tsv", ".txt"):
        items = _read_table(path, num_cells, known)
        if cell_types and any(item.cell_type for item in items):
            raise ConfigError(f"{path} has a cell_type column, which says where to predict; leave --cell-type out")
    else:
        raise ConfigError(f"a request file ends in .csv, .tsv, .txt or .h5ad, got {path.name!r}")
    items = of_cell_types(items, cell_types, present_types, path)
    require_items(items, str(path))
    require_known((item.perturbation for item in items), known, control)
    require_unique(items, str(path))
    values = {"items": items, "seed": seed, "batch": batch, "output": output}
    return PredictionRequest.parse(values, source=str(path))


def items_like(
    cells: CellFile,
    options: ColumnOptions | None = None,
    recorded: Columns | None = None,
    *,
    by_batch: bool = False,
) -> list[RequestItem]:
    """One item for each perturbation and cell type (and batch) of a file, with its number of cells; controls are left out."""
    columns = resolve_columns(cells.obs, cells.record, options, recorded, require_control=False, source=str(cells.name))
    return items_of(cells, columns, by_batch=by_batch)


def items_of(cells: CellFile, columns: Columns, *, by_batch: bool = False) -> list[RequestItem]:
    """As `items_like` by known columns. Cells that lack a label which counts are refused or left out (`data.labels`)."""
    if by_batch and columns.batch is None:
        raise DataError(f"{cells.name} has no batch column to divide its cells by; name it with --batch-col")
    cells = cells.labelled(columns, "perturbation")
    labels = labels_of(cells.obs, columns.perturbation, cells.name)
    perturbed_cells = cells.select(np.flatnonzero(labels != columns.control))
    perturbed_cells.name = cells.name
    perturbed_cells = perturbed_cells.labelled(columns, "cell_type", *(("batch",) if by_batch else ()))
    obs = perturbed_cells.obs
    keys = {
        "perturbation": pd.Series(labels_of(obs, columns.perturbation, cells.name)),
        "cell_type": pd.Series(labels_or(obs, columns.cell_type, "", cells.name)),
        "batch": pd.Series(labels_or(obs, columns.batch if by_batch else None, "", cells.name)),
    }
    if not len(obs):
        raise DataError(
            f"{cells.name} holds no perturbed cells: every label in {columns.perturbation!r} is the control"
        )
    counts = pd.DataFrame(keys).groupby(list(keys), sort=True).size()
    return [
        RequestItem(perturbation=name, num_cells=int(count), cell_type=cell_type or None, batch=batch or None)
        for (name, cell_type, batch), count in zip(counts.index.to_list(), counts.tolist(), strict=True)
    ]


def _read_table(path: Path, default_cells: int, known: Sequence[str]) -> list[RequestItem]:
    lines = _lines(path)
    try:
        number, header = next(lines)
    except StopIteration:
        raise ConfigError(f"{path} is empty; it needs a header such as: perturbation,num_cells") from None
    fields = _fields(header, path)
    items: list[RequestItem] = []
    problems: list[str] = []
    for number, values in lines:
        if len(values) != len(fields):
            problems.append(f"line {number}: {counted(len(values), 'value')} for {counted(len(fields), 'column')}")
            continue
        row = {field: value.strip() for field, value in zip(fields, values, strict=True) if field}
        item, found = _item(row, default_cells)
        problems += [f"line {number}: {problem}" for problem in found]
        if item is not None:
            items.append(item)
    if problems:
        vocabulary = set(known)
        unknown = dict.fromkeys(item.perturbation for item in items if item.perturbation not in vocabulary)
        problems += [f"unknown perturbation {name!r}; nearest: {_near(name, known)}" for name in unknown]
        left_out = len(problems) - MAX_PROBLEMS
        shown = problems[:MAX_PROBLEMS] + ([f"and {left_out} more"] if left_out > 0 else [])
        raise ConfigError(f"{path} is not a valid request", shown)
    return items


def of_cell_types(
    items: list[RequestItem], asked: Sequence[str], present: Sequence[str], source: Path | str
) -> list[RequestItem]:
    """Those of the cell types that are asked for; items that say none become one of each."""
    every = tuple(asked) == (ALL_CELL_TYPES,)
    found = sorted({item.cell_type for item in items if item.cell_type})
    if asked and not found:
        logger.info("%s names no cell types: all of it is predicted in %s", source, listed(present if every else asked))
        return [item.model_copy(update={"cell_type": name}) for item in items for name in (present if every else asked)]
    if every or not asked:
        return items
    missing = [name for name in asked if name not in found]
    if missing:
        raise ConfigError(
            f"{source} holds no perturbed cells of cell type {', '.join(map(repr, missing))}; it holds: {listed(found, 20)}"
        )
    return [item for item in items if item.cell_type in asked]


def _near(name: str, known: Sequence[str]) -> str:
    near = nearest_names(name, known)
    return listed(near) if near else "none"


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and values of each line that is not blank."""
    require_file(path, "request file")
    try:
        text = read_text(path, "request file")
    except DataError as error:
        raise ConfigError(str(error)) from error
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first else ","
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, values
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not a table ({error})") from error


def _fields(header: list[str], path: Path) -> list[str | None]:
    """Our field of each column, None for a column that is not used."""
    fields = [_COLUMNS.get(name.strip().casefold()) for name in header]
    repeated = sorted({field for field in fields if field and fields.count(field) > 1})
    if "perturbation" not in fields or repeated:
        found = f"two columns that mean {repeated[0]}" if repeated else "none that names the perturbation"
        raise ConfigError(
            f"{path}: its header has {found} ({', '.join(header)}); expected: perturbation,num_cells or "
            "target_gene,n_cells,median_umi_per_cell (optionally cell_type and batch)"
        )
    return fields


def _item(row: dict[str, str], default_cells: int) -> tuple[RequestItem | None, list[str]]:
    problems = []
    if not row["perturbation"]:
        problems.append("no perturbation")
    num_cells, depth = default_cells, None
    if "num_cells" in row:
        value = _number(row["num_cells"])
        if value is None or not 1 <= value <= MOST_CELLS or value != int(value):
            allowed = f"at least 1 and at most {MOST_CELLS}" if value is not None and value > 1 else "at least 1"
            problems.append(f"num_cells must be a whole number of {allowed}, got {row['num_cells']!r}")
        else:
            num_cells = int(value)
    if row.get("median_umi"):
        depth = _number(row["median_umi"])
        if depth is None or depth <= 0:
            problems.append(f"median_umi_per_cell must be a number above 0, got {row['median_umi']!r}")
    if problems:
        return None, problems
    return RequestItem(
        perturbation=row["perturbation"],
        num_cells=num_cells,
        cell_type=row.get("cell_type") or None,
        batch=row.get("batch") or None,
        median_umi=depth,
    ), []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
