"""A challenge submission (`.vcc`) as `cell-eval prep` makes it, without the zstd and tar programs or any real data.

The archive is a plain tar of two members: `pred.h5ad.zst` (zstd-compressed minimal AnnData: CSR lognorm X, `obs` with
the perturbation and perhaps the cell type, `var` with the gene names alone) and `watermark.txt`, holding `vcc-prep`.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import require_unique
from steval.data.cells.scale import Scale, lognorm, resolve_scale
from steval.data.cells.writer import require_finite
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.disk_files import new_hdf5
from steval.data.files import atomic_path, read_text
from steval.data.labels import labels_of
from steval.data.outputs import require_output
from steval.errors import ConfigError, DataError, EvaluationError
from steval.wording import listed

if TYPE_CHECKING:
    import anndata as ad

MEMBER = "pred.h5ad.zst"
WATERMARK = ("watermark.txt", b"vcc-prep")
OUTPUT_PERTURBATION = "target_gene"
OUTPUT_CELL_TYPE = "celltype"
MOST_CELLS = 200_000


@dataclass(frozen=True)
class Submission:
    """What was packed."""

    path: Path
    num_cells: int
    num_genes: int
    num_perturbations: int
    num_bytes: int
    reordered: bool
    """The genes stood in another order than the list and were moved."""
    normalised: bool
    """The predictions were counts and were turned into lognorm at the median of the cells' totals."""


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
                f"{pred} holds {cells.num_cells} cells; a submission holds at most {max_cells}. "
                "Predict fewer cells per perturbation"
            )
        order, reordered = _gene_order(cells.genes, genes, str(pred))
        is_counts = resolve_scale(cells, scale).scale == "counts"
        matrix = cells.rows(np.arange(cells.num_cells), np.float64 if encoding == 64 else np.float32)
        if reordered:
            matrix = sp.csr_matrix(matrix[:, order])
        matrix = _median_lognorm(matrix) if is_counts else matrix
        obs = {output_perturbation: pd.Categorical(labels_of(cells.obs, named.perturbation, str(pred)))}
        if with_cell_type:
            obs[output_cell_type] = _cell_types(cells.obs, named, str(pred))
        require_finite(matrix, f"the predictions in {pred}")
        minimal = _minimal(matrix, obs, [cells.genes[i] for i in order])
    num_bytes = _write_archive(minimal, Path(out))
    num_perturbations = int(minimal.obs[output_perturbation].nunique()) - 1
    return Submission(Path(out), *minimal.shape, num_perturbations, num_bytes, reordered, is_counts)


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
    expected = _gene_list(genes) if isinstance(genes, Path) else [str(gene) for gene in genes]
    require_unique(expected, "the gene list")
    missing, extra = sorted(set(expected) - set(present)), sorted(set(present) - set(expected))
    if missing or extra:
        raise DataError(
            f"the genes of {name} are not those of the gene list",
            [
                f"{len(found)} {what}: {listed(found)}"
                for what, found in (("missing", missing), ("extra", extra))
                if found
            ],
        )
    position = {gene: index for index, gene in enumerate(present)}
    order = np.array([position[gene] for gene in expected])
    return order, bool((np.diff(order) < 0).any())


def _gene_list(path: Path) -> list[str]:
    lines = read_text(path, "gene list").splitlines()
    return [line.split(",")[0].strip().strip('"') for line in lines if line.strip()]


def _median_lognorm(counts: sp.csr_matrix) -> sp.csr_matrix:
    """cell-eval's conversion of counts: every cell scaled to the median of the cells' non-zero totals, then log1p."""
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return lognorm(counts, float(np.median(totals[totals > 0]))).astype(counts.dtype)


def _cell_types(obs: pd.DataFrame, named: Columns, name: str) -> pd.Categorical:
    if named.cell_type is None:
        raise DataError(f"{name} has no cell type column to pack; its columns are: {listed(obs.columns, 30)}")
    return pd.Categorical(labels_of(obs, named.cell_type, name))


def _minimal(matrix: sp.csr_matrix, obs: dict[str, pd.Categorical], genes: list[str]) -> "ad.AnnData":
    import anndata as ad

    index = np.arange(matrix.shape[0]).astype(str)
    return ad.AnnData(X=matrix, obs=pd.DataFrame(obs, index=index), var=pd.DataFrame(index=pd.Index(genes)))


def _write_archive(minimal: "ad.AnnData", out: Path) -> int:
    """Compress and archive; two temporary files stand beside `out` and go in any case."""
    import anndata as ad
    import zstandard

    with atomic_path(out) as archive:
        plain, packed = archive.with_suffix(".h5ad"), archive.with_suffix(".zst")
        try:
            with new_hdf5(plain) as handle:
                ad.io.write_elem(handle, "/", minimal)
            with plain.open("rb") as source, packed.open("wb") as target:
                zstandard.ZstdCompressor(threads=-1).copy_stream(source, target, size=plain.stat().st_size)
            plain.unlink()
            with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
                with packed.open("rb") as handle:
                    tar.addfile(_member(MEMBER, packed.stat().st_size), handle)
                tar.addfile(_member(WATERMARK[0], len(WATERMARK[1])), io.BytesIO(WATERMARK[1]))
        finally:
            plain.unlink(missing_ok=True)
            packed.unlink(missing_ok=True)
    return out.stat().st_size


def _member(name: str, num_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    member.mode = 0o644
    return member
