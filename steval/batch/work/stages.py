"""The tasks of a job, in stages: the tasks of one stage may run at the same time, and a stage needs the one before."""

from steval.batch.jobs import SCORE_DIR, BatchLayout, Job, Kind, Task
from steval.batch.plan import BatchPlan
from steval.batch.work.estimates import Sizes, limit_seconds
from steval.batch.work.tasks import chunk_path, chunk_ranges


def job_stages(job: Job, plan: BatchPlan) -> list[list[Task]]:
    """Predict in chunks (and DE of the real side in chunks), put together, DE of the predicted side, score."""
    make = _Maker(job, plan)
    stages: list[list[Task]] = []
    predicts = job.do != "score"
    first = make.chunks("predict") if predicts else []
    if job.wants_de:
        first += make.chunks("de", "real")
    stages.append(first)
    if predicts:
        stages.append([make.whole("assemble")])
    if job.wants_de:
        stages.append(make.chunks("de", "pred"))
    if job.do != "predict":
        stages.append([make.whole("score")])
    return [stage for stage in stages if stage]


class _Maker:
    def __init__(self, job: Job, plan: BatchPlan):
        self._job, self._layout, self._run = job, plan.layout, plan.manifest.run
        self._sizes = Sizes.of(job, plan.sizes[job.key])

    def chunks(self, kind: Kind, side: str = "pred") -> list[Task]:
        job, layout = self._job, self._layout
        count = len(job.items) if kind == "predict" else len(job.perturbations)
        directory = layout.real_parts(job) if side == "real" else layout.parts(job)
        suffix = "h5ad" if kind == "predict" else "parquet"
        return [
            self._task(
                kind,
                chunk_path(directory, kind, number, suffix),
                layout,
                part=part,
                side=side,
                share=(part[1] - part[0]) / count,
            )
            for number, part in enumerate(chunk_ranges(count, job.chunk))
        ]

    def whole(self, kind: Kind) -> Task:
        layout, job = self._layout, self._job
        output = layout.directory(job) / SCORE_DIR if kind == "score" else layout.predictions(job)
        return self._task(kind, output, layout)

    def _task(
        self,
        kind: Kind,
        output,
        layout: BatchLayout,
        part: tuple[int, int] = (0, 0),
        side: str = "pred",
        share: float = 1.0,
    ) -> Task:
        units = self._sizes.units(kind, share)
        return Task(
            kind=kind,
            job=self._job,
            output=output,
            root=layout.root,
            threads=self._run.threads,
            memory=self._sizes.memory(kind),
            units=units,
            gpus=self._run.gpus if kind == "predict" else 0.0,
            dtype=self._run.dtype,
            part=part,
            side="real" if side == "real" else "pred",
            seconds=self._run.task_seconds or limit_seconds(kind, units),
        )
