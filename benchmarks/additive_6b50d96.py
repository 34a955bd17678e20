"""How commit 6b50d96 made cells of an additive effect: kept as it was, so that results stay comparable with it.

It lost most of an effect on a gene that few cells express, could leave the lognorm range, and fell short of a negative effect.
"""

import numpy as np
import scipy.sparse as sp

LEAST_EXPRESSING = 0.05


def shifted(cells: sp.csr_matrix, effect: np.ndarray) -> sp.csr_matrix:
    """Control `cells` (CSR `[n, G]`, lognorm) plus the mean `effect [G]`, borne by the cells that express a gene."""
    expressing = np.bincount(cells.indices[cells.data > 0], minlength=cells.shape[1]) / cells.shape[0]
    step = effect / np.maximum(expressing, LEAST_EXPRESSING)
    values = np.maximum(cells.data + step[cells.indices], 0.0).astype(cells.dtype)
    return sp.csr_matrix((values, cells.indices, cells.indptr), shape=cells.shape)
