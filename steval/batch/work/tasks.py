"""What workers do. Heavy rooms are imported inside, so that the runner stays light and a worker loads what it needs."""

import functools
import logging
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steval.batch.jobs import SCORE_DIR, BatchLayout, Job, Outcome, Stamp, Task
from steval.batch.places import local_copy
from steval.errors import CheckpointError, DataError, StevalError

if TYPE_CHECKING:
    import polars as pl

    from steval.checkpoints.manifest import Manifest
    from steval.data.cells.cellfile import CellFile
    from steval.predictor.engine import Predictor
    from steval.predictor.ensemble import Ensemble

logger = logging.getLogger(__name__)


def perform(task: Task, device: str = "cpu") -> Outcome:
    """Do a task; errors are part of the outcome, so that every engine sees them alike."""
    started = time.perf_counter()
    try:
        if not task.output.exists():
            _WORK[task.kind](task, device)
    except StevalError as error:
        return Outcome(task, time.perf_counter() - started, str(error), type(error).__name__)
    except Exception as error:  # noqa: BLE001 - whatever broke belongs to this job alone and is reported with it
        text = f"{type(error).__name__}: {error}"
        details = traceback.format_exc()
        return Outcome(task, time.perf_counter() - started, text, type(error).__name__, retriable=True, details=details)
    return Outcome(task, time.perf_counter() - started)


def chunk_path(task_dir: Path, kind: str, number: int, suffix: str) -> Path:
    """Where the part `number` of a job's work is."""
    return task_dir / f"{kind}-{number:05d}.{suffix}"


def chunk_ranges(count: int, size: int) -> list[tuple[int, int]]:
    """First and last+1 of each chunk."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _predict(task: Task, device: str) -> None:
    from steval.predictor.controls import cell_controls
    from steval.predictor.job import predict_into
    from steval.predictor.output import OutputOptions
    from steval.predictor.requests import PredictionRequest

    job = task.job
    predictor = _predictor(task, device)
    with _real(task) as real:
        pool = cell_controls(real, predictor.manifest, columns=job.columns, scale=job.scale)
        request = PredictionRequest(items=job.items[slice(*task.part)], seed=job.seed, decoding=job.decoding)
        predict_into(task.output, predictor, request, pool, OutputOptions(include_controls=False))


def _assemble(task: Task, device: str) -> None:
    from steval.batch.work.chunks import chunk_blocks, chunk_facts
    from steval.predictor.controls import cell_controls
    from steval.predictor.output import write_predictions
    from steval.predictor.plan import make_plan
    from steval.predictor.requests import PredictionRequest

    job = task.job
    manifest = _manifest(job, task.root)
    parts = BatchLayout(task.root).parts(job)
    ranges = chunk_ranges(len(job.items), job.chunk)
    chunks = [(chunk_path(parts, "predict", number, "h5ad"), part) for number, part in enumerate(ranges)]
    with _real(task) as real:
        pool = cell_controls(real, manifest, columns=job.columns, scale=job.scale)
        request = PredictionRequest(items=job.items, seed=job.seed, output=job.output, decoding=job.decoding)
        plan = make_plan(request, pool, manifest)
        with chunk_blocks(plan, chunks) as blocks:
            write_predictions(task.output, plan, blocks, chunk_facts(chunks, "steval batch"))


def _de(task: Task, device: str) -> None:
    from steval.data.files import atomic_path
    from steval.evaluator.cells.pair import Pair
    from steval.evaluator.measure.scan import de_chunk
    from steval.workflows.score import only_perturbations

    job = task.job
    columns = _columns(job)
    with _real(task) as opened:
        real = only_perturbations(opened, columns, job.perturbations if job.subset else ())
        pred = real if task.side == "real" else BatchLayout(task.root).predictions(job)
        if job.predictions is not None and task.side == "pred":
            pred = _file(job.predictions, task.root)
        pair = Pair.build(pred, real, columns, scale=job.scale)
        frame = de_chunk(pair, task.side, job.perturbations[slice(*task.part)], task.threads)
        if task.side == "pred":
            pair.stored_pred.file.close()
    with atomic_path(task.output) as partial:
        frame.write_parquet(partial)


def _score(task: Task, device: str) -> None:
    from steval.workflows.score import ScoreRequest, score_predictions

    job, layout = task.job, BatchLayout(task.root)
    request = ScoreRequest(
        preds=_file(job.predictions, task.root) if job.predictions else layout.predictions(job),
        checkpoint=_file(job.checkpoint, task.root, verify=False),
        adapter=_file(job.adapter, task.root, verify=False) if job.adapter else None,
        real=_file(job.real, task.root) if job.real else None,
        train=_file(job.train, task.root) if job.train else None,
        out=layout.directory(job) / SCORE_DIR,
        columns=job.columns,
        scale=job.scale,
        data_dirs=tuple(Path(directory) for directory in job.data_dirs),
        settings=job.score,
        threads=task.threads,
        cache_dir=layout.work / "cache",
        perturbations=job.perturbations if job.subset else (),
        de_real=_tables(layout.real_parts(job), job) if job.wants_de else None,
        de_pred=_tables(layout.parts(job), job) if job.wants_de else None,
    )
    score_predictions(request)


_WORK = {"predict": _predict, "assemble": _assemble, "de": _de, "score": _score}


def _tables(directory: Path, job: Job) -> "pl.DataFrame":
    import polars as pl

    numbers = range(len(chunk_ranges(len(job.perturbations), job.chunk)))
    return pl.concat(
        [pl.read_parquet(chunk_path(directory, "de", number, "parquet").read_bytes()) for number in numbers]
    )


@contextmanager
def _real(task: Task) -> "Generator[CellFile]":
    """The job's real cells, as they were when the batch was planned."""
    from steval.data.cells.cellfile import CellFile
    from steval.data.splits.selection import open_reference

    job = task.job
    if job.real is not None:
        cells = CellFile.open(_file(job.real, task.root))
    else:
        manifest = _manifest(job, task.root)
        assert manifest.evaluation is not None
        directories = [Path(directory) for directory in job.data_dirs]
        cells = open_reference(manifest.evaluation, directories, manifest.output_genes)
    with cells:
        yield cells


