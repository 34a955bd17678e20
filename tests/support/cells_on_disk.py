"""Small h5ad files with known cells, in every layout, for the tests of splits and cell sets."""

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

CONTROL = "non-targeting"


def make_cells(
    contexts: dict[str, dict[str, int]],
    *,
    num_genes: int = 12,
    num_batches: int = 2,
    seed: int = 0,
    prefix: str = "cell",
) -> ad.AnnData:
    """Counts with a given number of cells by context and perturbation, shuffled; column `batch` has b0, b1, …"""
    generator = np.random.default_rng(seed)
    labels = [(context, name) for context, groups in contexts.items() for name, n in groups.items() for _ in range(n)]
    labels = [labels[place] for place in generator.permutation(len(labels))]
    counts = generator.poisson(2.0, (len(labels), num_genes)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "target_gene": pd.Categorical([name for _, name in labels]),
            "cell_type": pd.Categorical([context for context, _ in labels]),
            "batch": pd.Categorical([f"b{number % num_batches}" for number in range(len(labels))]),
        },
        index=[f"{prefix}{number}" for number in range(len(labels))],
    )
    var = pd.DataFrame(index=[f"gene{number}" for number in range(num_genes)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def write_as(adata: ad.AnnData, path: Path, layout: str) -> Path:
    """Write X as `csr`, `csc`, `dense`, `csr-gzip`, `csc-gzip`, `dense-gzip` or `csr-chunked` (chunks of 7 values)."""
    copy = adata.copy()
    kind, _, how = layout.partition("-")
    matrix = sp.csr_matrix(adata.X)
    copy.X = {"csr": matrix, "csc": matrix.tocsc(), "dense": matrix.toarray()}[kind]
    copy.write_h5ad(path, compression="gzip" if how == "gzip" else None)
    if how == "chunked":
        with h5py.File(path, "r+") as handle:
            for name in ("data", "indices"):
                values = handle["X"][name][:]
                del handle["X"][name]
                handle["X"].create_dataset(name, data=values, chunks=(7,))
    return path
