"""What `TrainingCells` is put together from: one scale, one gene contract and one code for each name over many files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steval.data.cells.genes import FillMissing, align, require_unique
from steval.data.cells.obs_codes import CodedColumn
from steval.data.labels import unlabelled
from steval.data.splits.assignment import (
    UNUSED,
    CellLabels,
    Split,
    TomlSplit,
    assign_labels,
    require_known,
    require_parts,
)
from steval.data.training.features import feature_rows, one_hot
from steval.data.training.files import LabelledFile
from steval.data.training.obsm_store import ObsmStore
from steval.data.training.row_store import RowStore, SourceFile
from steval.errors import ConfigError, DataError
from steval.wording import counted


def require_same_columns(files: Sequence[LabelledFile]) -> None:
    """Raise a `DataError` where files have other columns or control labels than the first, or none has control cells."""
    columns = files[0].columns
    different = [f"{file.path}: {file.columns.as_dict()}" for file in files if file.columns != columns]
    if different:
        raise DataError(
            f"the files have different obs columns or control labels (first file: {columns.as_dict()}); make them alike, or "
            "name the ones that all files have in columns",
            different,
        )
    control = columns.control
    if not any(control in file.perturbation.names for file in files):
        raise DataError(f"no file holds control cells ({control!r} in column {files[0].columns.perturbation!r})")


def common_target_sum(files: Sequence[LabelledFile], wanted: float | None) -> tuple[float | None, list[float | None]]:
    """The common total of all files, and for each file the total to lognorm to (none: it is lognorm already)."""
    problems, known = [], {wanted} if wanted else set()
    for file in files:
        if file.scale.scale == "embedding":
            problems.append(f"{file.path}: X is declared as an embedding; expression is needed")
        elif file.scale.scale == "counts" and not wanted:
            problems.append(
                f"{file.path} holds counts: give target_sum (10000 is usual) to have them lognormed on the fly"
            )
        elif file.scale.scale == "lognorm" and file.scale.target_sum:
            known.add(file.scale.target_sum)
    if len(known) > 1:
        problems.append(
            f"different target_sum: {', '.join(f'{value:g}' for value in sorted(known))}; make the files alike with steval prepare"
        )
    if problems:
        raise DataError("the scale of the training data is not settled", problems)
    sums = [wanted if file.scale.scale == "counts" else None for file in files]
    return (known.pop() if known else None), sums


def build_row_store(
    files: Sequence[LabelledFile],
    sums: Sequence[float | None],
    contract: tuple[str, ...],
    fill: FillMissing,
    budget: int,
) -> tuple[RowStore, list[str]]:
    """The expression of all files in one gene contract, and notes on what was dropped, filled, reordered or lognormed."""
    sources, notes = [], []
    for file, target_sum in zip(files, sums, strict=True):
        alignment = align(file.genes, contract, fill, str(file.path), to_fill="data.fill_missing: zero")
        sources.append(SourceFile(file.matrix_path, file.num_cells, alignment, target_sum))
        if not alignment.is_identity:
            notes.append(
                f"{file.path.name}: {counted(alignment.num_extra, 'extra gene')} dropped, "
                f"{counted(len(alignment.missing), 'missing gene')} zero"
                + (", genes reordered by name" if alignment.reordered else "")
            )
        if target_sum:
            notes.append(f"{file.path.name}: counts are lognormed to {target_sum:g} per cell as they are read")
    return RowStore(sources, budget), notes


def build_input_store(
    files: Sequence[LabelledFile], sums: Sequence[float | None], contract: tuple[str, ...],
    input_genes: Sequence[str] | None, input_key: str | None, fill: FillMissing, budget: int,
) -> tuple["RowStore | ObsmStore | None", tuple[str, ...] | None]:  # fmt: skip
    """Where the basal input comes from (none: the target's store), and its genes (none: an embedding)."""
    if input_key is None:
        return None, contract
    if input_key == "X_hvg":
        if input_genes is None:
            raise ConfigError("an X_hvg input needs the names of its genes (an obsm matrix has none): give input_genes")
        if tuple(input_genes) == contract:
            return None, contract
        require_unique(input_genes, "the input's gene contract")
        return build_row_store(files, sums, tuple(input_genes), fill, budget)[0], tuple(input_genes)
    return ObsmStore([file.path for file in files], [file.num_cells for file in files], input_key, budget), None


def merged_codes(columns: Sequence[CodedColumn], first: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """One order of names for all files (`first`, then the rest sorted), and the codes of all cells, int32 `[N]`."""
    names = {name for column in columns for name in column.names}
    merged = (*first, *sorted(names - set(first)))
    return merged, np.concatenate([column.recoded(merged) for column in columns])


def labelled_cells(files: Sequence[LabelledFile]) -> list[np.ndarray]:
    """Rows of each file that have a perturbation, a cell type and a context; the others are an error, or left out."""
    drop, problems, kept = files[0].columns.drop_unlabelled, [], []
    for file in files:
        missing = np.zeros(file.num_cells, dtype=bool)
        for column, coded in file.used_columns().items():
            missing |= coded.missing
            if coded.missing.any():
                problems.append(str(unlabelled(int(coded.missing.sum()), file.num_cells, column, str(file.path))))
        kept.append(np.flatnonzero(~missing))
    if problems and not drop:
        raise DataError("the training data has cells without a label", problems)
    return kept


def assign_files(files: Sequence[LabelledFile], kept: Sequence[np.ndarray], split: Split) -> np.ndarray:
    """Part of each cell of all files, int8 `[N]` as `splits.assign_parts`, with its checks over all files together.

    Rows that are not among `kept` are of no part.
    """
    datasets = split.file_datasets if isinstance(split, TomlSplit) else (None,) * len(files)
    labelled = [
        (
            dataset,
            CellLabels(
                file.perturbation.names,
                file.perturbation.codes[rows],
                file.context.names,
                file.context.codes[rows],
                file.columns.control,
            ),
        )
        for file, rows, dataset in zip(files, kept, datasets, strict=True)
    ]
    require_known(split, labelled)
    parts = [np.full(file.num_cells, UNUSED, dtype=np.int8) for file in files]
    for codes, rows, (dataset, labels) in zip(parts, kept, labelled, strict=True):
        codes[rows] = assign_labels(labels, split, dataset)
    merged = np.concatenate(parts)
    require_parts(merged, split)
    return merged


def left_out_notes(files: Sequence[LabelledFile], kept: Sequence[np.ndarray]) -> list[str]:
    """What to say of the cells that `labelled_cells` left out."""
    pairs = zip(files, kept, strict=True)
    lost = {file.path.name: file.num_cells - len(rows) for file, rows in pairs if len(rows) < file.num_cells}
    return [f"{name}: {counted(count, 'cell')} without a label left out" for name, count in lost.items()]


def build_features(names: Sequence[str], control: str, vectors: Mapping[str, Any] | None, source: str) -> np.ndarray:
    """Rows of features for `names`: from vectors, else one-hot."""
    return one_hot(len(names)) if vectors is None else feature_rows(names, control, vectors, source)
