"""Control pools: the measured cells that predictions start from, read by row number so that memory stays flat.

A pool knows each cell's type, batch and name, gives the network's input (`inputs`) and, where it has them, the measured
expression of the genes that the checkpoint predicts (`measured`). Both on the checkpoint's scale, or it is an error.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.checkpoints.manifest import Manifest
from steval.checkpoints.store import Checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import FillMissing, align
from steval.data.cells.scale import Scale, require_scale, sample_indices
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.labels import label_codes, labels_of, labels_or
from steval.errors import ConfigError, DataError
from steval.wording import counted

UNLABELLED = "unlabelled"
"""Cell type of a file that names none, where the checkpoint does not have exactly one."""
HVG_KEY = "X_hvg"
SAME_TARGET_SUM = 1e-3
SCALE_CELLS = 500
MEAN_ROWS = 256
"""Control cells whose values tell the file's scale."""


class ControlPool:
    """Measured control cells; a context manager. `cell_types`, `batches` and `names` are text arrays `[n]`."""

    def __init__(
        self,
        inputs: CellFile,
        measured: CellFile | None,
        *,
        name: str,
        columns: Columns,
        cell_types: np.ndarray,
        batches: np.ndarray,
        names: np.ndarray,
        has_batches: bool,
        notes: dict[str, object],
    ):
        self._inputs = inputs
        self._measured = measured
        self.name = name
        self.columns = columns
        self.cell_types = cell_types
        self.batches = batches
        self.names = names
        self.has_measured = measured is not None
        """Whether the expression of the predicted genes is known for these cells."""
        self.has_batches = has_batches
        self.notes = notes
        """What was done to make the cells fit; goes into the record of every output."""

    def __len__(self) -> int:
        return len(self.cell_types)

    @property
    def cell_type_names(self) -> list[str]:
        """The distinct cell types, sorted."""
        return sorted(set(self.cell_types.tolist()))

    def inputs(self, rows: np.ndarray) -> sp.csr_matrix:
        """The network's basal input of `rows`, float32 CSR `[n, input_dim]` on the checkpoint's scale (or an embedding)."""
        return self._inputs.rows(rows)

    def measured(self, rows: np.ndarray) -> sp.csr_matrix:
        """Measured expression of the checkpoint's output genes, float32 CSR `[n, G]`; only where `has_measured`."""
        if self._measured is None:
            raise DataError(f"{self.name} hold the network's input alone, not the expression of the predicted genes")
        return self._measured.rows(rows)

    def close(self) -> None:
        """Close the file behind the pool, if any."""
        self._inputs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checkpoint_controls(checkpoint: Checkpoint) -> ControlPool:
    """The control cells that the checkpoint carries; a `ConfigError` where it carries none."""
    manifest, controls = checkpoint.manifest, checkpoint.controls
    if controls is None:
        raise ConfigError(
            f"{checkpoint.path} carries no control cells, so predictions have nothing to start from; give measured control "
            "cells with --controls FILE.h5ad"
        )
    is_output = manifest.input_genes == manifest.output_genes and manifest.model.input_is_genes
    obs = pd.DataFrame(index=pd.Index([f"control_{row}" for row in range(len(controls))]))
    columns = [str(number) for number in range(controls.cells.shape[1])]
    cells = CellFile.of_matrix(controls.cells, obs, columns, "the checkpoint's own controls")
    return ControlPool(
        cells,
        cells if is_output else None,
        name=cells.name,
        columns=manifest.columns,
        cell_types=controls.cell_types.astype(str).astype(object),
        batches=controls.batches.astype(str).astype(object),
        names=obs.index.to_numpy(dtype=object),
        has_batches=bool(manifest.batches),
        notes={"source": "checkpoint"},
    )


def file_controls(
    path: Path,
    manifest: Manifest,
    *,
    columns: ColumnOptions | None = None,
    scale: Scale | None = None,
    fill_missing: FillMissing | None = None,
    trust_order: bool = False,
) -> ControlPool:
    """Control cells of an h5ad file: those with the control label, aligned to the checkpoint's genes by name.

    The file is read lazily. Its scale must be the checkpoint's; `trust_order` takes columns by position (their number
    must fit). `fill_missing` None is "error", where there is no option to
    allow it. Raises `DataError` for a missing column, label, gene or obsm key, or another scale.
    """
    cells = CellFile.open(path)
    try:
        return cell_controls(
            cells, manifest, columns=columns, scale=scale, fill_missing=fill_missing, trust_order=trust_order
        )
    except BaseException:
        cells.close()
        raise


def cell_controls(
    cells: CellFile,
    manifest: Manifest,
    *,
    columns: ColumnOptions | None = None,
    scale: Scale | None = None,
    fill_missing: FillMissing | None = None,
    trust_order: bool = False,
) -> ControlPool:
    """As `file_controls`, on open cells; the pool closes them."""
    found = resolve_columns(cells.obs, cells.record, columns, manifest.columns, source=cells.name)
    cells = cells.labelled(found, "perturbation")
    rows = np.flatnonzero(labels_of(cells.obs, found.perturbation, cells.name) == found.control)
    used = ("cell_type", "batch") if manifest.model.batch_encoder else ("cell_type",)
    controls = cells.select(rows).labelled(found, *used)
    if not controls.num_cells:
        raise DataError(f"{cells.name}: no control cell has a label in the columns that are used")
    fit = _Fit(cells, controls, manifest, scale, fill_missing, trust_order)
    single = manifest.cell_types[0] if len(manifest.cell_types) == 1 else UNLABELLED
    return ControlPool(
        fit.inputs,
        fit.measured,
        name=f"the controls of {cells.name}",
        columns=found,
        cell_types=labels_or(controls.obs, found.cell_type, single, controls.name),
        batches=_batches(controls, found),
        names=controls.obs.index.astype(str).to_numpy(dtype=object),
        has_batches=found.batch is not None,
        notes={"source": str(cells.name), "num_cells": controls.num_cells, **fit.notes},
    )


