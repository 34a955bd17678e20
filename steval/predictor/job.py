"""A prediction as one description: checkpoint, request, controls, options. Behind `steval predict` and batch jobs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from steval.checkpoints.adapters.given import load_given
from steval.checkpoints.store import Checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.writer import H5AD_SUFFIXES
from steval.data.columns import resolve_columns, unique_labels
from steval.data.outputs import require_output
from steval.errors import ConfigError
from steval.limits import Count, Width
from steval.model.config import Attention
from steval.predictor.asked import AskedPredictions, build_request
from steval.predictor.cells.predicted import PredictionFacts
from steval.predictor.contexts import context_files
from steval.predictor.controls import ControlPool, checkpoint_controls, file_controls
from steval.predictor.engine import DEFAULT_BATCH_CELLS, Dtype, Predictor
from steval.predictor.ensemble import Ensemble
from steval.predictor.features import with_features
from steval.predictor.output import ContextCells, OutputOptions, WrittenPredictions, takes_sparse_cells, write_contexts
from steval.predictor.requests import PredictionRequest, PredictionVocabulary
from steval.wording import counted

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
    contexts: tuple[str, ...] = ()
    """Several contexts, each with its control file: `NAME=FILE`, or the directory of a prepared control bundle."""
    controls_scale: Literal["counts", "lognorm"] | None = None
    """Settles the scale of a controls file that does not declare it."""
    fill_missing: Literal["error", "zero"] = "error"
    trust_order: bool = False
    features: Path | None = None
    """Features of perturbations that the checkpoint does not know."""
    written: OutputOptions = OutputOptions()
    device: str = "auto"
    dtype: Dtype = "float32"
    batch_cells: Width = DEFAULT_BATCH_CELLS
    set_size: Count | None = None
    attention: Attention | None = None
    compile: bool = False

    @property
    def inputs(self) -> dict[str, Path | None]:
        """The files that are read, by what they are."""
        return {
            "the checkpoint": self.checkpoint, "--adapter": self.adapter, "--request": self.request,
            "--controls": self.controls, "--features": self.features,
            **{f"checkpoint {row}": path for row, path in enumerate(self.others, 2)},
            **{f"--contexts {name}": path for name, path in context_files(self.contexts).items()},
        }  # fmt: skip

    @model_validator(mode="after")
    def _one_source(self) -> "PredictionJob":
        if self.contexts and self.controls is not None:
            raise ValueError("--contexts names the control cells of each context; leave out --controls")
        return self


def run_job(job: PredictionJob) -> WrittenPredictions:
    """Do the job; everything that can be wrong with it is found before the first cell is computed."""
    require_output(job.out, job.inputs, suffixes=H5AD_SUFFIXES)
    if job.adapter is not None and job.others:
        raise ConfigError(
            "--adapter belongs to one base: to average several, merge each with steval merge and give the results"
        )
    checkpoint = _checkpoint(job, job.checkpoint)
    with ExitStack() as stack:
        pools = _open_pools(job, checkpoint, stack)
        requests = {name: build_request(job, _vocabulary(checkpoint, pool)) for name, pool in pools.items()}
        predictor: Predictor | Ensemble = _predictor(job, checkpoint)
        del checkpoint  # in bf16 its float32 weights are not needed any more
        if job.others:
            predictor = Ensemble([predictor, *(_predictor(job, _checkpoint(job, path)) for path in job.others)])
        contexts = [_context_cells(predictor, requests[name], pool, job.written, name) for name, pool in pools.items()]
        return write_contexts(job.out, contexts, _facts(predictor, contexts), job.written)


def _facts(predictor: Predictor | Ensemble, contexts: Sequence[ContextCells]) -> PredictionFacts:
    """Where the cells come from, with what is expected of each context's."""
    each = [predictor.facts_of(one.plan, "steval predict") for one in contexts]
    expected = [line for one in each for line in one.expected_error or ()]
    return replace(each[0], expected_error=expected) if expected else each[0]


def _open_pools(job: PredictionJob, checkpoint: Checkpoint, stack: ExitStack) -> dict[str | None, ControlPool]:
    """The control cells of each context; under None where there is one without a name."""
    if not job.contexts:
        return {None: stack.enter_context(open_controls(job, checkpoint))}
    files = context_files(job.contexts)
    return {name: stack.enter_context(_of_file(path, job, checkpoint)) for name, path in files.items()}


def _vocabulary(checkpoint: Checkpoint, pool: ControlPool) -> PredictionVocabulary:
    manifest = checkpoint.manifest
    return PredictionVocabulary(manifest.perturbation_names, manifest.control, pool.cell_type_names, manifest.columns)


def _context_cells(
    predictor: Predictor | Ensemble,
    request: PredictionRequest,
    pool: ControlPool,
    options: OutputOptions,
    context: str | None,
) -> ContextCells:
    plan = predictor.plan(request, pool)
    return ContextCells(plan, predictor.blocks(plan, sparse=takes_sparse_cells(plan, options)), context)


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
    options = options or OutputOptions()
    cells = _context_cells(predictor, request, pool, options, None)
    return write_contexts(path, [cells], predictor.facts_of(cells.plan, made_by), options)


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
        pool = _of_file(path, job, checkpoint)
    log.info("predictions start from %s (%s)", pool.name, counted(len(pool), "cell"))
    return pool


def _of_file(path: Path, job: PredictionJob, checkpoint: Checkpoint) -> ControlPool:
    return file_controls(
        path,
        checkpoint.manifest,
        columns=job.columns,
        scale=job.controls_scale,
        fill_missing=job.fill_missing,
        trust_order=job.trust_order,
    )


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
