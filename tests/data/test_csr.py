"""Dense blocks as CSR; columns outside a shape."""

import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.rows.csr import canonical, csr_of
from steval.errors import DataError


def test_equal_to_scipys():
    block = np.maximum(np.random.default_rng(0).normal(size=(50, 37)), 0).astype(np.float32)
    block[3] = 0
    found, expected = csr_of(block), sp.csr_matrix(block)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.data.dtype, found.indices.dtype) == (np.float32, np.int32)


def test_csr_is_left_alone():
    block = sp.random(5, 8, 0.5, format="csr", random_state=0)
    assert (csr_of(block) != block).nnz == 0


@pytest.mark.parametrize("columns", [[0, -1], [0, 4], [4, 0], [-1, -1]])
def test_columns_outside_the_shape_are_refused(columns: list[int]):
    pointers = np.array([0, 0, 2, 2])
    matrix = sp.csr_matrix((np.ones(2, np.float32), np.array([0, 1], np.int32), pointers), shape=(3, 4))
    assert canonical(matrix, "cells.h5ad") is matrix
    matrix.indices[:] = columns
    with pytest.raises(DataError, match=r"cells\.h5ad is damaged"):
        canonical(matrix, "cells.h5ad")
