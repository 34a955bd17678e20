"""Cells for a notebook: prepared, held out, and the packaged ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from steval.data.cells.cellfile import CellFile, read_anndata
from steval.data.cells.prepare import PrepareSettings, prepare_in_memory
from steval.data.cells.record import read_record
from steval.data.cells.scale import Scale
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.labels import labels_of
from steval.data.splits.assignment import SHARED_CONTROL, TEST, CellSplit, assign_parts
from steval.errors import ConfigError, DataError

CellsInput = ad.AnnData | Path | str
"""Cells in memory, or the path of an h5ad."""


def in_memory(cells: CellsInput) -> ad.AnnData:
    """The cells as AnnData."""
    return cells if isinstance(cells, ad.AnnData) else read_anndata(Path(cells))


def opened(cells: CellsInput, name: str) -> CellFile:
    """The cells to read from, to be closed."""
    return CellFile.wrap(cells, name) if isinstance(cells, ad.AnnData) else CellFile.open(Path(cells))


def prepare(
    cells: CellsInput,
    *,
    perturbation: str | None = None,
    control: str | None = None,
    cell_type: str | None = None,
    batch: str | None = None,
    scale: Scale | None = None,
    genes: Sequence[str] | None = None,
    **settings: Any,
) -> ad.AnnData:
    """Raw counts as checked lognorm cells `[n, G]` with steval's columns; as `steval prepare`, in memory.

    `perturbation`, `control`, `cell_type`, `batch`: where the labels are, as `--pert-col` and so on. `settings`: fields of
    `steval.data.cells.prepare.PrepareSettings` (`target_sum`, `hvg`, `min_counts`, `cell_type_name`, …). What was found and
    done stands in `uns["steval"]`; warnings are given as such. Raises `DataError`.
    """
    import warnings

    options = ColumnOptions(perturbation=perturbation, control=control, cell_type=cell_type, batch=batch)
    made, report = prepare_in_memory(
        in_memory(cells),
        options=options,
        scale=scale,
        genes=None if genes is None else list(genes),
        settings=PrepareSettings.parse(settings, source="the arguments of prepare"),
    )
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    return made


def hold_out(
    cells: CellsInput,
    test: float | Sequence[str] = 0.2,
    *,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> tuple[ad.AnnData, ad.AnnData]:
    """Training cells, and held-out cells to score against; the control cells are in both.

    `test`: a share of the cells of each perturbation and cell type, or names of perturbations that are held out whole.
    `columns`: as `perturbation=…` of `prepare`, where the cells do not say themselves. Raises `DataError` or `ConfigError`.
    """
    whole = in_memory(cells)
    found = columns_of(whole, columns)
    obs = pd.DataFrame(whole.obs)
    labels = labels_of(obs, found.perturbation, "the cells")
    is_control = labels == found.control
    if isinstance(test, float | int):
        if not 0 < test < 1:
            raise ConfigError(f"test is a share between 0 and 1, or names of perturbations; got {test!r}")
        parts = assign_parts(obs, found, CellSplit(val=min(0.1, (1 - test) / 2), test=float(test), seed=seed))
        held = parts == TEST
        assert bool((parts[is_control] == SHARED_CONTROL).all())
    else:
        names = [test] if isinstance(test, str) else list(test)
        if unknown := sorted(set(names) - set(labels)):
            raise DataError(
                f"the cells hold no perturbation {', '.join(map(repr, unknown))}; they hold {_shown(labels)}"
            )
        held = np.isin(labels, names) & ~is_control
    return whole[~held | is_control].copy(), whole[held | is_control].copy()


def columns_of(cells: ad.AnnData, asked: Mapping[str, str] | None = None) -> Columns:
    """Columns by what is asked, else by what the cells declare, else by default."""
    options = ColumnOptions.parse(dict(asked or {}), source="columns")
    return resolve_columns(pd.DataFrame(cells.obs), read_record(dict(cells.uns)), options)


def example() -> ad.AnnData:
    """Real Perturb-seq cells that ship with the package: raw counts `[600, 1000]`, five perturbations and controls."""
    from steval.data.example import example as packaged

    return packaged()


def _shown(labels: np.ndarray) -> str:
    names = sorted(set(labels))
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
