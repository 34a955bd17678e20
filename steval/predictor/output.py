"""Predictions into an h5ad file, block by block as they are computed."""

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import FiniteFloat, PositiveFloat, model_validator

from steval.checkpoints.manifest import Manifest
from steval.data.cells.gathered import CellSink, GatheredCells
from steval.data.cells.record import steval_record
from steval.data.cells.writer import CellWriter, Compression, OutputLayout, require_finite
from steval.data.rows.csr import csr_of
from steval.errors import CheckpointError, ConfigError, NotFiniteError
from steval.logs import progress_bar
from steval.predictor.cells.counts import CountSampling, DepthTable, draw_counts, restore_counts, round_counts
from steval.predictor.cells.predicted import PredictedBlock, PredictionFacts
from steval.predictor.controls import control_mean
from steval.predictor.means import predicted_means
from steval.predictor.obs_table import ObsTable
from steval.predictor.plan import PredictionPlan
from steval.settings import Settings
from steval.wording import counted

log = logging.getLogger(__name__)

CONTROL_ROWS = 256


class OutputOptions(Settings):
    """How predictions are written."""

    scale: Literal["lognorm", "counts"] | None = None
    """`counts`: integers drawn from lognorm predictions at the controls' depth. None: the checkpoint's scale."""
    median_depth: PositiveFloat | None = None
    """Median total of the drawn counts. None: that of the controls, or the request's `median_umi`."""
    count_sampling: CountSampling = "rounded"
    """How counts come from a predicted cell, see `cells.counts`."""
    include_controls: bool | None = None
    """Measured control cells beside the predicted ones. None: where their expression is known."""
    layout: OutputLayout = "csr"
    compression: Compression = "none"
    clip_low: FiniteFloat | None = None
    """Smallest value; none: what the network gives (expression is never under 0, an embedding may be)."""
    clip_high: FiniteFloat | None = None
    """Largest value; none: no limit."""

    @model_validator(mode="after")
    def _range(self) -> "OutputOptions":
        if self.clip_low is not None and self.clip_high is not None and self.clip_low >= self.clip_high:
            raise ValueError(f"clip_low {self.clip_low:g} must be under clip_high {self.clip_high:g}")
        if self.median_depth is not None and self.scale != "counts":
            raise ValueError("median_depth is for scale counts")
        return self


def takes_sparse_cells(plan: PredictionPlan, options: OutputOptions) -> bool:
    """Whether values of the cells of `plan` that are zero are asked for by nothing between network and file."""
    is_clipped = options.clip_low is not None or options.clip_high is not None
    is_as_predicted = options.scale is None or (options.scale == "counts" and options.count_sampling == "rounded")
    return options.layout == "csr" and is_as_predicted and not is_clipped and plan.request.output != "mean"


@dataclass(frozen=True)
class ContextCells:
    """What is predicted from one set of control cells: all, or one context of several."""

    plan: PredictionPlan
    blocks: Iterable[PredictedBlock]
    """The plan's sets in their order; not touched before everything is checked."""
    context: str | None = None
    """Its name in the obs column `context`; None: there is no such column."""


@dataclass(frozen=True)
class WrittenPredictions:
    """What `write_predictions` did."""

    path: Path | None
    """None: they were gathered in memory."""
    num_cells: int
    """Cells that were predicted."""
    num_rows: int
    """Rows of the file."""
    num_controls: int
    """Measured cells among the rows; for mean profiles, cells behind the controls' profiles."""
    num_perturbations: int
    seconds: float
    """For prediction and writing, without loading the model."""

    @property
    def cells_per_second(self) -> float:
        return self.num_cells / self.seconds if self.seconds > 0 else float("inf")


def write_predictions(
    path: Path,
    plan: PredictionPlan,
    blocks: Iterable[PredictedBlock],
    facts: PredictionFacts,
    options: OutputOptions | None = None,
) -> WrittenPredictions:
    """Write the cells of `plan` into the h5ad `path`: measured controls as they are, then predicted cells in order.

    `blocks` holds the plan's sets in their order and is not touched before everything is checked; `facts` says who made them.

    `obs` has the columns of the data (perturbation, cell type, batch), `control_cell` (name of the cell that a predicted one
    started from) and `predicted`; `uns["steval"]` has scale, checkpoint digest, seed and every setting. For mean profiles
    there is a row for each item and one for the controls of each cell type, with `num_cells`. Nothing is under `path` until
    all is written. Raises `ConfigError` or `DataError` before anything is computed.
    """
    return write_contexts(path, [ContextCells(plan, blocks)], facts, options)


def write_contexts(
    path: Path, contexts: Sequence[ContextCells], facts: PredictionFacts, options: OutputOptions | None = None
) -> WrittenPredictions:
    """As `write_predictions`, the cells of several contexts of one checkpoint, one after the other."""
    options = options or OutputOptions()
    writer = CellWriter(
        path,
        output_names(contexts[0].plan.manifest),
        _checked_record(contexts, facts, options),
        layout=options.layout,
        compression=options.compression,
    )
    return _write_into(writer, Path(path), contexts, facts, options)


