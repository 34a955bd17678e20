"""The audit of a split: no perturbed cell may be in two parts, not even as a copy in another file or under another name.

Two cells are one where their name and labels are the same and so is their expression; or, for data in memory, where the
whole expression profile is the same to the last bit (profiles of few genes may coincide by chance and do not count).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from steval.data.cells.cellfile import CellFile
from steval.data.training.row_store import RowStore
from steval.errors import DataError
from steval.wording import counted

MIN_GENES = 30
"""A profile of fewer expressed genes is no proof that two cells are one."""
SHOWN = 10


@dataclass(frozen=True)
class SplitAudit:
    """What the audit looked at; it has found nothing, or it would have raised."""

    num_cells: int
    """Perturbed cells that belong to a part."""
    repeated_names: int
    """Cells that share name and labels with a cell of another part, but not the expression."""
    content_checked: bool
    """Whether whole profiles were compared, or (data on disk) only those of cells with the same name."""

    def describe(self) -> str:
        """One line for people."""
        what = (
            "names and whole profiles"
            if self.content_checked
            else "names (the data is on disk: copies under other names are not seen)"
        )
        return f"no perturbed cell is in two parts ({counted(self.num_cells, 'cell')}, compared by {what})"


def audit_split(
    paths: Sequence[Path],
    part_codes: np.ndarray,
    perturbed: np.ndarray,
    label_codes: Sequence[np.ndarray],
    store: RowStore,
) -> SplitAudit:
    """Raise a `DataError` that lists perturbed cells which are in two parts.

    `part_codes [N]`, `perturbed [N]` bool and each of `label_codes [N]` go through the files one after the other.
    """
    cells = np.flatnonzero(perturbed & (part_codes >= 0))
    names = np.concatenate([_name_hashes(path) for path in paths])
    key = pd.util.hash_array(names[cells])
    for codes in label_codes:
        key = key * np.uint64(0x9E3779B97F4A7C15) + codes[cells].astype(np.uint64)
    suspects = cells[_in_two_parts(key, part_codes[cells])]
    leaked = _same_profiles(suspects, part_codes, store)
    in_memory = store.place != "disk"
    if in_memory:
        digests, num_genes = store.expression_digests(cells)
        solid = num_genes >= MIN_GENES
        copies = cells[solid][_in_two_parts(digests[solid], part_codes[cells][solid])]
        leaked = np.union1d(leaked, copies)
    if len(leaked):
        _fail(leaked, part_codes, paths, store)
    return SplitAudit(len(cells), len(suspects), in_memory)


def _name_hashes(path: Path) -> np.ndarray:
    with CellFile.open(path, with_obs=False) as cells:
        return np.concatenate([pd.util.hash_array(block, categorize=False) for block in cells.row_names()])


def _in_two_parts(key: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Positions whose key occurs in more than one part."""
    order = np.argsort(key, kind="stable")
    starts = (
        np.flatnonzero(np.concatenate([[True], key[order][1:] != key[order][:-1]])) if len(key) else np.array([], int)
    )
    if not len(starts):
        return starts
    low = np.minimum.reduceat(parts[order], starts)
    high = np.maximum.reduceat(parts[order], starts)
    group = np.cumsum(np.isin(np.arange(len(order)), starts)) - 1
    return order[(low != high)[group]]


def _same_profiles(suspects: np.ndarray, part_codes: np.ndarray, store: RowStore) -> np.ndarray:
    """Those of the suspects whose expression is that of a suspect in another part."""
    return suspects[_in_two_parts(store.expression_digests(suspects)[0], part_codes[suspects])]


def _fail(leaked: np.ndarray, part_codes: np.ndarray, paths: Sequence[Path], store: RowStore) -> None:
    parts = ("train", "val", "test")
    lines = []
    for cell in leaked[:SHOWN].tolist():
        number, row = store.locate(cell)
        lines.append(f"{paths[number].name}, row {row}: in {parts[part_codes[cell]]}")
    raise DataError(
        f"the split has {counted(len(leaked), 'perturbed cell')} whose measured profile is in more than one of train, "
        "val and test: the data "
        "holds the same cells more than once. Remove the copies, or put them into one part",
        [*lines, *(["…"] if len(leaked) > SHOWN else [])],
    )
