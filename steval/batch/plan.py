"""From a manifest to jobs: everything is found, opened and checked before anything runs, all problems in one error."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steval.batch.jobs import BatchLayout, Job, Stamp
from steval.batch.places import is_url, local_copy
from steval.batch.results import one_line
from steval.batch.settings import BatchManifest, RequestEntry, out_dir
from steval.batch.sources import Digest, FoundCheckpoint, FoundData, Sources, result_versions
from steval.batch.work.estimates import DataSize
from steval.batch.work.fitness import DataView, look, misfits, prediction_misfits, training_misfits
from steval.data.columns import ColumnOptions
from steval.data.outputs import real_path
from steval.errors import ConfigError, DataError, StevalError
from steval.evaluator.metrics.profiles import resolve
from steval.predictor.request_files import read_request
from steval.predictor.requests import RequestItem
from steval.settings import json_digest
from steval.workflows.score import only_perturbations

MOST_PROBLEMS = 40
_MANIFEST_COPY = re.compile(r"manifest(-\d+-of-\d+)?\.yaml")
"""What a batch calls the copy of its manifest in its directory."""


@dataclass(frozen=True)
class BatchPlan:
    """The jobs of a manifest, in order: checkpoint by checkpoint, data set by data set."""

    manifest: BatchManifest
    jobs: tuple[Job, ...]
    layout: BatchLayout
    sizes: dict[str, DataSize]
    """Of each job's real cells, by job key."""


def plan_batch(manifest: BatchManifest, path: Path, digest: Digest, out: Path | None = None) -> BatchPlan:
    """Read and check everything that `manifest` (of the file `path`) names.

    `digest` gives the file at a place as it is now. Raises one `ConfigError` that lists every problem.
    """
    layout = BatchLayout(out or out_dir(manifest, path))
    if _MANIFEST_COPY.fullmatch(path.name) and real_path(path.parent) == real_path(layout.root):
        raise ConfigError(f"{path} would be replaced by the batch's own copy of it: name another directory with --out")
    sources = Sources(manifest, real_path(path.parent), layout.fetched, digest)
    return _Planner(manifest, sources, layout).plan()


