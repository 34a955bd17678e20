"""What a data set looks like to a checkpoint, and why a checkpoint cannot do a request on it: found before anything runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steval.batch.settings import RequestEntry
from steval.batch.sources import FoundCheckpoint, FoundData, check_scale
from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import align
from steval.data.cells.scale import Scale
from steval.data.columns import Columns, resolve_columns
from steval.data.labels import labels_of, labels_or, unique_labels
from steval.errors import DataError, StevalError
from steval.predictor.members import not_carried
from steval.predictor.request_files import items_of
from steval.predictor.requests import RequestItem, require_known
from steval.wording import counted


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


def look(cells: CellFile, checkpoint: FoundCheckpoint, data: FoundData) -> DataView:
    """The view of open cells; raises `DataError` where columns or scale do not fit."""
    columns = resolve_columns(
        cells.obs, cells.record, data.entry.columns, checkpoint.manifest.columns, source=str(cells.name)
    )
    check_scale(cells, data.entry.scale)
    cells = cells.labelled(columns, "perturbation")
    controls = cells.select(np.flatnonzero(labels_of(cells.obs, columns.perturbation, cells.name) == columns.control))
    types = labels_or(controls.labelled(columns, "cell_type").obs, columns.cell_type, "", cells.name)
    return DataView(
        columns=columns,
        items=tuple(items_of(cells, columns)),
        control_cell_types=frozenset(types),
        genes=tuple(cells.genes),
        obsm_keys=frozenset(cells.obsm_keys),
        num_cells=cells.num_cells,
    )


def misfits(
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
        for member in checkpoint.members:
            check(lambda known=member.manifest: require_known(names, known.perturbation_names, known.control))
        if checkpoint.others:
            problems += not_carried(
                [(str(one.path), one.manifest.decoding) for one in checkpoint.members], request.decoding
            )
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
        f"the checkpoint predicts {counted(len(output_genes), 'gene')} and the data has {len(view.genes)}; only the same genes are "
        f"scored ({len(extra)} are in the data alone, {len(lacking)} in the checkpoint alone). Make the data with: "
        "steval prepare --genes"
    ]


def training_misfits(path: Path, view: DataView) -> list[str]:
    """Why no baselines can be made of these training cells, as far as genes and labels tell."""
    columns = view.columns
    try:
        with CellFile.open(path) as cells:
            align(cells.genes, view.genes, what="its file")
            if columns.perturbation not in cells.obs:
                raise DataError(f"it has no obs column {columns.perturbation!r}")
            if columns.control not in unique_labels(cells.obs[columns.perturbation]):
                raise DataError(f"it has no control cells ({columns.control!r})")
    except StevalError as error:
        return [str(error)]
    return []


def prediction_misfits(path: Path, real: CellFile, columns: Columns, scale: Scale | None) -> list[str]:
    """Why predictions that were made before cannot be scored against `real`: labels, genes, scale of some cells."""
    from steval.evaluator.cells.pair import Pair

    try:
        with Pair.build(path, real, columns, scale=scale, names=("predictions", "data")):
            return []
    except StevalError as error:
        return [str(error)]
