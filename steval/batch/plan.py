"""From a manifest to jobs: everything is found, opened and checked before anything runs, all problems in one error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steval.batch.jobs import Job, Layout, Stamp
from steval.batch.settings import BatchManifest, RequestEntry, out_dir
from steval.batch.sources import Digest, FoundCheckpoint, FoundData, Sources, check_scale, result_versions
from steval.data.cellfile import CellFile
from steval.data.columns import ColumnOptions, Columns, column_or_single, resolve_columns
from steval.data.genes import align
from steval.errors import ConfigError, DataError, StevalError
from steval.evaluator.profiles import resolve
from steval.predictor.request_files import items_like, read_request
from steval.predictor.requests import RequestItem, require_known
from steval.settings import json_digest

MOST_PROBLEMS = 40


@dataclass(frozen=True)
class DataView:
    """What planning needs of a data set once it is open."""

    columns: Columns
    items: tuple[RequestItem, ...]
    """Every perturbation and cell type with its number of cells."""
    control_cell_types: frozenset[str]
    genes: tuple[str, ...]
    obsm_keys: frozenset[str]
    num_cells: int


@dataclass(frozen=True)
class Plan:
    """The jobs of a manifest, in order: checkpoint by checkpoint, data set by data set."""

    manifest: BatchManifest
    jobs: tuple[Job, ...]
    layout: Layout
    num_cells: dict[str, int]
    """Cells of each job's real data, by job key."""
    num_genes: dict[str, int]
    """Genes of each job's predictions, by job key."""


def make_plan(manifest: BatchManifest, path: Path, digest: Digest, out: Path | None = None) -> Plan:
    """Read and check everything that `manifest` (of the file `path`) names.

    `digest` gives the file at a place as it is now. Raises one `ConfigError` that lists every problem.
    """
    layout = Layout(out or out_dir(manifest, path))
    sources = Sources(manifest, path.parent.resolve(), layout.fetched, digest)
    return _Planner(manifest, sources, layout).plan()


