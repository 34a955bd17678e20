"""A submission to the challenge of 2025 (`.vcc`) as `cell-eval prep` makes it, without the zstd and tar programs or any real data.

The archive is a plain tar of two members: `pred.h5ad.zst` (zstd-compressed minimal AnnData: CSR lognorm X, `obs` with
the perturbation and perhaps the cell type, `var` with the gene names alone) and `watermark.txt`, holding `vcc-prep`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import read_genes, require_unique
from steval.data.cells.scale import Scale, lognorm, resolve_scale
from steval.data.cells.stream import StreamedCells
from steval.data.cells.writer import require_finite
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.labels import labels_of
from steval.data.outputs import require_output
from steval.errors import ConfigError, DataError, EvaluationError
from steval.evaluator.challenge.archive import write_archive
from steval.evaluator.challenge.packed import Submission
from steval.wording import counted, listed

WATERMARK = ("watermark.txt", b"vcc-prep")
OUTPUT_PERTURBATION = "target_gene"
OUTPUT_CELL_TYPE = "celltype"
MOST_CELLS = 200_000
BLOCK_CELLS = 2048


def pack(
    pred: Path,
    out: Path,
    *,
    columns: Columns | None = None,
    genes: Sequence[str] | Path | None = None,
    with_cell_type: bool = False,
    encoding: Literal[32, 64] = 32,
    scale: Scale | None = None,
    max_cells: int | None = MOST_CELLS,
    output_perturbation: str = OUTPUT_PERTURBATION,
    output_cell_type: str = OUTPUT_CELL_TYPE,
) -> Submission:
    """Write the predictions in the h5ad `pred` to the submission `out`, atomically.

    `genes` is the expected gene list, or a text file with one name a line: the order is made to match, missing or extra
    genes are an error. Counts are turned into lognorm as `cell-eval prep` does. Raises `DataError` where columns, genes
    or scale break the contract, `EvaluationError` where there are more than `max_cells` cells (None: no limit).
    """
    if encoding not in (32, 64):
        raise ConfigError(f"a submission's values take 32 or 64 bits, got {encoding}")
    inputs = {"the predictions": Path(pred), "the gene list": genes if isinstance(genes, Path) else None}
    require_output(out, inputs, suffixes=(".vcc",))
    with CellFile.open(Path(pred)) as cells:
        options = _options(columns, with_cell_type)
        named = resolve_columns(cells.obs, cells.record, options, source=str(pred))
        cells = cells.labelled(named, "perturbation", *(("cell_type",) if with_cell_type else ()))
        if max_cells is not None and cells.num_cells > max_cells:
            raise EvaluationError(
                f"{pred} holds {counted(cells.num_cells, 'cell')}; a submission holds at most {max_cells}. "
                "Predict fewer cells per perturbation"
            )
        order, reordered = _gene_order(cells.genes, genes, str(pred))
        is_counts = resolve_scale(cells, scale).scale == "counts"
        obs = {output_perturbation: pd.Categorical(labels_of(cells.obs, named.perturbation, str(pred)))}
        if with_cell_type:
            obs[output_cell_type] = _cell_types(cells.obs, named, str(pred))
        streamed = _streamed(cells, obs, order if reordered else None, is_counts, encoding, str(pred))
        num_bytes = write_archive(Path(out), streamed, after=dict([WATERMARK]))
    num_perturbations = len(obs[output_perturbation].categories) - 1
    shape = len(streamed.obs), len(streamed.genes)
    return Submission(
        Path(out), *shape, num_perturbations, num_bytes, reordered, is_counts, num_values=streamed.num_values
    )


def _streamed(
    cells: CellFile,
    obs: dict[str, pd.Categorical],
    order: np.ndarray | None,
    is_counts: bool,
    encoding: Literal[32, 64],
    name: str,
) -> StreamedCells:
    """The cells as they are packed, read anew block by block; `order` None: their genes stay where they are."""
    dtype = np.float64 if encoding == 64 else np.float32
    totals, row_sizes = np.zeros(cells.num_cells), np.zeros(cells.num_cells, dtype=np.int64)
    for rows, block in cells.blocks(BLOCK_CELLS, dtype):
        require_finite(block, f"the predictions in {name}")
        row_sizes[rows] = np.diff(block.indptr)
        totals[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    # cell-eval's conversion of counts: every cell scaled to the median of the cells' totals that are not 0, then log1p
    median = float(np.median(totals[totals > 0])) if is_counts else None

    def blocks() -> Iterator[sp.csr_matrix]:
        for _, block in cells.blocks(BLOCK_CELLS, dtype):
            if order is not None:
                block = sp.csr_matrix(block[:, order])
                block.sort_indices()
            yield block if median is None else lognorm(block, median).astype(dtype)

    table = pd.DataFrame(obs, index=np.arange(cells.num_cells).astype(str))
    genes = cells.genes if order is None else [cells.genes[place] for place in order]
    return StreamedCells(table, genes, row_sizes, dtype, blocks)


def _options(columns: Columns | None, with_cell_type: bool) -> ColumnOptions | None:
    if columns is None:
        return None
    cell_type = columns.cell_type if with_cell_type else None
    return ColumnOptions(
        perturbation=columns.perturbation,
        control=columns.control,
        cell_type=cell_type,
        drop_unlabelled=columns.drop_unlabelled,
    )


def _gene_order(present: list[str], genes: Sequence[str] | Path | None, name: str) -> tuple[np.ndarray, bool]:
    require_unique(present, name)
    if genes is None:
        return np.arange(len(present)), False
    expected = read_genes(genes) if isinstance(genes, Path) else [str(gene) for gene in genes]
    require_unique(expected, "the gene list")
    missing, extra = sorted(set(expected) - set(present)), sorted(set(present) - set(expected))
    if missing or extra:
        raise DataError(
            f"the genes of {name} are not those of the gene list",
            [
                f"{len(found)} {which}: {listed(found)}"
                for which, found in (("missing", missing), ("extra", extra))
                if found
            ],
        )
    position = {gene: index for index, gene in enumerate(present)}
    order = np.array([position[gene] for gene in expected])
    return order, bool((np.diff(order) < 0).any())


def _cell_types(obs: pd.DataFrame, named: Columns, name: str) -> pd.Categorical:
    if named.cell_type is None:
        raise DataError(f"{name} has no cell type column to pack; its columns are: {listed(obs.columns, 30)}")
    return pd.Categorical(labels_of(obs, named.cell_type, name))
