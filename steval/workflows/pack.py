"""`steval pack`: column names from the file's record, then the evaluator's packing."""

from pathlib import Path
from typing import Any

from steval.data.cells.cellfile import CellFile
from steval.data.columns import ColumnOptions, resolve_columns
from steval.evaluator.submission import Submission, pack


def pack_predictions(preds: Path, out: Path, options: ColumnOptions, **settings: Any) -> Submission:
    """Pack the h5ad `preds` as the submission `out`; `settings` are those of `evaluator.pack.pack`. Same errors."""
    with CellFile.open(preds) as cells:
        columns = resolve_columns(cells.obs, cells.record, options, source=str(preds))
    return pack(preds, out, columns=columns, **settings)
