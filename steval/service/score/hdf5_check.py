"""Checks an HDF5 file that a stranger made before anything else opens it.

HDF5 can point outside itself (external links, external storage, virtual data sets) and can claim sizes that its bytes do not
hold (compression, chunks never written): the first would read the server's files, the second fill its memory. A sparse
matrix can name columns that it does not have: compiled code would write to them.
"""

from pathlib import Path

import h5py
import numpy as np

from steval.errors import DataError
from steval.wording import counted

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_OBJECTS = 20_000
MOST_OTHER_VALUES = 500_000_000
"""Numbers or strings of all data sets together, whatever their shape."""
BLOCK_VALUES = 1 << 22


def require_hdf5(path: Path, what: str) -> None:
    """A `DataError` where the file does not begin as HDF5 files do; nothing is parsed."""
    with Path(path).open("rb") as handle:
        if handle.read(len(SIGNATURE)) != SIGNATURE:
            raise DataError(f"{what} is not an h5ad file: it does not begin with the HDF5 signature")


def require_harmless(path: Path, what: str, max_values: int) -> None:
    """A `DataError` where the file reaches outside itself or would unfold to more than `max_values` numbers.

    Run it in a process of its own: the HDF5 library may crash on a damaged file.
    """
    require_hdf5(path, what)
    try:
        with h5py.File(path, "r", locking=False) as handle:
            _check_links_and_sizes(handle, what, max_values)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{what} is not a readable h5ad file: {error}") from error


def _check_links_and_sizes(root: h5py.File, what: str, max_values: int) -> None:
    groups: list[h5py.Group] = [root]
    seen: set[object] = set()
    sparse: list[h5py.Group] = []
    num_objects, num_values = 0, 0
    while groups:
        group = groups.pop()
        for name in group:
            num_objects += 1
            if num_objects > MOST_OBJECTS:
                raise DataError(f"{what} holds more than {MOST_OBJECTS} objects")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise DataError(f"{what} holds a link ({group.name}/{name}) to another place; write the data itself")
            item = group[name]
            if isinstance(item, h5py.Group):
                if item.id not in seen:
                    seen.add(item.id)
                    groups.append(item)
                    if {"data", "indices", "indptr"} <= set(item):
                        sparse.append(item)
            elif isinstance(item, h5py.Dataset):
                num_values += _checked_size(item, what)
    _check_matrix(root, what, max_values)
    if num_values > max(MOST_OTHER_VALUES, 3 * max_values):
        raise DataError(
            f"{what} would unfold to {counted(num_values, 'value')}; the limit is {max(MOST_OTHER_VALUES, 3 * max_values)}"
        )
    for matrix in sparse:
        _check_sparse(matrix, what)


def _check_sparse(matrix: h5py.Group, what: str) -> None:
    """Row pointers that rise within the values, and columns within the shape."""
    damaged = DataError(f"{what}: the sparse matrix {matrix.name} is damaged: its indices do not fit its shape")
    shape = [int(length) for length in matrix.attrs.get("shape", ())]
    by_rows = "csc" not in str(matrix.attrs.get("encoding-type"))
    pointers, indices = matrix["indptr"][:], matrix["indices"]
    if len(shape) != 2 or pointers.ndim != 1 or indices.ndim != 1 or len(pointers) != shape[0 if by_rows else 1] + 1:
        raise damaged
    num_values = min(len(indices), len(matrix["data"]))
    if pointers[0] != 0 or pointers[-1] > num_values or (np.diff(pointers.astype(np.int64)) < 0).any():
        raise damaged
    limit = shape[1 if by_rows else 0]
    for start in range(0, len(indices), BLOCK_VALUES):
        block = indices[start : start + BLOCK_VALUES]
        if block.min() < 0 or block.max() >= limit:
            raise damaged


def _checked_size(dataset: h5py.Dataset, what: str) -> int:
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{what}: {dataset.name} is stored in other files; write the data itself")
    return int(dataset.size or 0)


def _check_matrix(handle: h5py.File, what: str, max_values: int) -> None:
    matrix = handle.get("X")
    if matrix is None:
        raise DataError(f"{what} has no matrix X; an h5ad file is needed")
    shape = matrix.shape if isinstance(matrix, h5py.Dataset) else tuple(int(n) for n in matrix.attrs.get("shape", ()))
    if shape is None or len(shape) != 2:
        raise DataError(f"{what}: X is not a matrix of cells × genes")
    if shape[0] * shape[1] > max_values:
        raise DataError(
            f"{what}: X has {counted(shape[0], 'cell')} × {counted(shape[1], 'gene')} = "
            f"{counted(shape[0] * shape[1], 'value')}; this service scores up to "
            f"{max_values}. Score it on the command line: steval score"
        )
