"""The files that training reads: globs expanded, labels coded, scale and columns resolved, each file read once."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from steval.data.cellfile import CellFile
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.files import require_file
from steval.data.obs_codes import CodedColumn
from steval.data.scale import Scale, ScaleRecord, resolve_scale
from steval.data.splits import SINGLE_CELL_TYPE, CellSplit, ContextSplit, TomlSplit, absent_context_column
from steval.errors import ConfigError, DataError

SINGLE_BATCH = "one batch"
"""The batch of cells whose data has no such column."""


class ReadSettings(Protocol):
    """What reading labels needs of the settings."""

    @property
    def columns(self) -> ColumnOptions: ...

    @property
    def scale(self) -> Scale | None: ...


@dataclass(frozen=True)
class LabelledFile:
    """One file without its expression."""

    path: Path
    num_cells: int
    genes: tuple[str, ...]
    columns: Columns
    scale: ScaleRecord
    perturbation: CodedColumn
    cell_type: CodedColumn
    batch: CodedColumn
    context: CodedColumn
    """Contexts of the split (`cell_type_key`)."""


def expand_files(
    patterns: Sequence[str], split: CellSplit | ContextSplit | TomlSplit, base_dir: Path | None = None
) -> tuple[list[Path], CellSplit | ContextSplit | TomlSplit]:
    """Files of `patterns`, or of the TOML split where there are none; a TOML split comes back with the data set of each file.

    Order: as given, each glob sorted; a file that is named twice is read once. A pattern without a file is a `DataError`.
    """
    paths: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        place = Path(pattern).expanduser()
        place = place if place.is_absolute() else (base_dir or Path()) / place
        found = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207  absolute patterns
        if not found:
            problems.append(f"no file matches {pattern}")
        paths.update(dict.fromkeys(require_file(Path(name), "data file") for name in found))
    if problems:
        raise DataError("training data is missing", problems)
    if not isinstance(split, TomlSplit):
        if not paths:
            raise ConfigError("no training data: name h5ad files or globs in files")
        return list(paths), split
    return _toml_files(list(paths), split)


def _toml_files(paths: list[Path], split: TomlSplit) -> tuple[list[Path], TomlSplit]:
    assert split.table is not None
    if paths and len(split.table.datasets_used()) == 1:
        names = split.table.datasets_used() * len(paths)
        return paths, split.model_copy(update={"file_datasets": tuple(names)})
    listed = {path.resolve(): name for name, files in split.table.files().items() for path in files}
    if not paths:
        return list(listed), split.model_copy(update={"file_datasets": tuple(listed.values())})
    foreign = [str(path) for path in paths if path.resolve() not in listed]
    if foreign:
        raise DataError(f"files of no data set in the split file {split.path}", foreign)
    names = [listed[path.resolve()] for path in paths]
    return paths, split.model_copy(update={"file_datasets": tuple(names)})


def read_labelled(path: Path, settings: ReadSettings, cell_type_key: str | None) -> LabelledFile:
    """Labels, genes and scale of one file."""
    with CellFile.open(path) as cells:
        columns = resolve_columns(cells.obs, cells.record, settings.columns, require_control=False, source=str(path))
        if cell_type_key is not None and cell_type_key not in cells.obs.columns:
            raise absent_context_column(cell_type_key, list(map(str, cells.obs.columns)))
        cell_type = _coded(cells.obs, columns.cell_type, SINGLE_CELL_TYPE)
        return LabelledFile(
            path=Path(path), num_cells=cells.num_cells, genes=tuple(cells.genes), columns=columns,
            scale=resolve_scale(cells, settings.scale),
            perturbation=_coded(cells.obs, columns.perturbation, ""), cell_type=cell_type,
            batch=_coded(cells.obs, columns.batch, SINGLE_BATCH),
            context=cell_type if cell_type_key is None else _coded(cells.obs, cell_type_key, ""),
        )  # fmt: skip


def _coded(obs: pd.DataFrame, column: str | None, single: str) -> CodedColumn:
    if column is None:
        return CodedColumn.single(single, len(obs))
    labels = pd.Categorical(obs[column].astype(str))
    return CodedColumn(tuple(labels.categories), labels.codes.astype("int32"))
