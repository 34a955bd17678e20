"""Cells that cannot judge a checkpoint: those that it was trained on, and those that its own split keeps for the test."""

import numpy as np

from steval.data.cells.cellfile import CellFile
from steval.data.columns import Columns
from steval.data.labels import labels_of, labels_or
from steval.data.splits.assignment import SINGLE_CELL_TYPE
from steval.errors import ConfigError
from steval.wording import counted, listed

MOST_CELLS = 16
"""Cells of a pair that are looked for."""
PART = 0.5
"""Share of them that is found where a pair is the same cells, rather than other ones of it."""
SHOWN = 5
DECIMALS = 3
"""Values are compared to; both sides may have been normalised from counts on their own."""
WHY = {
    "train": "cells that the checkpoint was trained on: they do not tell how well it predicts others",
    "test": "test cells of the checkpoint's own split: a score on them would be no evidence afterwards",
}
Pair = tuple[str, str]


def require_unseen(given: CellFile, columns: Columns, own: CellFile, part: str) -> None:
    """Raise a `ConfigError` where pairs of `given` are the same cells as in `own`, a `part` of the checkpoint's data.

    Both are lognorm, in the checkpoint's genes. Other cells of a pair that training had (another replicate) are no reason.
    """
    pairs, known = _pairs(given, columns), _pairs(own, columns)
    same = [
        f"{perturbation} in {context}"
        for perturbation, context in sorted(pairs.keys() & known.keys())
        if _are_same(given, pairs[perturbation, context], own, known[perturbation, context])
    ]
    if same:
        raise ConfigError(
            f"{counted(len(same), 'pair')} of {len(pairs):,} in {given.name} hold {WHY[part]} ({listed(same, SHOWN)}). Give "
            "validation cells alone; without --real the validation part that the checkpoint records is used"
        )


def _pairs(cells: CellFile, columns: Columns) -> dict[Pair, np.ndarray]:
    """Rows of each perturbation in each context, the control left out."""
    labels = labels_of(cells.obs, columns.perturbation, cells.name).astype(str)
    contexts = labels_or(cells.obs, columns.cell_type, SINGLE_CELL_TYPE, cells.name).astype(str)
    found: dict[Pair, list[int]] = {}
    for row in np.flatnonzero(labels != str(columns.control)):
        found.setdefault((labels[row], contexts[row]), []).append(int(row))
    return {pair: np.array(rows) for pair, rows in found.items()}


def _are_same(given: CellFile, rows: np.ndarray, own: CellFile, others: np.ndarray) -> bool:
    wanted = _signatures(given, rows[:MOST_CELLS])
    known = set(_signatures(own, others))
    return bool(wanted) and sum(one in known for one in wanted) > PART * len(wanted)


def _signatures(cells: CellFile, rows: np.ndarray) -> list[tuple[bytes, bytes]]:
    """Expressed genes and rounded values of cells that express any."""
    matrix = cells.rows(rows)
    matrix.sort_indices()
    values = np.round(matrix.data.astype(np.float64), DECIMALS).astype(np.float32)
    spans = [slice(*span) for span in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
    return [
        (matrix.indices[span].astype(np.int32).tobytes(), values[span].tobytes())
        for span in spans
        if span.stop > span.start
    ]
