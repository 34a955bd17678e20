"""Cells that cannot judge a checkpoint: those that it was trained on, and those that it records for its test."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from steval.checkpoints.manifest import Manifest
from steval.data.cells.cellfile import CellFile
from steval.data.columns import Columns
from steval.data.labels import labels_of, labels_or
from steval.data.splits.assignment import SINGLE_CELL_TYPE
from steval.data.splits.selection import open_reference
from steval.errors import ConfigError, MissingReferenceError
from steval.wording import counted, listed

log = logging.getLogger(__name__)

MOST_CELLS = 16
"""Cells of a pair that are looked for."""
PART = 0.5
"""Share of them that is found where a pair is the same cells, rather than other ones of it."""
SHOWN = 5
DECIMALS = 3
"""Values are compared to; both sides may have been normalised from counts on their own."""
WHY = {
    "train": "cells that the checkpoint was trained on: they do not tell how well it predicts others",
    "test": "cells that the checkpoint is to be tested on: a score on them would be no evidence afterwards",
}
Pair = tuple[str, str]


def evaluation_cells(manifest: Manifest, data_dirs: Sequence[Path], stack: ExitStack) -> CellFile | None:
    """The file of its own that a checkpoint is to be scored on; None where that is a part of the training data, or not at hand."""
    if manifest.evaluation is None or manifest.evaluation.part is not None:
        return None
    try:
        return stack.enter_context(open_reference(manifest.evaluation, data_dirs, manifest.output_genes))
    except MissingReferenceError as error:
        log.warning("the evaluation cells cannot be compared with: %s", error)
        return None


def require_unseen(given: CellFile, columns: Columns, own: Mapping[str, Sequence[CellFile | None]]) -> None:
    """Raise a `ConfigError` where pairs of `given` are the same cells as in `own`, parts of the checkpoint's data by name.

    All are lognorm, in the checkpoint's genes. Other cells of a pair that training had (another replicate) are no reason.
    """
    pairs = _pairs(given, columns)
    for part, files in own.items():
        for file in filter(None, files):
            known = _pairs(file, columns)
            same = [
                f"{perturbation} in {context}"
                for perturbation, context in sorted(pairs.keys() & known.keys())
                if _are_same(given, pairs[perturbation, context], file, known[perturbation, context])
            ]
            if same:
                raise ConfigError(
                    f"{counted(len(same), 'pair')} of {len(pairs):,} in {given.name} hold {WHY[part]} ({listed(same, SHOWN)}). "
                    "Give validation cells alone; without --real the validation part that the checkpoint records is used"
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