def _columns(job: Job) -> Any:
    from steval.data.columns import Columns

    return Columns.parse(job.columns.as_dict())


def _file(stamp: Stamp, root: Path, verify: bool = True) -> Path:
    """The file of a stamp on this machine; one that changed since the batch was planned is a `DataError`."""
    path = local_copy(stamp.place, BatchLayout(root).fetched)
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{stamp.place} was there when the batch was planned and is not any more") from error
    changed = status.st_size != stamp.num_bytes or stamp.modified_ns not in (0, status.st_mtime_ns)
    if verify and changed:
        raise DataError(f"{stamp.place} has changed since the batch was planned; run the batch again")
    return path


def _manifest(job: Job, root: Path) -> "Manifest":
    """The description of the checkpoint, or of what it makes with the adapter, as it was when the batch was planned."""
    from steval.checkpoints.adapters.record import read_record
    from steval.checkpoints.manifest import DIGEST_KEY, parse_metadata, read_header

    path = _file(job.checkpoint, root, verify=False)
    metadata = read_header(path).get("__metadata__") or {}
    manifest = parse_metadata(metadata, path)
    _require_same(job.checkpoint, metadata[DIGEST_KEY])
    if job.adapter is None:
        return manifest
    record, digest, _ = read_record(_file(job.adapter, root, verify=False))
    _require_same(job.adapter, digest)
    return record.manifest


def _require_same(stamp: Stamp, digest: str) -> None:
    if digest != stamp.sha256:
        raise CheckpointError(f"{stamp.place} has changed since the batch was planned; run the batch again")


def _predictor(task: Task, device: str) -> "Predictor | Ensemble":
    """The job's checkpoint, with its adapter where it has one, or several checkpoints as one."""
    import torch

    from steval.predictor.ensemble import Ensemble

    torch.set_num_threads(task.threads)
    job = task.job
    stamps = [*job.members, *([job.adapter] if job.adapter else [])]
    files = tuple((str(_file(stamp, task.root, verify=False)), stamp.modified_ns) for stamp in stamps)
    members = _loaded(files, job.adapter is not None, task.dtype, device)
    if members[0].digest != job.model_digest:
        _manifest(job, task.root)  # says which of the files has changed
        _require_same(job.checkpoint, members[0].digest)
    for stamp, member in zip(job.others, members[1:], strict=True):
        _require_same(stamp, member.digest)
    return members[0] if len(members) == 1 else Ensemble(members)


@functools.lru_cache(maxsize=1)
def _loaded(files: tuple[tuple[str, int], ...], adapted: bool, dtype: str, device: str) -> "tuple[Predictor, ...]":
    """The last checkpoints stay loaded, `files` with the times of their change: a worker mostly gets chunks of one job after
    another. `adapted`: a base and its adapter."""
    from steval.checkpoints.adapters.adapter_file import load_adapted
    from steval.checkpoints.store import load_checkpoint
    from steval.predictor.engine import Predictor

    paths = [Path(path) for path, _ in files]
    checkpoints = [load_adapted(*paths)] if adapted else [load_checkpoint(path) for path in paths]
    kind = "bf16" if dtype == "bf16" else "float32"
    return tuple(Predictor(checkpoint, device=device, dtype=kind) for checkpoint in checkpoints)
