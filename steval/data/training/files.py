"""The files that training reads: globs expanded, labels coded, scale and columns resolved, each file read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from steval.data.cells.cellfile import CellFile
from steval.data.cells.obs_codes import CodedColumn
from steval.data.cells.scale import Scale, ScaleRecord, resolve_scale
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.files import matching, require_file
from steval.data.outputs import real_path
from steval.data.rows.matrix import StoredMatrix
from steval.data.rows.open_file import OpenFile
from steval.data.rows.row_copies import cached_rows
from steval.data.splits.assignment import SINGLE_CELL_TYPE, Split, TomlSplit, absent_context_column
from steval.data.training.row_store import BYTES_PER_VALUE
from steval.errors import ConfigError, DataError

SINGLE_BATCH = "one batch"
"""The batch of cells whose data has no such column."""
UNLABELLED_BATCH = "unlabelled"
"""The batch of cells that lack one, where batches are not used."""


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
    matrix_path: Path
    """Where X is read from: the same file, or its copy by rows."""
    num_cells: int
    genes: tuple[str, ...]
    columns: Columns
    scale: ScaleRecord
    perturbation: CodedColumn
    cell_type: CodedColumn
    batch: CodedColumn
    context: CodedColumn
    """Contexts of the split (`cell_type_key`)."""
    context_column: str | None = None
    """None: the cell type column."""

    def used_columns(self) -> dict[str, CodedColumn]:
        """The columns in which every cell needs a label, by their name in the file."""
        columns = self.columns
        named = (
            (columns.perturbation, self.perturbation), (columns.cell_type, self.cell_type),
            (self.context_column, self.context), (columns.batch, self.batch),
        )  # fmt: skip
        return {name: coded for name, coded in named if name is not None}


def expand_files(patterns: Sequence[str], split: Split) -> tuple[list[Path], Split]:
    """Files of `patterns`, or of the TOML split where there are none; a TOML split comes back with the data set of each file.

    Order: as given, each glob sorted; a file that is named twice is read once. A pattern without a file is a `DataError`.
    """
    paths: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        found = matching(pattern)
        if not found:
            problems.append(f"no file matches {pattern}")
        paths.update(dict.fromkeys(require_file(path, "data file") for path in found))
    if problems:
        raise DataError("training data is missing", problems)
    if not isinstance(split, TomlSplit):
        if not paths:
            raise ConfigError("no training data: name h5ad files or globs in files")
        return list(paths), split
    return _toml_files(list(paths), split)


def _toml_files(paths: list[Path], split: TomlSplit) -> tuple[list[Path], TomlSplit]:
    assert split.table is not None
    if paths and len(split.file_datasets) == len(
        paths
    ):  # an opened split that was kept: the files may lie elsewhere now
        return paths, split
    if paths and len(split.table.datasets_used()) == 1:
        names = split.table.datasets_used() * len(paths)
        return paths, split.model_copy(update={"file_datasets": tuple(names)})
    listed = {real_path(path): name for name, files in split.table.files().items() for path in files}
    if not paths:
        return list(listed), split.model_copy(update={"file_datasets": tuple(listed.values())})
    foreign = [str(path) for path in paths if real_path(path) not in listed]
    if foreign:
        raise DataError(f"files of no data set in the split file {split.path}", foreign)
    names = [listed[real_path(path)] for path in paths]
    return paths, split.model_copy(update={"file_datasets": tuple(names)})


def read_labelled(
    path: Path,
    settings: ReadSettings,
    cell_type_key: str | None,
    matrix_path: Path | None = None,
    *,
    needs_batch: bool = True,
) -> LabelledFile:
    """Labels, genes and scale of one file; `matrix_path` is where X is read from, if not from `path`.

    Without `needs_batch`, cells that lack a batch are of the batch `UNLABELLED_BATCH`.
    """
    matrix_path = matrix_path or path
    with CellFile.open(matrix_path, with_obs=False) as cells:
        genes, record, num_cells = tuple(cells.genes), cells.record, cells.num_cells
        scale = resolve_scale(cells, settings.scale)
    with CellFile.open(path, with_obs=False) as labelled:
        names = labelled.column_names()
        columns = resolve_columns(
            pd.DataFrame(columns=pd.Index(names)), record, settings.columns, require_control=False, source=str(path)
        )
        if cell_type_key is not None and cell_type_key not in names:
            raise absent_context_column(cell_type_key, names)

        def coded(column: str | None, single: str) -> CodedColumn:
            return CodedColumn.single(single, num_cells) if column is None else labelled.coded(column)

        cell_type = coded(columns.cell_type, SINGLE_CELL_TYPE)
        batch = coded(columns.batch, SINGLE_BATCH)
        if not needs_batch:
            batch = batch.filled(UNLABELLED_BATCH)
        own_context = cell_type_key not in (None, columns.cell_type)
        return LabelledFile(
            path=path, matrix_path=matrix_path, num_cells=num_cells, genes=genes, columns=columns, scale=scale,
            perturbation=coded(columns.perturbation, ""), cell_type=cell_type, batch=batch,
            context=coded(cell_type_key, "") if own_context else cell_type,
            context_column=cell_type_key if own_context else None,
        )  # fmt: skip


def matrix_paths(paths: Sequence[Path], memory_bytes: int, cache_dir: Path | None) -> tuple[list[Path], list[str]]:
    """Where the X of each file is read from, and notes: the files, or copies by rows where they are too large and slow.

    Data within `memory_bytes` needs no copy. Beyond, CSC must have one (a `DataError` without `cache_dir`), compressed
    CSR gets one where `cache_dir` is given.
    """
    matrices = {path: _stored_matrix(path) for path in paths}
    if sum(matrix.num_values for matrix in matrices.values()) * BYTES_PER_VALUE <= memory_bytes:
        return list(paths), []
    slow = {path: matrix for path, matrix in matrices.items() if matrix.layout == "csc" or matrix.is_compressed}
    if cache_dir is None:
        columnwise = [str(path) for path, matrix in slow.items() if matrix.layout == "csc"]
        if columnwise:
            raise DataError(
                "files in CSC layout are too large for memory, and their cells cannot be read one by one from disk. "
                "Give data.cache_dir (a directory for copies by rows), raise data.memory_gb, or store X as CSR",
                columnwise,
            )
        notes = [
            f"{path.name} is compressed: reading it cell by cell is slow; cache_dir gives it a plain copy"
            for path in slow
        ]
        return list(paths), notes
    copies = {
        path: cached_rows(matrix, cache_dir, memory_bytes) for path, matrix in slow.items() if matrix.layout != "dense"
    }
    return [copies.get(path, path) for path in paths], [
        f"{p.name} is read from its copy {c}" for p, c in copies.items()
    ]


def _stored_matrix(path: Path) -> StoredMatrix:
    """X of a file that has been checked to be one; it is closed, until it is read."""
    with CellFile.open(path, with_obs=False):
        matrix = StoredMatrix(OpenFile(path))
    matrix.close()
    return matrix
