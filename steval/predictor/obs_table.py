"""`obs` of a predictions file: the columns of the data, and for each predicted cell the control that it started from."""

from typing import Any

import numpy as np
import pandas as pd

from steval.data.challenge.panel import CONTEXT
from steval.predictor.cells.predicted import PredictedBlock
from steval.predictor.controls import ControlPool
from steval.predictor.means import PredictedMean

ANY = "any"
"""Batch of a mean over cells of several batches."""


class ObsTable:
    """Makes the `obs` of each block that is written; predicted cells are numbered through the file."""

    def __init__(self, pool: ControlPool, context: str | None = None, num_predicted: int = 0):
        self._pool = pool
        self._context = context
        self.num_predicted = num_predicted
        """Cells so far, those of the contexts before included."""

    def controls(self, rows: np.ndarray) -> pd.DataFrame:
        """Measured cells under their own names."""
        pool = self._pool
        labels = np.full(len(rows), pool.columns.control, dtype=object)
        more = {"control_cell": pool.names[rows], "predicted": np.zeros(len(rows), dtype=bool)}
        return self._frame(pool.names[rows], labels, pool.cell_types[rows], pool.batches[rows], more)

    def predicted(self, block: PredictedBlock) -> pd.DataFrame:
        """Predicted cells; cell type and batch are those of the control cell."""
        pool = self._pool
        rows = np.concatenate([one.control_indices for one in block.sets])
        first = self.num_predicted
        self.num_predicted += len(rows)
        index = np.array([f"predicted_{number}" for number in range(first, self.num_predicted)], dtype=object)
        names = np.array([one.perturbation for one in block.sets], dtype=object)
        labels = np.repeat(names, [one.num_cells for one in block.sets])
        more = {"control_cell": pool.names[rows], "predicted": np.ones(len(rows), dtype=bool)}
        return self._frame(index, labels, pool.cell_types[rows], pool.batches[rows], more)

    def profile(self, perturbation: str, cell_type: str, batch: str | None, num_cells: int) -> pd.DataFrame:
        """One mean profile, predicted or of the controls."""
        control = self._pool.columns.control
        index = np.array(["_".join(part for part in (perturbation, cell_type, batch) if part)], dtype=object)
        more = {"num_cells": [num_cells], "predicted": [perturbation != control]}
        return self._frame(index, [perturbation], [cell_type], [batch or ANY], more)

    def mean(self, profile: PredictedMean) -> pd.DataFrame:
        """One predicted mean profile."""
        return self.profile(profile.item.perturbation, profile.cell_type, profile.batch, profile.num_cells)

    def _frame(self, index: Any, labels: Any, cell_types: Any, batches: Any, more: dict[str, Any]) -> pd.DataFrame:
        """The data's own columns, and `more` under the names that they leave free."""
        columns = self._pool.columns
        frame: dict[str, Any] = {columns.perturbation: labels}
        if columns.cell_type:
            frame[columns.cell_type] = cell_types
        if columns.batch:
            frame[columns.batch] = batches
        if self._context is not None:
            frame[CONTEXT] = self._context
        return pd.DataFrame(more | frame if set(more) & set(frame) else frame | more, index=pd.Index(index))