def gather_predictions(
    plan: PredictionPlan,
    blocks: Iterable[PredictedBlock],
    facts: PredictionFacts,
    options: OutputOptions | None = None,
) -> ad.AnnData:
    """The cells that `write_predictions` would write, in memory as float32 CSR; same errors."""
    options, contexts = options or OutputOptions(), [ContextCells(plan, blocks)]
    gathered = GatheredCells(output_names(plan.manifest), _checked_record(contexts, facts, options))
    _write_into(gathered, None, contexts, facts, options)
    return gathered.adata


def _checked_record(contexts: Sequence[ContextCells], facts: PredictionFacts, options: OutputOptions) -> dict[str, Any]:
    for one in contexts:
        _require_possible(options, one)
    return _record(contexts, facts, options)


def _includes_controls(one: ContextCells, options: OutputOptions) -> bool:
    if options.include_controls is None:
        return one.plan.pool.has_measured and one.context is None
    return options.include_controls


def _written_controls(one: ContextCells, options: OutputOptions) -> np.ndarray:
    """Rows of the controls that are written: all of the cell types that are predicted, in file order."""
    if not _includes_controls(one, options):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.isin(one.plan.pool.cell_types, one.plan.cell_types))


def _write_into(
    sink: CellSink,
    path: Path | None,
    contexts: Sequence[ContextCells],
    facts: PredictionFacts,
    options: OutputOptions,
) -> WrittenPredictions:
    started = time.perf_counter()
    plans = [one.plan for one in contexts]
    num_cells = sum(plan.num_cells for plan in plans)
    with (
        _of_checkpoint(facts),
        sink,
        progress_bar(num_cells, "predicting", "cell") as bar,
        ThreadPoolExecutor(1, "writing") as beside,
    ):
        # a block is written while the next one is computed; one at a time keeps memory flat
        writing: Future[None] | None = None
        for matrix, obs, num_predicted in _all_cells(contexts, options):
            cells = clip(matrix, options) if num_predicted else matrix
            if writing is not None:
                writing.result()
            writing = beside.submit(_append, sink, cells, obs, options.layout)
            bar.update(num_predicted)
        if writing is not None:
            writing.result()
    done = WrittenPredictions(
        path=path,
        num_cells=num_cells,
        num_rows=sink.num_cells,
        num_controls=sum(len(_written_controls(one, options)) for one in contexts),
        num_perturbations=len({item.perturbation for plan in plans for item in plan.items}),
        seconds=time.perf_counter() - started,
    )
    log.info(
        "predicted %s of %s in %.1f s (%.0f cells/s)",
        *(counted(done.num_cells, "cell"), counted(done.num_perturbations, "perturbation")),
        *(done.seconds, done.cells_per_second),
    )
    return done


@contextmanager
def _of_checkpoint(facts: PredictionFacts) -> Generator[None]:
    """Predicted values that are not finite are the checkpoint's fault."""
    try:
        yield
    except NotFiniteError as error:
        raise CheckpointError(
            f"{facts.checkpoint} predicts values that are not finite: {error}. Its weights have grown out of range (a training "
            "that diverged), or do not suit the number format; try --dtype float32, or take an earlier checkpoint of the run"
        ) from error


def _append(sink: CellSink, cells: np.ndarray | sp.csr_matrix, obs: pd.DataFrame, layout: OutputLayout) -> None:
    sink.append(csr_of(cells) if layout == "csr" else cells, obs)


def output_names(manifest: Manifest) -> list[str]:
    """Names of the predicted columns: the checkpoint's output genes, or `dim_0`, ... for an embedding."""
    genes = manifest.output_genes
    return list(genes) if genes is not None else [f"dim_{index}" for index in range(manifest.model.prediction_dim)]


def clip(cells: Any, options: OutputOptions) -> Any:
    """`cells` limited to the options' range; as they are where there is none."""
    if (options.clip_low is None and options.clip_high is None) or options.scale == "counts":
        return cells
    require_finite(cells, "predicted cells before they are clipped")  # a limit would hide an overflow
    return np.clip(cells, options.clip_low, options.clip_high)


_Written = Iterator[tuple[np.ndarray | sp.csr_matrix, pd.DataFrame, int]]
"""Matrix, its `obs`, and how many predicted cells it stands for (0: measured)."""


def _all_cells(contexts: Sequence[ContextCells], options: OutputOptions) -> _Written:
    num_predicted = 0
    for one in contexts:
        rows = _written_controls(one, options)
        if one.plan.request.output == "mean":
            yield from _means(one.plan, one.blocks, rows)
            continue
        yield from _cells(one, rows, num_predicted, options)
        num_predicted += one.plan.num_cells


