"""A submission to the challenge of 2026 (`.vcc`) as `vcc prep` makes it: raw counts in several contexts, without control cells.

A tar of `meta.json` (shape, contexts, and which perturbation list the cells were checked against) and `pred.h5ad.zst`: CSR float32
counts, `obs` with `target_gene` and `context`, the genes of the list in its order. Cells are read three times and never held.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import align
from steval.data.cells.stream import StreamedCells
from steval.data.challenge.panel import CONTEXT, CONTROL, PERTURBATION, Panel, read_panel
from steval.data.columns import ColumnOptions
from steval.data.labels import labelled_rows, labels_of
from steval.data.outputs import require_output
from steval.errors import DataError
from steval.evaluator.challenge.archive import write_archive
from steval.evaluator.challenge.packed import Submission
from steval.evaluator.challenge.refusals import ValueCheck, gene_problems, label_problems
from steval.logs import progress
from steval.wording import listed

BLOCK_CELLS = 2048
META_FORMAT = 1


def pack_counts(
    pred: Path,
    out: Path,
    *,
    genes: Path,
    perturbations: Path,
    contexts: Sequence[str] | None = None,
    columns: ColumnOptions | None = None,
    context_column: str = CONTEXT,
) -> Submission:
    """Write the predicted counts in the h5ad `pred` to the submission `out`, atomically.

    `genes` and `perturbations` are the organisers' lists (see `data.challenge.panel`), `contexts` those that must be there; None:
    as the manifest beside the lists says. Raises `DataError` with everything that `vcc prep` would refuse, all together.
    """
    inputs = {"the predictions": Path(pred), "the gene list": Path(genes), "the perturbation list": Path(perturbations)}
    require_output(out, inputs, suffixes=(".vcc",))
    panel = read_panel(Path(genes), Path(perturbations), contexts)
    with CellFile.open(Path(pred)) as opened:
        cells = _labelled(opened, columns, context_column)
        labels, places, problems = _labels(cells, columns, context_column, panel)
        problems += gene_problems(cells.genes, panel)
        check = ValueCheck(labels)
        check.read(_blocks(cells, "checking"))
        problems += check.problems()
        if problems or places is None:
            raise DataError(f"{pred} is no submission to the challenge of 2026", problems)
        alignment = align(cells.genes, panel.genes, what=str(pred))

        def blocks() -> Iterator[sp.csr_matrix]:
            for _, block in _blocks(cells, "packing"):
                yield alignment.apply(block)

        obs = pd.DataFrame({PERTURBATION: pd.Categorical(labels), CONTEXT: pd.Categorical(places)})
        obs.index = obs.index.astype(str)
        streamed = StreamedCells(obs, panel.genes, check.row_sizes, np.float32, blocks)
        meta = json.dumps(_meta(streamed, panel), sort_keys=True).encode()
        num_bytes = write_archive(Path(out), streamed, before={"meta.json": meta})
    names, numbers = np.unique(places.astype(str), return_counts=True)
    return Submission(
        path=Path(out), num_cells=len(labels), num_genes=len(panel.genes), num_perturbations=len(set(labels.tolist())),
        num_bytes=num_bytes, reordered=alignment.reordered, normalised=False, season=2026, num_values=streamed.num_values,
        contexts=dict(zip(names.tolist(), numbers.tolist(), strict=True)),
    )  # fmt: skip


def _labels(
    cells: CellFile, columns: ColumnOptions | None, context_column: str, panel: Panel
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Perturbation and context of each cell, and what is wrong with them; blank, or none, where a column or a label is missing."""
    options = columns or ColumnOptions()
    problems: list[str] = []
    labels = _column(cells, _perturbation_column(cells, options), "--pert-col", problems)
    contexts = _column(cells, context_column, "--context-col", problems)
    if labels is None:
        return np.full(cells.num_cells, "", dtype=object), contexts, problems
    control = options.control or (cells.record.get("columns") or {}).get("control") or CONTROL
    return labels, contexts, problems + label_problems(labels, contexts, panel, control)


def _labelled(cells: CellFile, columns: ColumnOptions | None, context_column: str) -> CellFile:
    """The cells with a perturbation and a context where `drop_unlabelled` says so, else all."""
    if columns is None or not columns.drop_unlabelled:
        return cells
    used = [name for name in (_perturbation_column(cells, columns), context_column) if name in cells.obs.columns]
    rows = labelled_rows(cells.obs, used, cells.name, drop=True)
    if rows is None:
        return cells
    chosen = cells.select(rows)
    chosen.name = cells.name
    return chosen


def _perturbation_column(cells: CellFile, options: ColumnOptions) -> str:
    return options.perturbation or (cells.record.get("columns") or {}).get("perturbation") or PERTURBATION


def _column(cells: CellFile, column: str, option: str, problems: list[str]) -> np.ndarray | None:
    if column not in cells.obs.columns:
        names = listed(cells.obs.columns, 30)
        problems.append(f"no obs column {column!r}; its columns are: {names} (name the right one with {option})")
        return None
    try:
        return labels_of(cells.obs, column, cells.name)
    except DataError as error:
        problems.append(str(error))
        return None


def _blocks(cells: CellFile, doing: str) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    starts = range(0, cells.num_cells, BLOCK_CELLS)
    for start in progress(starts, doing, "block"):
        rows = np.arange(start, min(start + BLOCK_CELLS, cells.num_cells))
        yield rows, cells.rows(rows, dtype=None)


def _meta(cells: StreamedCells, panel: Panel) -> dict[str, object]:
    meta = {
        "schema": META_FORMAT, "nnz": cells.num_values, "n_obs": len(cells.obs), "n_vars": len(cells.genes),
        "contexts": list(panel.contexts), "perts_fingerprint": panel.fingerprint, "panel_id": panel.name,
        "made_by": f"steval {version('steval')}",
    }  # fmt: skip
    return {name: value for name, value in meta.items() if value is not None}