def _batches(controls: CellFile, columns: Columns) -> np.ndarray:
    """Batch of each control cell; one that lacks it (where batches are not used) is of none that can be asked for."""
    if columns.batch is None:
        return np.full(controls.num_cells, UNLABELLED, dtype=object)
    names, codes = label_codes(controls.obs[columns.batch])
    return np.array([*names, UNLABELLED], dtype=object)[codes]


class _Fit:
    """How a file's control cells become the network's input and the predicted genes; checked whole as it is built."""

    def __init__(
        self,
        cells: CellFile,
        controls: CellFile,
        manifest: Manifest,
        scale: Scale | None,
        fill_missing: FillMissing | None,
        trust_order: bool,
    ):
        self.notes: dict[str, object] = {"fill_missing": fill_missing or "error", "trust_order": trust_order}
        self._cells, self._controls, self._manifest = cells, controls, manifest
        self._fill_missing, self._trust_order = fill_missing, trust_order
        model = manifest.model
        takes_obsm = not model.input_is_genes or (model.input_key == HVG_KEY and trust_order)
        self._input_key = model.input_key if takes_obsm else None
        if self._input_key is not None:
            self._check_obsm(self._input_key)
        if manifest.output_genes is not None or self._input_key is None:
            self._check_scale(scale)
        if self._input_key is None:
            self.inputs = self._aligned(manifest.input_genes, model.input_dim, "input")
        else:
            self.inputs = self._finite(controls.embedded(self._input_key, f"{controls.name}, {self._input_key}"))
        self.measured = self.inputs
        """The same view where the network's input is what it predicts."""
        outputs = manifest.output_genes
        if outputs is not None and (self._input_key is not None or outputs != manifest.input_genes):
            self.measured = self._aligned(outputs, len(outputs), "output")

    def _check_scale(self, scale: Scale | None) -> None:
        expected = self._manifest.scale
        sample = self._controls.select(sample_indices(self._controls.num_cells, SCALE_CELLS))
        sample.name = self._controls.name
        record = require_scale(sample, expected, scale)
        ours, theirs = self._manifest.target_sum, record.target_sum
        if ours and theirs and abs(ours - theirs) > SAME_TARGET_SUM * ours:
            raise DataError(
                f"{self._cells.name} is lognorm with target_sum {theirs:g}, but the checkpoint was trained with {ours:g}; "
                f"make it from the counts with: steval prepare COUNTS.h5ad -o OUT.h5ad --target-sum {ours:g}"
            )
        self.notes["scale"] = record.describe()

    def _check_obsm(self, key: str) -> None:
        width = self._cells.obsm(key, [0]).shape[1]
        if width != self._manifest.model.input_dim:
            raise DataError(
                f"obsm[{key!r}] of {self._cells.name} has {counted(width, 'column')}; the checkpoint's input has "
                f"{self._manifest.model.input_dim}"
            )
        self.notes["obsm"] = key

    def _aligned(self, genes: tuple[str, ...] | None, width: int, what: str) -> CellFile:
        """The controls with these genes, or with their own where columns are taken by position."""
        controls = self._finite(self._controls)
        by_position = self._trust_order and self._input_key is None
        if by_position or genes is None:
            self._require_trusted(genes, width, what)
            return controls
        alignment = align(
            self._cells.genes, genes, self._fill_missing or "error", self._cells.name,
            to_fill=None if self._fill_missing is None else "--fill-missing zero",
        )  # fmt: skip
        self.notes[f"{what}_genes_missing"] = len(alignment.missing)
        self.notes[f"{what}_genes_extra"] = alignment.num_extra
        return controls.transformed(alignment.apply, genes, controls.uns, f"{controls.name}, {what} genes")

    def _require_trusted(self, genes: tuple[str, ...] | None, width: int, what: str) -> None:
        cells = self._cells
        if not self._trust_order or self._input_key is not None:
            raise DataError(
                f"the checkpoint has no names for its {width} {what} genes, so {cells.name} cannot be aligned by name; if "
                "its genes are in the training data's order, say so with --trust-order"
            )
        if len(cells.genes) != width:
            raise DataError(
                f"--trust-order takes genes by position, but {cells.name} has {len(cells.genes)} and the checkpoint's "
                f"{what} {width}"
            )

    def _finite(self, cells: CellFile) -> CellFile:
        """The same cells; reading a value that is not finite is a `DataError`."""

        def checked(matrix: sp.csr_matrix) -> sp.csr_matrix:
            if not np.isfinite(matrix.data).all():
                raise DataError(
                    f"{self._cells.name} holds NaN or infinite values among its control cells; remove those cells"
                )
            return matrix

        return cells.transformed(checked, cells.genes, cells.uns, f"{cells.name}, finite")


def control_mean(pool: ControlPool, rows: np.ndarray) -> np.ndarray:
    """Mean measured expression of the pool's `rows`, float32 `[G]`."""
    total: np.ndarray | None = None
    for start in range(0, len(rows), MEAN_ROWS):
        part = np.asarray(pool.measured(rows[start : start + MEAN_ROWS]).sum(axis=0, dtype=np.float64)).ravel()
        total = part if total is None else total + part
    assert total is not None
    return (total / len(rows)).astype(np.float32)
