"""Predictions into an h5ad file, block by block as they are computed."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steval.data.columns import Columns
from steval.data.record import steval_record
from steval.data.writer import CellWriter, Compression, Layout
from steval.errors import ConfigError
from steval.logs import progress_bar
from steval.predictor.controls import ControlPool
from steval.predictor.engine import PredictedBlock, Predictor
from steval.predictor.requests import PredictionRequest
from steval.predictor.sets import PlannedSet
from steval.settings import Settings

log = logging.getLogger(__name__)

CONTROL_ROWS = 1024


class OutputOptions(Settings):
    """How predictions are written."""

    include_controls: bool | None = None
    """Measured control cells beside the predicted ones. None: where their expression is known."""
    layout: Layout = "csr"
    compression: Compression = "lzf"
    clip_low: float | None = None
    """Smallest value; none: 0 for expression (the network's own ReLU), no limit for embeddings."""
    clip_high: float | None = None
    """Largest value; none: no limit."""


@dataclass(frozen=True)
class WrittenPredictions:
    """What `write_predictions` did."""

    path: Path
    num_cells: int
    """Predicted cells (rows, for mean profiles)."""
    num_controls: int
    num_perturbations: int
    seconds: float
    """For prediction and writing, without loading the model."""

    @property
    def cells_per_second(self) -> float:
        return self.num_cells / self.seconds if self.seconds > 0 else float("inf")


def write_predictions(
    path: Path,
    predictor: Predictor,
    request: PredictionRequest,
    pool: ControlPool,
    options: OutputOptions | None = None,
    made_by: str = "steval predict",
) -> WrittenPredictions:
    """Predict `request` from `pool` into the h5ad `path`: measured controls as they are, then predicted cells in order.

    `obs` has the columns of the data (perturbation, cell type, batch), `control_cell` (name of the cell that a predicted one
    started from) and `predicted`; `uns["steval"]` has scale, checkpoint digest, seed and every setting. Nothing is under
    `path` until all is written. Raises `ConfigError` or `DataError` before anything is computed.
    """
    options = options or OutputOptions()
    started = time.perf_counter()
    include_controls = _whether_controls(options, request, predictor, pool)
    planned = predictor.plan(request, pool)
    record = _record(predictor, request, pool, options, include_controls, made_by)
    rows = _control_rows(pool, planned) if include_controls else np.empty(0, dtype=np.int64)
    table = _ObsTable(pool)
    writer = CellWriter(path, output_names(predictor), record, layout=options.layout, compression=options.compression)
    with writer, progress_bar(request.num_cells, "predicting", "cell") as bar:
        for start in range(0, len(rows), CONTROL_ROWS):
            part = rows[start : start + CONTROL_ROWS]
            writer.append(pool.measured(part), table.controls(part))
        for block in predictor.predict_blocks(planned, pool):
            writer.append(clip(block.cells, options), table.predicted(block))
            bar.update(len(block.cells))
    written = WrittenPredictions(
        path=Path(path),
        num_cells=request.num_cells,
        num_controls=len(rows),
        num_perturbations=len({item.perturbation for item in request.items}),
        seconds=time.perf_counter() - started,
    )
    log.info(
        "predicted %d cells of %d perturbations in %.1f s (%.0f cells/s)",
        *(written.num_cells, written.num_perturbations, written.seconds, written.cells_per_second),
    )
    return written


def output_names(predictor: Predictor) -> list[str]:
    """Names of the predicted columns: the checkpoint's output genes, or `dim_0`, ... for an embedding."""
    genes = predictor.manifest.output_genes
    return list(genes) if genes is not None else [f"dim_{index}" for index in range(predictor.num_outputs)]


def clip(cells: np.ndarray, options: OutputOptions) -> np.ndarray:
    """`cells` limited to the options' range; unchanged where there is none (the network's ReLU keeps expression above 0)."""
    if options.clip_low is None and options.clip_high is None:
        return cells
    return np.clip(cells, options.clip_low, options.clip_high)


def _whether_controls(
    options: OutputOptions, request: PredictionRequest, predictor: Predictor, pool: ControlPool
) -> bool:
    if options.include_controls and not pool.has_measured:
        raise ConfigError(
            f"{pool.name} hold the network's input alone, so there is no measured expression to write beside the predictions; "
            "give a file with --controls, or leave controls out with --no-include-controls"
        )
    include = pool.has_measured if options.include_controls is None else options.include_controls
    control = predictor.manifest.control
    if include and any(item.perturbation == control for item in request.items):
        raise ConfigError(
            f"the request asks for the control {control!r} itself, whose measured cells are written beside the predictions; leave "
            "it out of the request, or write no measured cells with --no-include-controls"
        )
    return include


def _control_rows(pool: ControlPool, planned: list[PlannedSet]) -> np.ndarray:
    """All controls of the cell types that are predicted, in file order."""
    return np.flatnonzero(np.isin(pool.cell_types, sorted({one.cell_type for one in planned})))


def _record(
    predictor: Predictor,
    request: PredictionRequest,
    pool: ControlPool,
    options: OutputOptions,
    include_controls: bool,
    made_by: str,
) -> dict[str, Any]:
    manifest = predictor.manifest
    asked = {item.perturbation for item in request.items}
    details = {
        "checkpoint": str(predictor.path),
        "checkpoint_digest": predictor.digest,
        "seed": request.seed,
        "request_digest": request.digest(),
        "untrained": sorted(
            entry.name for entry in manifest.perturbations if not entry.trained and entry.name in asked
        ),
        "predictor": predictor.settings(),
        "controls": pool.notes,
        "output": {**options.as_dict(), "include_controls": include_controls, "kind": request.output},
    }
    return steval_record(
        made_by=made_by,
        scale=manifest.scale if manifest.output_genes is not None else "embedding",
        target_sum=manifest.target_sum,
        columns=pool.columns,
        details=details,
    )


class _ObsTable:
    """`obs` columns of the cells that are written."""

    def __init__(self, pool: ControlPool):
        self._pool = pool
        self._columns: Columns = pool.columns
        self._num_predicted = 0

    def controls(self, rows: np.ndarray) -> dict[str, Any]:
        pool = self._pool
        labels = np.full(len(rows), self._columns.control, dtype=object)
        return self._frame(pool.names[rows], labels, pool.cell_types[rows], pool.batches[rows], pool.names[rows], False)

    def predicted(self, block: PredictedBlock) -> dict[str, Any]:
        pool = self._pool
        sizes = [one.num_cells for one in block.sets]
        rows = np.concatenate([one.control_indices for one in block.sets])
        index = np.array([f"predicted_{self._num_predicted + i}" for i in range(len(rows))], dtype=object)
        self._num_predicted += len(rows)
        labels = np.repeat(np.array([one.perturbation for one in block.sets], dtype=object), sizes)
        return self._frame(index, labels, pool.cell_types[rows], pool.batches[rows], pool.names[rows], True)

    def _frame(
        self,
        index: np.ndarray,
        labels: np.ndarray,
        cell_types: np.ndarray,
        batches: np.ndarray,
        control_names: np.ndarray,
        predicted: bool,
    ) -> dict[str, Any]:
        frame: dict[str, Any] = {"index": index, self._columns.perturbation: labels}
        if self._columns.cell_type:
            frame[self._columns.cell_type] = cell_types
        if self._columns.batch:
            frame[self._columns.batch] = batches
        return frame | {"control_cell": control_names, "predicted": np.full(len(index), predicted)}
