"""The genes that vary most between cells, for `steval prepare --hvg`."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from steval.errors import ConfigError, DataError
from steval.wording import counted, needs_package

MOST_CELLS = 20_000
"""Cells that decide; more change little and need memory."""


def variable_genes(cells: sp.csr_matrix, genes: Sequence[str], number: int) -> list[str]:
    """The `number` most variable of `genes` in their order: scanpy's `seurat` flavour (dispersions normalised within bins of
    the mean; Satija et al. 2015) on lognorm `cells [n, G]`, a sample that fits in memory.

    Asking for more genes than the cells express is a `DataError`.
    """
    import anndata as ad

    try:
        import scanpy as sc
    except ModuleNotFoundError as error:
        raise ConfigError(needs_package("--hvg", "scanpy")) from error

    expressed = np.flatnonzero(cells.getnnz(axis=0))
    if number > len(expressed):
        raise DataError(f"--hvg {number}: the cells express {counted(len(expressed), 'gene')}")
    sample = ad.AnnData(cells[:, expressed].astype(np.float64), uns={"log1p": {"base": None}})
    found = sc.pp.highly_variable_genes(sample, n_top_genes=number, flavor="seurat", inplace=False)
    assert found is not None
    # ties at the last place would make more than were asked for
    ranked = np.argsort(-found["dispersions_norm"].fillna(-np.inf).to_numpy(), kind="stable")[:number]
    return [genes[place] for place in np.sort(expressed[ranked])]