def _cells(one: ContextCells, rows: np.ndarray, num_predicted: int, options: OutputOptions) -> _Written:
    pool = one.plan.pool
    table = ObsTable(pool, one.context, num_predicted)
    as_counts = options.scale == "counts" and one.plan.manifest.scale != "counts"
    depths = DepthTable(pool, options.median_depth)
    for start in range(0, len(rows), CONTROL_ROWS):
        part = rows[start : start + CONTROL_ROWS]
        measured = pool.measured(part)
        yield restore_counts(measured, pool.name) if as_counts else measured, table.controls(part), 0
    for block in one.blocks:
        matrix = _counts(block, depths, options) if as_counts else block.cells
        yield matrix, table.predicted(block), block.cells.shape[0]


def _counts(block: PredictedBlock, depths: DepthTable, options: OutputOptions) -> sp.csr_matrix:
    """Counts of each set, drawn by the set's own generator."""
    require_finite(block.cells, "predicted cells before their counts are drawn")
    limits = options.model_copy(update={"scale": None})
    if options.count_sampling == "rounded":
        starts = [planned.generator("counts").random(planned.num_cells) for planned in block.sets]
        totals = [depths.depths(planned) for planned in block.sets]
        return round_counts(csr_of(clip(block.cells, limits)), np.concatenate(totals), np.concatenate(starts))
    drawn = [
        sp.csr_matrix(draw_counts(clip(one.cells, limits), depths.depths(one.planned), one.planned.generator("counts")))
        for one in block.split()
    ]
    return sp.vstack(drawn, format="csr")


def _means(plan: PredictionPlan, blocks: Iterable[PredictedBlock], rows: np.ndarray) -> _Written:
    pool = plan.pool
    table = ObsTable(pool)
    for cell_type in sorted(set(pool.cell_types[rows].tolist())):
        members = rows[pool.cell_types[rows] == cell_type]
        obs = table.profile(pool.columns.control, cell_type, None, len(members))
        yield control_mean(pool, members)[None], obs, 0
    sets = (one for block in blocks for one in block.split())
    for mean in predicted_means(plan, sets):
        yield mean.mean[None], table.mean(mean), mean.num_cells


def _require_possible(options: OutputOptions, one: ContextCells) -> None:
    manifest, pool, request = one.plan.manifest, one.plan.pool, one.plan.request
    problems = []
    if one.context is not None and request.output == "mean":
        problems.append("mean profiles are of one context; leave out --contexts, or ask for --output cells")
    if options.include_controls and not pool.has_measured:
        problems.append(
            f"{pool.name} hold the network's input alone, so there is no measured expression to write beside the "
            "predictions; give a file with --controls, or leave controls out with --no-include-controls"
        )
    if _includes_controls(one, options) and any(item.perturbation == manifest.control for item in request.items):
        problems.append(
            f"the request asks for the control {manifest.control!r} itself, whose measured cells are written beside the "
            "predictions; leave it out of the request, or write no measured cells with --no-include-controls"
        )
    is_expression = manifest.output_genes is not None
    if options.scale == "lognorm" and (manifest.scale != "lognorm" or not is_expression):
        problems.append(f"the checkpoint predicts {manifest.scale if is_expression else 'an embedding'}, not lognorm")
    if options.scale == "counts" and manifest.scale != "counts":
        if manifest.scale != "lognorm" or not is_expression:
            problems.append("counts are drawn from lognorm predictions, which this checkpoint does not make")
        if not pool.has_measured:
            problems.append(f"counts are drawn at the controls' depth, and {pool.name} do not hold the predicted genes")
        if request.output == "mean":
            problems.append("mean profiles are of the checkpoint's scale; ask for counts with --output cells")
    if problems:
        raise ConfigError("these predictions cannot be written", problems)


def _record(contexts: Sequence[ContextCells], facts: PredictionFacts, options: OutputOptions) -> dict[str, Any]:
    plan = contexts[0].plan
    manifest, request = plan.manifest, plan.request
    asked = {item.perturbation for one in contexts for item in one.plan.items}
    is_divided = contexts[0].context is not None
    scale = (options.scale or manifest.scale) if manifest.output_genes is not None else "embedding"
    details = {
        "checkpoint": facts.checkpoint,
        "checkpoint_digest": facts.checkpoint_digest,
        "seed": request.seed,
        "request_digest": request.digest(),
        "untrained": sorted(
            entry.name for entry in manifest.perturbations if not entry.trained and entry.name in asked
        ),
        "predictor": dict(facts.engine),
        "controls": {str(one.context): one.plan.pool.notes for one in contexts} if is_divided else plan.pool.notes,
        "output": {
            **options.as_dict(),
            "include_controls": _includes_controls(contexts[0], options),
            "kind": request.output,
        },
    }
    if facts.expected_error is not None:
        details["expected_error"] = [dict(one) for one in facts.expected_error]
    return steval_record(
        made_by=facts.made_by,
        scale=scale,
        target_sum=manifest.target_sum if scale == "lognorm" else None,
        columns=plan.pool.columns,
        details=details,
    )
