"""Dense blocks as CSR; columns outside a shape."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.rows.csr import csr_of, require_columns
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


@pytest.mark.parametrize("column", [-1, 4])
def test_columns_outside_the_shape_are_refused(column: int):
    matrix = sp.csr_matrix((np.ones(2, np.float32), np.array([0, 1], np.int32), np.array([0, 0, 1, 2])), shape=(3, 4))
    assert require_columns(matrix, Path("cells.h5ad")) is matrix
    matrix.indices[1] = column
    with pytest.raises(DataError, match=r"cells\.h5ad is damaged"):
        require_columns(matrix, Path("cells.h5ad"))
