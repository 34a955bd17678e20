"""The cells that a `DataReference` means, opened: its files located and verified, its part of the split selected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from steval.data.cellfile import CellFile
from steval.data.genes import align
from steval.data.reference import DataReference
from steval.data.scale import as_lognorm
from steval.data.splits import PARTS, SHARED_CONTROL, CellLabels, TomlSplit, assign_labels, parse_split, with_table
from steval.errors import DataError


def open_reference(
    reference: DataReference, data_dirs: Sequence[Path] = (), genes: Sequence[str] | None = None
) -> CellFile:
    """Open the referenced cells as one `CellFile`: the part's perturbed cells and the control cells that belong to it.

    Counts are read as lognorm where the reference says lognorm; with `genes` the columns are exactly these. Raises `MissingReferenceError` for a file that is nowhere, `DataError` for one that has changed.
    """
    files = [_open(file.locate(data_dirs), reference, genes) for file in reference.files]
    selected = [cells.select(_rows_of_part(cells, reference, number)) for number, cells in enumerate(files)]
    cells = selected[0] if len(files) == 1 else CellFile.stack(selected, ", ".join(cells.name for cells in files))
    if not (cells.obs[reference.columns.perturbation].astype(str) != reference.columns.control).any():
        raise DataError(f"{cells.name}: no perturbed cell belongs to the recorded part {reference.part or '(all)'}")
    return cells


def _open(path: Path, reference: DataReference, genes: Sequence[str] | None) -> CellFile:
    cells = CellFile.open(path)
    if reference.scale == "lognorm":
        cells = as_lognorm(cells, reference.target_sum)
    if genes is None or cells.genes == list(genes):
        return cells
    alignment = align(cells.genes, genes, what=str(path))
    return cells.transformed(alignment.apply, genes, cells.uns, f"{cells.name} (aligned to {len(genes)} genes)")


def _rows_of_part(cells: CellFile, reference: DataReference, number: int) -> np.ndarray:
    """Row numbers in file `number` of the reference."""
    labels = cells.obs[reference.columns.perturbation].astype(str).to_numpy()
    keep = np.ones(cells.num_cells, dtype=bool)
    if reference.part is not None and reference.split is not None:
        settings = with_table(parse_split(reference.split))
        named = isinstance(settings, TomlSplit) and len(settings.file_datasets) > number
        dataset = settings.file_datasets[number] if named else None
        codes = assign_labels(CellLabels.of(cells.obs, reference.columns, settings.cell_type_key), settings, dataset)
        keep = (codes == PARTS.index(reference.part)) | (codes == SHARED_CONTROL)
    if reference.perturbations:
        keep &= (labels == reference.columns.control) | np.isin(labels, reference.perturbations)
    return np.flatnonzero(keep)
