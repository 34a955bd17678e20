"""The cells that a `DataReference` means, opened: its files located and verified, its part of the split selected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from steval.data.cellfile import CellFile
from steval.data.reference import DataReference
from steval.data.splits import PARTS, SHARED_CONTROL, CellLabels, TomlSplit, assign_labels, parse_split, with_table
from steval.errors import DataError


def open_reference(reference: DataReference, data_dirs: Sequence[Path] = ()) -> CellFile:
    """Open the referenced cells as one `CellFile`: the part's perturbed cells and the control cells that belong to it.

    Raises `MissingReferenceError` for a file that is nowhere, `DataError` for one that has changed.
    """
    files = [CellFile.open(file.locate(data_dirs)) for file in reference.files]
    selected = [cells.select(_rows_of_part(cells, reference, number)) for number, cells in enumerate(files)]
    cells = selected[0] if len(files) == 1 else CellFile.stack(selected, ", ".join(cells.name for cells in files))
    if not (cells.obs[reference.columns.perturbation].astype(str) != reference.columns.control).any():
        raise DataError(f"{cells.name}: no perturbed cell belongs to the recorded part {reference.part or '(all)'}")
    return cells


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
