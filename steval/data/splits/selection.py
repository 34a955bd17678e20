"""The cells that a `DataReference` means, opened: its files located and verified, its part of the split selected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import align
from steval.data.cells.scale import as_lognorm
from steval.data.labels import labelled_rows
from steval.data.reference import DataReference
from steval.data.splits.assignment import (
    PARTS,
    SHARED_CONTROL,
    CellLabels,
    TomlSplit,
    assign_labels,
    parse_split,
    with_table,
)
from steval.errors import DataError
from steval.wording import counted


def open_reference(
    reference: DataReference, data_dirs: Sequence[Path] = (), genes: Sequence[str] | None = None
) -> CellFile:
    """Open the referenced cells as one `CellFile`: the part's perturbed cells and the controls of their contexts.

    Counts are read as lognorm where the reference says lognorm; with `genes` the columns are exactly these. Raises
    `MissingReferenceError` for a file that is nowhere, `DataError` for one that has changed.
    """
    files = [_open(file.locate(data_dirs), reference, genes) for file in reference.files]
    parts = [_Part(cells, reference, number) for number, cells in enumerate(files)]
    contexts = {context for part in parts for context in part.perturbed_contexts()}
    selected = [cells.select(part.rows(contexts)) for cells, part in zip(files, parts, strict=True)]
    filled = [cells for cells in selected if cells.num_cells] or selected[:1]
    cells = filled[0] if len(filled) == 1 else CellFile.stack(filled, ", ".join(cells.name for cells in filled))
    if not contexts:
        raise DataError(f"{cells.name}: no perturbed cell belongs to the recorded part {reference.part or '(all)'}")
    return cells


def _open(path: Path, reference: DataReference, genes: Sequence[str] | None) -> CellFile:
    cells = CellFile.open(path)
    if reference.scale == "lognorm":
        cells = as_lognorm(cells, reference.target_sum)
    if genes is None or cells.genes == list(genes):
        return cells
    alignment = align(cells.genes, genes, what=str(path))
    return cells.transformed(
        alignment.apply, genes, cells.uns, f"{cells.name} (aligned to {counted(len(genes), 'gene')})"
    )


class _Part:
    """The cells of one file that belong to the reference."""

    def __init__(self, cells: CellFile, reference: DataReference, number: int):
        split = None if reference.split is None else with_table(parse_split(reference.split))
        columns, key = reference.columns, split.cell_type_key if split else None
        used = [name for name in (columns.perturbation, columns.cell_type, key) if name is not None]
        labelled = labelled_rows(cells.obs, used, cells.name, drop=columns.drop_unlabelled)
        self._labelled = np.arange(cells.num_cells) if labelled is None else labelled
        """Rows that have the labels; everything below is about these."""
        labels = CellLabels.of(cells.obs.iloc[self._labelled], columns, key, cells.name)
        self._is_control = labels.is_control
        self._contexts = np.array(labels.contexts, dtype=object)[labels.context_codes]
        self._belongs = np.ones(len(self._labelled), dtype=bool)
        if split is not None and reference.part is not None:
            named = isinstance(split, TomlSplit) and len(split.file_datasets) > number
            codes = assign_labels(labels, split, split.file_datasets[number] if named else None)
            self._belongs = (codes == PARTS.index(reference.part)) | (codes == SHARED_CONTROL)
        if reference.perturbations:
            names = np.array(labels.perturbations, dtype=object)[labels.perturbation_codes]
            self._belongs &= self._is_control | np.isin(names, reference.perturbations)

    def perturbed_contexts(self) -> set[str]:
        """Contexts of the perturbed cells of the part."""
        return set(self._contexts[self._belongs & ~self._is_control])

    def rows(self, contexts: set[str]) -> np.ndarray:
        """Row numbers of the part's perturbed cells, and of its control cells in `contexts`."""
        return self._labelled[self._belongs & (~self._is_control | np.isin(self._contexts, list(contexts)))]