class _Planner:
    def __init__(self, manifest: BatchManifest, sources: Sources, layout: BatchLayout):
        self._manifest, self._sources, self._layout = manifest, sources, layout
        self._views: dict[Any, DataView | StevalError] = {}
        self._versions = result_versions()
        self._problems = sources.problems

    def plan(self) -> BatchPlan:
        wants_de = self._wants_de()
        data_dirs = self._sources.data_dirs
        checkpoints, data_sets = self._sources.checkpoints(), self._sources.data_sets()
        jobs: list[Job] = []
        sizes: dict[str, DataSize] = {}
        for checkpoint in checkpoints:
            for data in data_sets:
                view = self._view(checkpoint, data)
                for request in self._manifest.requests if view is not None else ():
                    assert view is not None
                    job = self._job(checkpoint, data, request, view, wants_de, data_dirs)
                    if job is not None:
                        jobs.append(job)
                        sizes[job.key] = _size(job, checkpoint, view)
        self._require_apart(jobs)
        problems = list(dict.fromkeys(map(one_line, self._problems)))
        if problems:
            more = len(problems) - MOST_PROBLEMS
            shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
            raise ConfigError("the batch cannot run; nothing was started", shown)
        return BatchPlan(self._manifest, tuple(jobs), self._layout, sizes)

    def _require_apart(self, jobs: list[Job]) -> None:
        """Nothing that is read lies where parts of jobs are made and removed."""
        work = real_path(self._layout.work)
        stamps = [
            stamp
            for job in jobs
            for stamp in (*job.members, job.adapter, job.real, job.train, job.predictions)
            if stamp
        ]
        for place in sorted({stamp.place for stamp in stamps if not is_url(stamp.place)}):
            if real_path(place).is_relative_to(work):
                self._problems.append(f"{place} lies in {work}, where the batch makes and removes its parts; move it")

    def _wants_de(self) -> bool:
        scoring = self._manifest.score
        try:
            metrics = resolve(scoring.chosen)
        except ConfigError as error:
            self._problems.append(f"score: {error}")
            return False
        return scoring.by is None and any(metric.family == "de" for metric in metrics)

    def _view(self, checkpoint: FoundCheckpoint, data: FoundData) -> DataView | None:
        """The data as this checkpoint sees it, or None with the problem noted."""
        recorded = checkpoint.digest if data.path is None else ""
        place = (data.name, recorded, checkpoint.manifest.columns.digest())
        if place not in self._views:
            try:
                with self._sources.open_data(data, checkpoint) as cells:
                    self._views[place] = look(cells, checkpoint, data)
            except StevalError as error:
                self._views[place] = error
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                self._views[place] = DataError(f"cannot be read: {error}")
            self._check_training(data, self._views[place])
        found = self._views[place]
        if isinstance(found, StevalError):
            self._problems.append(f"data {data.name}: {found}")
            return None
        return found

    def _job(
        self,
        checkpoint: FoundCheckpoint,
        data: FoundData,
        request: RequestEntry,
        view: DataView,
        wants_de: bool,
        data_dirs: tuple[Path, ...],
    ) -> Job | None:
        where = f"{checkpoint.name} × {data.name} × {request.name}"
        try:
            items = self._items(checkpoint, request, view)
        except StevalError as error:
            self._problems.append(f"{where}: {error}")
            return None
        problems = misfits(checkpoint, request, view, items)
        self._problems += [f"{where}: {problem}" for problem in problems]
        subset = {item.perturbation for item in items} != {item.perturbation for item in view.items}
        predictions = None
        if request.predictions is not None:
            place = request.predictions.replace("{checkpoint}", checkpoint.name).replace("{data}", data.name)
            predictions = self._sources.stamp_file(place, where)
            names = [item.perturbation for item in items] if subset else []
            found = self._prediction_problems(checkpoint, data, predictions, view, names) if predictions else []
            self._problems += [f"{where}: {problem}" for problem in found]
            problems += found if predictions else ["no predictions"]
        if problems:
            return None
        scores = request.do != "predict"
        values = {
            "checkpoint_name": checkpoint.name,
            "data_name": data.name,
            "request_name": request.name,
            "checkpoint": checkpoint.stamp,
            "adapter": checkpoint.adapter,
            "others": tuple(one.stamp for one in checkpoint.others),
            "real": data.stamp,
            "train": data.train,
            "predictions": predictions,
            "do": request.do,
            "columns": ColumnOptions.parse(view.columns.as_dict()),
            "scale": data.entry.scale,
            "items": items,
            "subset": subset,
            "seed": request.seed,
            "output": request.output,
            "decoding": request.decoding,
            "score": self._manifest.score,
            "wants_de": wants_de and scores,
            "chunk": self._manifest.chunk,
            "data_dirs": tuple(str(directory) for directory in data_dirs),
        }
        return Job(**values, key=self._key(values, checkpoint), real_key=self._real_key(values, checkpoint))

    def _check_training(self, data: FoundData, view: DataView | StevalError) -> None:
        if data.train is None or self._manifest.score.metrics_only or isinstance(view, StevalError):
            return
        found = training_misfits(local_copy(data.train.place, self._layout.fetched), view)
        self._problems += [f"data {data.name}: train: {problem}" for problem in found]

    def _prediction_problems(
        self, checkpoint: FoundCheckpoint, data: FoundData, predictions: Stamp, view: DataView, names: list[str]
    ) -> list[str]:
        with self._sources.open_data(data, checkpoint) as cells:
            real = only_perturbations(cells, view.columns, names)
            path = local_copy(predictions.place, self._layout.fetched)
            return prediction_misfits(path, real, view.columns, data.entry.scale)

    def _items(self, checkpoint: FoundCheckpoint, request: RequestEntry, view: DataView) -> tuple[RequestItem, ...]:
        manifest = checkpoint.manifest
        if request.file is not None:
            file = read_request(
                (self._sources.base / request.file), known=manifest.perturbation_names, control=manifest.control
            )
            return file.items
        known = {item.perturbation for item in view.items}
        absent = [name for name in request.perturbations if name not in known]
        if absent:
            raise DataError(f"the data holds no cells of {', '.join(absent[:10])}")
        chosen = set(request.perturbations) or known
        items = tuple(item for item in view.items if item.perturbation in chosen)
        if request.cells is not None:
            items = tuple(item.model_copy(update={"num_cells": request.cells}) for item in items)
        return items

    def _key(self, values: dict[str, Any], checkpoint: FoundCheckpoint) -> str:
        """Digest of checkpoint, data, request, parameters and versions; paths do not count, contents do."""
        plain = _plain(values)
        del plain["data_dirs"]
        if plain["adapter"] is None:
            del plain["adapter"]  # a job without one is what it was before there were any
        if values["do"] == "predict":
            del plain["score"]
        if not values["others"]:
            del plain["others"]
        running = self._manifest.run
        plain["dtype"], plain["device"] = running.dtype, "gpu" if running.gpus else "cpu"
        return json_digest({**plain, "versions": self._versions})

    def _real_key(self, values: dict[str, Any], checkpoint: FoundCheckpoint) -> str:
        recorded = checkpoint.digest if values["real"] is None else None
        names = sorted({item.perturbation for item in values["items"]})
        parts = _plain({name: values[name] for name in ("real", "columns", "scale", "chunk", "subset")})
        return json_digest({**parts, "recorded": recorded, "names": names, "versions": self._versions})


def _size(job: Job, checkpoint: FoundCheckpoint, view: DataView) -> DataSize:
    names = set(job.perturbations)
    perturbed = sum(item.num_cells for item in view.items)
    return DataSize(
        num_perturbed=sum(item.num_cells for item in view.items if item.perturbation in names),
        num_controls=view.num_cells - perturbed,
        num_genes=len(view.genes),
        has_training=job.train is not None or checkpoint.manifest.training_data is not None,
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON types, a file as its digest."""
    return {
        name: value.sha256
        if isinstance(value, Stamp)
        else [stamp.sha256 for stamp in value]
        if name == "others"
        else [item.as_dict() for item in value]
        if name == "items"
        else value.as_dict()
        if hasattr(value, "as_dict")
        else value
        for name, value in values.items()
    }
