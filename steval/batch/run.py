"""The front door: run a manifest, show its plan, or gather what shards have done."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from steval.batch.engines.base import Engine
from steval.batch.jobs import Job
from steval.batch.leaderboard import NAME, build_leaderboard, remove_work, write_leaderboard
from steval.batch.ledger import Ledger, ledger_path
from steval.batch.plan import BatchPlan, plan_batch
from steval.batch.results import is_whole
from steval.batch.runner import RunCounts, Runner
from steval.batch.settings import BatchManifest, Running, out_dir
from steval.batch.work.estimates import estimate_seconds
from steval.batch.work.stages import job_stages
from steval.data.files import atomic_path
from steval.errors import ConfigError, StevalError
from steval.machine import num_cores
from steval.wording import counted, whole_number

logger = logging.getLogger(__name__)
Shard = tuple[int, int]


@dataclass(frozen=True)
class BatchResult:
    """What a run left."""

    directory: Path
    report: Path
    """The leaderboard's HTML file."""
    leaderboard: pl.DataFrame
    counts: RunCounts

    @property
    def problems(self) -> list[str]:
        """A line for each job that has no result."""
        lacking = self.leaderboard.filter(pl.col("state").is_in(["failed", "missing"]))
        return [
            f"{row['checkpoint']} × {row['data']} × {row['request']}: {row['error'] or row['state']}"
            for row in lacking.iter_rows(named=True)
        ]


@dataclass(frozen=True)
class JobOutline:
    """One line of a dry run."""

    job: Job
    is_done: bool
    num_tasks: int
    """Tasks that are left."""
    memory: int
    """Bytes of the largest task."""
    output_bytes: int
    """Rough size of the predictions."""
    seconds: float
    """Rough time of the tasks that are left, on all workers."""


@dataclass(frozen=True)
class Outline:
    """A plan with sizes."""

    plan: BatchPlan
    jobs: list[JobOutline]
    workers: int
    measured: int
    """Finished tasks in the ledger that the estimate rests on; 0: a guess."""

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.jobs)


def run_batch(path: Path, manifest: BatchManifest, *, shard: Shard | None = None) -> BatchResult:
    """Run the jobs of `manifest` (of the file `path`) that are not done yet, or those of one shard.

    Jobs that fail are recorded and the rest goes on; see `BatchResult.problems`. Raises `ConfigError` before anything runs
    where the manifest cannot be run as it is.
    """
    root = out_dir(manifest, path)
    is_new = not root.exists()
    with Ledger(ledger_path(root, shard)) as ledger:
        try:
            plan = plan_batch(manifest, path, lambda place: ledger.stamp(place, root / "work" / "fetched"))
        except StevalError:
            if is_new:  # nothing was started, so nothing is left
                shutil.rmtree(root)
            raise
        jobs = _shard(plan.jobs, shard)
        name = "manifest" if shard is None else f"manifest-{shard[0]}-of-{shard[1]}"
        with atomic_path(root / f"{name}.yaml") as partial:
            partial.write_text(manifest.to_yaml(), encoding="utf-8")
        unfinished = [job for job in jobs if not is_whole(plan.layout, job)]
        logger.info(
            "%s, %d of them done before; results go to %s", counted(len(jobs), "job"), len(jobs) - len(unfinished), root
        )
        engine = make_engine(manifest.run) if unfinished else None
        try:
            counts = Runner(plan, jobs, ledger, engine).run() if engine else RunCounts(reused=len(jobs))
        finally:
            if engine is not None:
                engine.close()
    part = BatchPlan(plan.manifest, tuple(jobs), plan.layout, plan.sizes)
    name = NAME if shard is None else f"{NAME}-{shard[0]}-of-{shard[1]}"
    return _result(part, counts, name, clean=shard is None)


def collect(path: Path, manifest: BatchManifest) -> BatchResult:
    """The leaderboard of what is there, whoever made it; runs nothing."""
    root = out_dir(manifest, path)
    existing = ledger_path(root, None)
    with Ledger(existing if existing.exists() else ":memory:") as ledger:
        plan = plan_batch(manifest, path, lambda place: ledger.stamp(place, root / "work" / "fetched"))
    return _result(plan, RunCounts(), NAME, clean=True)


def outline(path: Path, manifest: BatchManifest, *, shard: Shard | None = None) -> Outline:
    """The plan of a manifest with sizes and an estimate; writes nothing."""
    root = out_dir(manifest, path)
    existing = ledger_path(root, shard)
    with Ledger(existing if existing.exists() else ":memory:") as ledger:
        plan = plan_batch(manifest, path, lambda place: ledger.stamp(place, root / "work" / "fetched"))
        rates = ledger.rates()
    workers = manifest.run.workers or max(1, num_cores() // manifest.run.threads)
    shared: set[Path] = set()
    outlines = []
    for job in _shard(plan.jobs, shard):
        done = is_whole(plan.layout, job)
        tasks = [] if done else [task for stage in job_stages(job, plan) for task in stage]
        tasks = [task for task in tasks if task.output not in shared and not task.output.exists()]
        shared |= {task.output for task in tasks}
        outlines.append(
            JobOutline(
                job=job,
                is_done=done,
                num_tasks=len(tasks),
                memory=max((task.memory for task in tasks), default=0),
                output_bytes=int(job.num_cells * plan.sizes[job.key].num_genes * 2.5) if job.do != "score" else 0,
                seconds=estimate_seconds(
                    [(task.kind, task.units) for task in tasks], rates, workers, manifest.run.threads
                ),
            )
        )
    return Outline(plan, outlines, workers, sum(count for _, count in rates.values()))


def make_engine(running: Running) -> Engine:
    """The engine that the manifest asks for."""
    if running.engine == "ray":
        from steval.batch.engines.ray import RayEngine

        return RayEngine(running)
    from steval.batch.engines.local import LocalEngine

    return LocalEngine(running)


def parse_shard(text: str | None) -> Shard | None:
    """`2/8` as (2, 8)."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    part, parts = whole_number(number), whole_number(count)
    if part is None or parts is None or not 1 <= part <= parts:
        raise ConfigError(f"--shard takes K/N with K from 1 to N, such as 2/8, got {text!r}")
    return part, parts


def _shard(jobs: tuple[Job, ...], shard: Shard | None) -> list[Job]:
    return list(jobs) if shard is None else list(jobs[shard[0] - 1 :: shard[1]])


def _result(plan: BatchPlan, counts: RunCounts, name: str, clean: bool) -> BatchResult:
    frame = build_leaderboard(plan)
    report = write_leaderboard(plan, frame, name)
    if clean and not frame["state"].is_in(["failed", "missing"]).any():
        remove_work(plan)
    return BatchResult(plan.layout.root, report, frame, counts)
