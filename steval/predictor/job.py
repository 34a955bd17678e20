"""A prediction as one description: checkpoint, request, controls, options. Behind `steval predict` and batch jobs."""

import logging
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from steval.checkpoints.store import Checkpoint, load_checkpoint
from steval.data.cellfile import CellFile
from steval.data.columns import ColumnOptions, resolve_columns, unique_labels
from steval.errors import ConfigError
from steval.model.config import Attention
from steval.predictor.controls import ControlPool, checkpoint_controls, file_controls
from steval.predictor.engine import DEFAULT_BATCH_CELLS, Dtype, Predictor
from steval.predictor.features import with_features
from steval.predictor.output import OutputOptions, WrittenPredictions, write_predictions
from steval.predictor.request_files import read_request
from steval.predictor.requests import (
    DEFAULT_CELLS,
    LARGEST_SEED,
    Output,
    PredictionRequest,
    request_names,
    require_known,
    split_names,
)
from steval.settings import Settings

log = logging.getLogger(__name__)

ALL_CELL_TYPES = "all"


class PredictionJob(Settings):
    """What `steval predict` can be asked for; field names are the options'."""

    checkpoint: Path
    out: Path
    perturbations: tuple[str, ...] = ()
    """Names; each entry may be a comma-separated list."""
    request: Path | None = None
    """A CSV or TSV table, or an h5ad: predict as in this file."""
    all: bool = False
    """Every perturbation that the checkpoint knows; so also where nothing is asked for."""
    cells: PositiveInt = DEFAULT_CELLS
    """Cells of each perturbation, where the request has no numbers."""
    min_cells: PositiveInt | None = None
    max_cells: PositiveInt | None = None
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    output: Output = "cells"
    cell_types: tuple[str, ...] = ()
    """Predict in each of these; `all`: in each that the controls have; empty: in the only one."""
    batch: str | None = None
    """Start from controls of this batch alone."""
    by_batch: bool = False
    """With an h5ad request: each batch's cells start from controls of that batch."""
    controls: Path | None = None
    """Control cells. None: those of an h5ad request that has some, else the checkpoint's own."""
    controls_scale: Literal["counts", "lognorm"] | None = None
    """Settles the scale of a controls file that does not declare it."""
    fill_missing: Literal["error", "zero"] = "error"
    trust_order: bool = False
    features: Path | None = None
    """Features of perturbations that the checkpoint does not know."""
    columns: ColumnOptions = ColumnOptions()
    written: OutputOptions = OutputOptions()
    device: str = "auto"
    dtype: Dtype = "float32"
    batch_cells: PositiveInt = DEFAULT_BATCH_CELLS
    set_size: PositiveInt | None = None
    attention: Attention | None = None
    compile: bool = False

    @model_validator(mode="after")
    def _one_request(self) -> "PredictionJob":
        given = [name for name in ("perturbations", "request", "all") if getattr(self, name)]
        problems = []
        if len(given) > 1:
            problems.append(f"say what to predict in one way, got {' and '.join('--' + name for name in given)}")
        if self.by_batch and (self.request is None or self.request.suffix != ".h5ad"):
            problems.append(
                "--by-batch divides the cells of an h5ad --request by its batches; there is no such request"
            )
        if self.by_batch and self.batch is not None:
            problems.append("--by-batch and --batch contradict each other")
        if self.cell_types and self.request is not None:
            problems.append(
                "--cell-type goes with --perturbations and --all; a request file has a cell_type column for it"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def run_job(job: PredictionJob) -> WrittenPredictions:
    """Do the job; everything that can be wrong with it is found before the first cell is computed."""
    checkpoint = load_checkpoint(job.checkpoint)
    if job.features is not None:
        checkpoint = with_features(checkpoint, job.features)
    with open_controls(job, checkpoint) as pool:
        request = build_request(job, checkpoint, pool)
        predictor = Predictor(
            checkpoint,
            device=job.device,
            dtype=job.dtype,
            batch_cells=job.batch_cells,
            attention=job.attention,
            set_size=job.set_size,
            compile=job.compile,
        )
        del checkpoint  # in bf16 its float32 weights are not needed any more
        return write_predictions(job.out, predictor, request, pool, job.written)


def build_request(job: PredictionJob, checkpoint: Checkpoint, pool: ControlPool) -> PredictionRequest:
    """The request that the job describes, checked against the checkpoint's vocabulary."""
    manifest = checkpoint.manifest
    known = [name for name in manifest.perturbation_names if name != manifest.control]
    if job.request is not None:
        request = read_request(
            job.request,
            known=manifest.perturbation_names,
            control=manifest.control,
            num_cells=job.cells,
            seed=job.seed,
            batch=job.batch,
            output=job.output,
            columns=job.columns,
            recorded=manifest.columns,
            by_batch=job.by_batch,
        )
    else:
        asked = [name for text in job.perturbations for name in split_names(text, known)]
        names = known if job.all or not job.perturbations else asked
        require_known(names, manifest.perturbation_names, manifest.control)
        cell_types = pool.cell_type_names if job.cell_types == (ALL_CELL_TYPES,) else job.cell_types
        request = request_names(
            names, job.cells, seed=job.seed, cell_types=cell_types or (None,), batch=job.batch, output=job.output
        )
    return request.with_limits(job.min_cells, job.max_cells)


def open_controls(job: PredictionJob, checkpoint: Checkpoint) -> ControlPool:
    """The control pool of the job; says on the log which it is."""
    path = job.controls
    if path is None and job.request is not None and job.request.suffix == ".h5ad":
        path = job.request if _has_controls(job, checkpoint) else None
    if path is None:
        if job.columns.control not in (None, checkpoint.manifest.control):
            raise ConfigError(
                f"--control {job.columns.control!r} names the controls of a file, but no file with control cells is given"
            )
        pool = checkpoint_controls(checkpoint)
    else:
        pool = file_controls(
            path,
            checkpoint.manifest,
            columns=job.columns,
            scale=job.controls_scale,
            fill_missing=job.fill_missing,
            trust_order=job.trust_order,
        )
    log.info("predictions start from %s (%d cells)", pool.name, len(pool))
    return pool


def _has_controls(job: PredictionJob, checkpoint: Checkpoint) -> bool:
    assert job.request is not None
    with CellFile.open(job.request) as cells:
        columns = resolve_columns(
            cells.obs,
            cells.record,
            job.columns,
            checkpoint.manifest.columns,
            require_control=False,
            source=str(job.request),
        )
        return columns.control in unique_labels(cells.obs[columns.perturbation])
