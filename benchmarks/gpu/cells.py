"""Random cells in the shape of a screen, drawn by many threads: lognorm CSR, a tenth of the genes expressed."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp

CHUNK = 250
TARGET_SUM = 1e4
CONTROL = "non-targeting"


def draw_cells(labels: np.ndarray, num_genes: int, seed: int) -> sp.csr_matrix:
    """Lognorm cells `[n, G]` float32: `labels` (int, 0 for controls) choose which genes are shifted."""
    base = np.random.default_rng(seed).gamma(0.35, 1.0, num_genes)
    base = np.clip(base / base.mean() * 0.1, 0.001, 0.9).astype(np.float32)

    def chunk(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng([seed, start])
        mine = labels[start : start + CHUNK]
        drawn = generator.random((len(mine), num_genes), dtype=np.float32)
        for label in np.unique(mine):
            shift = np.random.default_rng([seed, int(label), 1]).lognormal(0, 0.3, num_genes) if label else 1.0
            drawn[mine == label] /= np.asarray(shift, dtype=np.float32)
        rows, columns = np.nonzero(drawn < base)
        counts = 1.0 + np.floor(generator.exponential(1.0, len(rows)) * 2)
        per_cell = np.bincount(rows, minlength=len(mine))
        total = np.bincount(rows, weights=counts, minlength=len(mine))
        return np.log1p(counts * (TARGET_SUM / total[rows])).astype(np.float32), columns.astype(np.int32), per_cell

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(chunk, range(0, len(labels), CHUNK)))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([part[2] for part in parts]), dtype=np.int64)])
    values, columns = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    return sp.csr_matrix((values, columns, indptr), shape=(len(labels), num_genes))


def label_names(labels: np.ndarray) -> list[str]:
    """Names of the labels in obs."""
    return [f"P{label}" if label else CONTROL for label in labels.tolist()]