class _Planner:
    def __init__(self, manifest: BatchManifest, sources: Sources, layout: Layout):
        self._manifest, self._sources, self._layout = manifest, sources, layout
        self._views: dict[Any, DataView | StevalError] = {}
        self._versions = result_versions()
        self._problems = sources.problems

    def plan(self) -> Plan:
        wants_de = self._wants_de()
        data_dirs = self._sources.data_dirs
        checkpoints, data_sets = self._sources.checkpoints(), self._sources.data_sets()
        jobs: list[Job] = []
        num_cells: dict[str, int] = {}
        num_genes: dict[str, int] = {}
        for checkpoint in checkpoints:
            for data in data_sets:
                view = self._view(checkpoint, data)
                for request in self._manifest.requests if view is not None else ():
                    assert view is not None
                    job = self._job(checkpoint, data, request, view, wants_de, data_dirs)
                    if job is not None:
                        jobs.append(job)
                        num_cells[job.key], num_genes[job.key] = view.num_cells, len(view.genes)
        problems = list(dict.fromkeys(self._problems))
        if problems:
            more = len(problems) - MOST_PROBLEMS
            shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
            raise ConfigError("the batch cannot run; nothing was started", shown)
        return Plan(self._manifest, tuple(jobs), self._layout, num_cells, num_genes)

    def _wants_de(self) -> bool:
        scoring = self._manifest.score
        try:
            metrics = resolve(scoring.metrics or scoring.profile)
        except ConfigError as error:
            self._problems.append(f"score: {error}")
            return False
        return scoring.by is None and any(metric.family == "de" for metric in metrics)

    def _view(self, checkpoint: FoundCheckpoint, data: FoundData) -> DataView | None:
        """The data as this checkpoint sees it, or None with the problem noted."""
        recorded = checkpoint.stamp.sha256 if data.path is None else ""
        place = (data.name, recorded, checkpoint.manifest.columns.digest())
        if place not in self._views:
            try:
                with self._sources.open_data(data, checkpoint) as cells:
                    self._views[place] = _look(cells, checkpoint, data)
            except StevalError as error:
                self._views[place] = error
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                self._views[place] = DataError(f"cannot be read: {error}")
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
        problems = _misfits(checkpoint, request, view, items)
        self._problems += [f"{where}: {problem}" for problem in problems]
        predictions = None
        if request.predictions is not None:
            place = request.predictions.replace("{checkpoint}", checkpoint.name).replace("{data}", data.name)
            predictions = self._sources.stamp_file(place, where)
            problems += [] if predictions else ["no predictions"]
        if problems:
            return None
        scores = request.do != "predict"
        values = {
            "checkpoint_name": checkpoint.name,
            "data_name": data.name,
            "request_name": request.name,
            "checkpoint": checkpoint.stamp,
            "real": data.stamp,
            "train": data.train,
            "predictions": predictions,
            "do": request.do,
            "columns": ColumnOptions.parse(view.columns.as_dict()),
            "scale": data.entry.scale,
            "items": items,
            "subset": {item.perturbation for item in items} != {item.perturbation for item in view.items},
            "seed": request.seed,
            "output": request.output,
            "score": self._manifest.score,
            "wants_de": wants_de and scores,
            "chunk": self._manifest.chunk,
            "data_dirs": tuple(str(directory) for directory in data_dirs),
        }
        return Job(**values, key=self._key(values, checkpoint), real_key=self._real_key(values))

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
        if values["do"] == "predict":
            del plain["score"]
        running = self._manifest.run
        plain["dtype"], plain["device"] = running.dtype, "gpu" if running.gpus else "cpu"
        return json_digest({**plain, "versions": self._versions})

    def _real_key(self, values: dict[str, Any]) -> str:
        recorded = values["checkpoint"].sha256 if values["real"] is None else None
        names = sorted({item.perturbation for item in values["items"]})
        parts = _plain({name: values[name] for name in ("real", "columns", "scale", "chunk", "subset")})
        return json_digest({**parts, "recorded": recorded, "names": names, "versions": self._versions})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON types, a file as its digest."""
    return {
        name: value.sha256
        if isinstance(value, Stamp)
        else [item.as_dict() for item in value]
        if name == "items"
        else value.as_dict()
        if hasattr(value, "as_dict")
        else value
        for name, value in values.items()
    }


def _look(cells: CellFile, checkpoint: FoundCheckpoint, data: FoundData) -> DataView:
    columns = resolve_columns(
        cells.obs, cells.record, data.entry.columns, checkpoint.manifest.columns, source=str(cells.name)
    )
    check_scale(cells, data.entry.scale)
    labels = cells.obs[columns.perturbation].astype(str)
    types = column_or_single(cells.obs, columns.cell_type, "")
    return DataView(
        columns=columns,
        items=tuple(items_like(cells, ColumnOptions.parse(columns.as_dict()))),
        control_cell_types=frozenset(pd.unique(types[np.asarray(labels == columns.control)])),
        genes=tuple(cells.genes),
        obsm_keys=frozenset(cells.obsm_keys),
        num_cells=cells.num_cells,
    )


def _misfits(
    checkpoint: FoundCheckpoint, request: RequestEntry, view: DataView, items: tuple[RequestItem, ...]
) -> list[str]:
    """Why this checkpoint cannot do this request on this data."""
    manifest = checkpoint.manifest
    names = sorted({item.perturbation for item in items})
    problems: list[str] = []

    def check(test: Any) -> None:
        try:
            test()
        except StevalError as error:
            problems.append(str(error))

    if request.do != "score":
        check(lambda: require_known(names, manifest.perturbation_names, manifest.control))
        wanted = {item.cell_type for item in items if item.cell_type} - view.control_cell_types
        if wanted:
            problems.append(f"the data has no control cells of cell type {', '.join(sorted(wanted))} to start from")
        if manifest.model.input_is_genes and manifest.input_genes is not None:
            genes = manifest.input_genes
            check(lambda: align(view.genes, genes, what="the data"))
        elif not manifest.model.input_is_genes and manifest.model.input_key not in view.obsm_keys:
            problems.append(
                f"the data has no obsm matrix {manifest.model.input_key!r}, which the checkpoint takes; it has: "
                f"{', '.join(sorted(view.obsm_keys)) or '(none)'}"
            )
    if request.do == "both":
        problems += _unscorable(manifest.output_genes, view)
        absent = sorted(set(names) - {item.perturbation for item in view.items})
        if absent:
            problems.append(f"the data has no real cells to score {', '.join(absent[:10])} against")
    return problems


def _unscorable(output_genes: tuple[str, ...] | None, view: DataView) -> list[str]:
    if output_genes is None:
        return ["the checkpoint predicts an embedding, which is not scored; use do: predict"]
    extra, lacking = set(view.genes) - set(output_genes), set(output_genes) - set(view.genes)
    if not extra and not lacking:
        return []
    return [
        f"the checkpoint predicts {len(output_genes)} genes and the data has {len(view.genes)}; only the same genes are "
        f"scored ({len(extra)} are in the data alone, {len(lacking)} in the checkpoint alone). Make the data with: "
        "steval prepare --genes"
    ]
