"""`steval prepare`: a foreign h5ad becomes a lognorm file whose columns, genes and scale are declared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from steval.data.cells.cellfile import CellFile
from steval.data.cells.gathered import CellSink, GatheredCells
from steval.data.cells.genes import GeneAlignment, align, require_named, require_unique
from steval.data.cells.record import steval_record
from steval.data.cells.scale import (
    Scale,
    ScaleRecord,
    as_natural,
    is_whole,
    log_base,
    lognorm,
    resolve_scale,
    sample_indices,
)
from steval.data.cells.standard_columns import with_standard_columns
from steval.data.cells.variable_genes import MOST_CELLS, variable_genes
from steval.data.cells.writer import H5AD_SUFFIXES, CellWriter
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.labels import label_text, labels_of
from steval.data.outputs import real_path, require_output
from steval.errors import DataError
from steval.limits import Tally
from steval.logs import progress
from steval.settings import Settings
from steval.wording import counted, listed

BLOCK_CELLS = 4096
FAR = 5.0
"""`target_sum` and median depth further apart than this factor are worth a warning."""


class PrepareSettings(Settings):
    """What to keep and how to normalise."""

    target_sum: float = 10_000.0
    """Total of every cell before log1p."""
    min_counts: float = 0.0
    """Cells with a smaller total of counts are dropped."""
    min_genes: Tally = 0
    """Cells with fewer detected genes are dropped."""
    min_cells: Tally = 1
    """Perturbations with fewer cells (after the filters above) are dropped; the control never is."""
    gene_column: str | None = None
    """`var` column with the gene names; none: the index."""
    duplicate_genes: Literal["error", "sum"] = "error"
    """What to do with gene names that occur more than once (`sum` needs counts)."""
    hvg: Annotated[int, Field(ge=2, le=2**24)] | None = None
    """Keep this many highly variable genes (scanpy's `seurat` flavour on the lognorm cells); none: all genes."""
    cell_type_name: str | None = None
    """Cell type of all cells, for files without such a column."""
    fill_missing: Literal["error", "zero"] = "error"
    """Genes of a required list that the file lacks: an error, or zeros."""


@dataclass(frozen=True)
class PrepareReport:
    """What was found and what was done, in order."""

    path: Path | None
    """None: nothing was written."""
    num_cells: int
    num_genes: int
    perturbations: dict[str, int]
    found: dict[str, Any] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What may not be meant."""


def prepare(
    source: Path,
    out: Path,
    *,
    options: ColumnOptions | None = None,
    scale: Scale | None = None,
    genes: list[str] | None = None,
    settings: PrepareSettings | None = None,
) -> PrepareReport:
    """Read `source`, check it, write lognorm cells with steval's column names to `out` (atomically, in blocks).

    Counts are scaled to `target_sum` over the genes of the file and log-transformed; lognorm input keeps its values.
    With `genes` the output has exactly these, in this order. Raises `DataError` for a broken file, column, scale or gene list.
    """
    require_output(out, {"the input": source}, suffixes=H5AD_SUFFIXES)
    with CellFile.open(source) as cells:
        return prepare_cells(
            cells, str(real_path(source)), out, options=options, scale=scale, genes=genes, settings=settings
        )


def prepare_cells(
    cells: CellFile,
    source: str,
    out: Path,
    *,
    options: ColumnOptions | None = None,
    scale: Scale | None = None,
    genes: list[str] | None = None,
    settings: PrepareSettings | None = None,
) -> PrepareReport:
    """As `prepare`, on open cells that the record calls `source`."""
    plan = _plan(cells, source, options, scale, genes, settings or PrepareSettings())
    with CellWriter(out, plan.genes, plan.record) as writer:
        plan.write(writer)
    return plan.report(Path(out))


def prepare_in_memory(
    adata: ad.AnnData,
    *,
    options: ColumnOptions | None = None,
    scale: Scale | None = None,
    genes: list[str] | None = None,
    settings: PrepareSettings | None = None,
) -> tuple[ad.AnnData, PrepareReport]:
    """As `prepare`, of cells in memory, which are left as they are; nothing is written."""
    cells = CellFile.wrap(adata)
    plan = _plan(cells, cells.name, options, scale, genes, settings or PrepareSettings())
    with GatheredCells(plan.genes, plan.record) as gathered:
        plan.write(gathered)
    return gathered.adata, plan.report(None)


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before the first cell is written."""

    cells: CellFile
    rows: np.ndarray
    """Those to keep, in file order."""
    obs: pd.DataFrame
    columns: Columns
    genes: list[str]
    record: dict[str, Any]
    transform: Callable[[sp.csr_matrix], sp.csr_matrix]
    found: dict[str, Any]
    done: list[str]
    warnings: list[str]

    def write(self, sink: CellSink) -> None:
        """The kept cells, block by block."""
        for start in progress(range(0, len(self.rows), BLOCK_CELLS), "preparing", "block"):
            block = self.cells.rows(self.rows[start : start + BLOCK_CELLS])
            sink.append(self.transform(block), self.obs.iloc[start : start + BLOCK_CELLS])
        sink.obsm = _kept_obsm(self.cells, self.rows, self.done)

    def report(self, path: Path | None) -> PrepareReport:
        """What was found and done."""
        counts = {str(k): int(v) for k, v in self.obs[self.columns.perturbation].value_counts().items()}
        return PrepareReport(path, len(self.rows), len(self.genes), counts, self.found, self.done, self.warnings)


def _plan(
    cells: CellFile,
    source: str,
    options: ColumnOptions | None,
    scale: Scale | None,
    genes: list[str] | None,
    settings: PrepareSettings,
) -> _Plan:
    if genes is not None and settings.hvg is not None:
        raise DataError("--genes names the genes to keep and --hvg chooses them: give one of the two")
    done: list[str] = []
    name = cells.name
    columns = resolve_columns(cells.obs, cells.record, options, source=name)
    num_cells, num_genes = cells.num_cells, len(cells.genes)
    cells = cells.labelled(columns, "perturbation")
    _note(done, num_cells - cells.num_cells, "cell", "without a perturbation label left out")
    cells = _with_named_genes(cells, name, settings, columns, done)
    cells, measured = _with_natural_logarithms(cells, scale, done)
    _require_known_target(measured, settings, name)
    merge = _merging(cells, name, settings, measured)
    names = merge.names if merge else cells.genes
    kept = _filter(cells, columns, settings, done)
    if settings.hvg is not None:
        genes = variable_genes(
            _transform(cells.rows(kept[sample_indices(len(kept), MOST_CELLS)]), measured, settings, merge, None),
            names, settings.hvg,
        )  # fmt: skip
        done.append(f"{counted(len(genes), 'highly variable gene')} of {len(names)} kept")
    alignment = None
    if genes is not None:
        alignment = align(names, genes, settings.fill_missing, name, to_fill="--fill-missing zero")
    obs, out_columns = with_standard_columns(cells.obs.iloc[kept], columns, settings.cell_type_name, done)
    target_sum = settings.target_sum if measured.scale == "counts" else measured.target_sum
    done += _describe(measured, settings, merge, alignment if settings.hvg is None else None)
    record = steval_record(
        made_by="steval prepare", scale="lognorm", target_sum=target_sum, columns=out_columns,
        details={"source": source, "settings": settings.as_dict(), "done": done},
    )  # fmt: skip
    found: dict[str, Any] = {"cells": num_cells, "genes": num_genes, "scale": measured.describe()}
    warnings = []
    if measured.scale == "counts":
        depth = float(np.median(np.asarray(cells.rows(kept[sample_indices(len(kept))]).sum(axis=1))))
        found["median depth"] = f"{depth:,.6g} counts a cell"
        warnings = _far_from(depth, settings.target_sum)
    found["columns"] = columns.as_dict()
    return _Plan(
        cells, kept, obs, out_columns, list(alignment.target) if alignment else names, record,
        lambda block: _transform(block, measured, settings, merge, alignment), found, done, warnings,
    )  # fmt: skip


def _far_from(depth: float, target_sum: float) -> list[str]:
    """Where the total that cells are scaled to is far from what they have, small counts become large steps, or vanish."""
    if not depth or 1 / FAR <= target_sum / depth <= FAR:
        return []
    times = f"{target_sum / depth:.3g} times" if target_sum > depth else f"a {depth / target_sum:.3g}th of"
    return [
        f"target_sum {target_sum:.9g} is {times} the median depth of {depth:,.6g} counts: one count becomes "
        f"{np.log1p(target_sum / depth):.2g} after log1p. --target-sum {float(f'{depth:.2g}'):.9g} is nearer to the data (a "
        "pre-trained checkpoint wants its own)"
    ]


def _kept_obsm(cells: CellFile, rows: np.ndarray, done: list[str]) -> dict[str, Any]:
    """The obsm elements of the kept cells in the kind that they have; one that cannot be read is left out and noted."""
    found = {}
    for key in cells.obsm_keys:
        try:
            found[key] = cells.obsm_block(key, rows)
        except DataError as error:
            done.append(f"obsm {key!r} left out: {error}")
    return found


@dataclass(frozen=True)
class _Merge:
    """Columns of equal name added up: `matrix [G_source, G]` of ones."""

    names: list[str]
    matrix: sp.csr_matrix


def _with_natural_logarithms(cells: CellFile, scale: Scale | None, done: list[str]) -> tuple[CellFile, ScaleRecord]:
    """The cells and their scale; logarithms to another base than e are turned into natural ones."""
    sample = cells.rows(sample_indices(cells.num_cells))
    if scale in (None, "lognorm") and not is_whole(sample.data):
        base = log_base(cells, sample)
        if base is not None:
            done.append(f"logarithms to base {base:g} turned into natural ones")
            cells = as_natural(cells, base)
    return cells, resolve_scale(cells, scale)


def _require_known_target(measured: ScaleRecord, settings: PrepareSettings, source: str) -> None:
    asked = "target_sum" in settings.model_fields_set
    if measured.scale == "embedding":
        raise DataError(f"{source} holds an embedding in X; prepare needs raw counts or lognorm expression")
    if measured.scale == "lognorm" and settings.min_counts:
        raise DataError(
            f"{source} is lognorm, and --min-counts is about sums of counts, which it does not have; give the raw counts"
        )
    if measured.scale == "lognorm" and asked and measured.target_sum not in (None, settings.target_sum):
        raise DataError(
            f"{source} is lognorm with target_sum {measured.target_sum:.9g} already; --target-sum "
            f"{settings.target_sum:.9g} needs the raw counts"
        )


def _with_named_genes(
    cells: CellFile, source: str, settings: PrepareSettings, columns: Columns, done: list[str]
) -> CellFile:
    """The same cells under the gene names that are asked for; genes without one are left out where that is told."""
    names = cells.genes
    if settings.gene_column is not None:
        if settings.gene_column not in cells.var.columns:
            raise DataError(
                f"{source} has no var column {settings.gene_column!r}; its columns are: {listed(cells.var.columns, 30)}"
            )
        names = [label_text(name) for name in cells.var[settings.gene_column]]
    named = np.flatnonzero([bool(name.strip()) for name in names])
    if not columns.drop_unlabelled:
        require_named(names, f"{source}, var {'index' if settings.gene_column is None else repr(settings.gene_column)}")
    if len(named) == len(names):
        return cells.transformed(lambda block: block, names, cells.uns, cells.name)
    done.append(f"{counted(len(names) - len(named), 'gene')} without a name left out")
    kept = [names[place] for place in named]
    return cells.transformed(lambda block: sp.csr_matrix(block[:, named]), kept, cells.uns, cells.name)


def _merging(cells: CellFile, source: str, settings: PrepareSettings, measured: ScaleRecord) -> _Merge | None:
    names = cells.genes
    if settings.duplicate_genes == "error":
        require_unique(names, source)
        return None
    if len(set(names)) == len(names):
        return None
    if measured.scale != "counts":
        raise DataError(
            f"{source}: columns of the same gene can be added up in counts only, and this is {measured.scale}"
        )
    unique = list(dict.fromkeys(names))
    position = {name: index for index, name in enumerate(unique)}
    rows = np.arange(len(names))
    matrix = sp.csr_matrix((np.ones(len(names), np.float32), (rows, [position[name] for name in names])))
    return _Merge(unique, matrix)


def _filter(cells: CellFile, columns: Columns, settings: PrepareSettings, done: list[str]) -> np.ndarray:
    """Row numbers of the cells to keep, in file order."""
    labels = pd.Series(labels_of(cells.obs, columns.perturbation, cells.name), dtype=object)
    keep = np.ones(cells.num_cells, dtype=bool)
    if settings.min_counts or settings.min_genes:
        totals, detected = np.zeros(cells.num_cells), np.zeros(cells.num_cells, dtype=np.int64)
        for indices, block in cells.blocks(BLOCK_CELLS):
            totals[indices] = np.asarray(block.sum(axis=1)).ravel()
            detected[indices] = np.diff(block.indptr)
        enough = (totals >= settings.min_counts) & (detected >= settings.min_genes)
        _note(
            done, int((keep & ~enough).sum()),
            "cell", f"under {settings.min_counts:g} counts or {counted(settings.min_genes, 'gene')} dropped",
        )  # fmt: skip
        keep &= enough
    sizes = labels[keep].value_counts()
    rare = [name for name, size in sizes.items() if size < settings.min_cells and name != columns.control]
    if rare:
        lost = keep & labels.isin(rare).to_numpy()
        dropped = counted(int(lost.sum()), "cell")
        done.append(
            f"{counted(len(rare), 'perturbation')} with fewer than {counted(settings.min_cells, 'cell')} dropped ({dropped})"
        )
        keep &= ~lost
    if not (labels[keep] == columns.control).any():
        raise DataError(f"the filters leave no control cells ({columns.control!r}); loosen --min-counts or --min-genes")
    return np.flatnonzero(keep)


def _describe(
    measured: ScaleRecord, settings: PrepareSettings, merge: _Merge | None, alignment: GeneAlignment | None
) -> list[str]:
    lines = []
    if merge:
        lines.append(f"columns of the same gene added up: {counted(len(merge.names), 'gene remains', 'genes remain')}")
    if measured.scale == "counts":
        lines.append(f"counts scaled to {settings.target_sum:.9g} per cell, then log1p")
    else:
        lines.append("values kept: they are lognorm already")
    if alignment and not alignment.is_identity:
        lines.append(
            f"genes aligned by name: {alignment.num_extra} extra dropped, {len(alignment.missing)} missing set to zero"
        )
    return lines


def _transform(
    block: sp.csr_matrix,
    measured: ScaleRecord,
    settings: PrepareSettings,
    merge: _Merge | None,
    alignment: GeneAlignment | None,
) -> sp.csr_matrix:
    if merge:
        block = sp.csr_matrix(block @ merge.matrix)
    if measured.scale == "counts":
        block = lognorm(block, settings.target_sum)
    return alignment.apply(block) if alignment else block


def _note(done: list[str], count: int, thing: str, text: str) -> None:
    if count:
        done.append(f"{counted(count, thing)} {text}")
