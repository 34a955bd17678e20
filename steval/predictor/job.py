"""A prediction as one description: checkpoint, request, controls, options. Behind `steval predict` and batch jobs."""

import logging
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from steval.checkpoints.adapters.given import load_given
from steval.checkpoints.store import Checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.writer import H5AD_SUFFIXES
from steval.data.columns import resolve_columns, unique_labels
from steval.data.outputs import require_output
from steval.errors import ConfigError
from steval.model.config import Attention
from steval.predictor.asked import AskedPredictions, build_request
from steval.predictor.controls import ControlPool, checkpoint_controls, file_controls
from steval.predictor.engine import DEFAULT_BATCH_CELLS, Dtype, Predictor
from steval.predictor.ensemble import Ensemble
from steval.predictor.features import with_features
from steval.predictor.output import OutputOptions, WrittenPredictions, takes_sparse_cells, write_predictions
from steval.predictor.requests import PredictionRequest, PredictionVocabulary

log = logging.getLogger(__name__)


class PredictionJob(AskedPredictions):
    """What `steval predict` can be asked for."""

    checkpoint: Path
    others: tuple[Path, ...] = ()
    """More checkpoints, whose effects are averaged with those of `checkpoint`."""
    adapter: Path | None = None
    """An adapter to the checkpoint, which is its base then."""
    out: Path
    controls: Path | None = None
    """Control cells. None: those of an h5ad request that has some, else the checkpoint's own."""
    controls_scale: Literal["counts", "lognorm"] | None = None
    """Settles the scale of a controls file that does not declare it."""
    fill_missing: Literal["error", "zero"] = "error"
    trust_order: bool = False
    features: Path | None = None
    """Features of perturbations that the checkpoint does not know."""
    written: OutputOptions = OutputOptions()
    device: str = "auto"
    dtype: Dtype = "float32"
    batch_cells: PositiveInt = DEFAULT_BATCH_CELLS
    set_size: PositiveInt | None = None
    attention: Attention | None = None
    compile: bool = False

    @property
    def inputs(self) -> dict[str, Path | None]:
        """The files that are read, by what they are."""
        return {
            "the checkpoint": self.checkpoint, "--adapter": self.adapter, "--request": self.request,
            "--controls": self.controls, "--features": self.features,
            **{f"checkpoint {row}": path for row, path in enumerate(self.others, 2)},
        }  # fmt: skip


def run_job(job: PredictionJob) -> WrittenPredictions:
    """Do the job; everything that can be wrong with it is found before the first cell is computed."""
    require_output(job.out, job.inputs, suffixes=H5AD_SUFFIXES)
    if job.adapter is not None and job.others:
        raise ConfigError(
            "--adapter belongs to one base: to average several, merge each with steval merge and give the results"
        )
    checkpoint = _checkpoint(job, job.checkpoint)
    with open_controls(job, checkpoint) as pool:
        manifest = checkpoint.manifest
        vocabulary = PredictionVocabulary(
            manifest.perturbation_names, manifest.control, pool.cell_type_names, manifest.columns
        )
        request = build_request(job, vocabulary)
        predictor: Predictor | Ensemble = _predictor(job, checkpoint)
        del checkpoint  # in bf16 its float32 weights are not needed any more
        if job.others:
            predictor = Ensemble([predictor, *(_predictor(job, _checkpoint(job, path)) for path in job.others)])
        return predict_into(job.out, predictor, request, pool, job.written)


def _checkpoint(job: PredictionJob, path: Path) -> Checkpoint:
    checkpoint = load_given(path, job.adapter)
    return checkpoint if job.features is None else with_features(checkpoint, job.features)


def _predictor(job: PredictionJob, checkpoint: Checkpoint) -> Predictor:
    return Predictor(
        checkpoint,
        device=job.device,
        dtype=job.dtype,
        batch_cells=job.batch_cells,
        attention=job.attention,
        set_size=job.set_size,
        compile=job.compile,
    )


def predict_into(
    path: Path,
    predictor: Predictor | Ensemble,
    request: PredictionRequest,
    pool: ControlPool,
    options: OutputOptions | None = None,
    made_by: str = "steval predict",
) -> WrittenPredictions:
    """Predict `request` from `pool` into the h5ad `path`, see `output.write_predictions`."""
    plan, options = predictor.plan(request, pool), options or OutputOptions()
    blocks = predictor.blocks(plan, sparse=takes_sparse_cells(plan, options))
    return write_predictions(path, plan, blocks, predictor.facts_of(plan, made_by), options)


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
