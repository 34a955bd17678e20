"""Dense blocks as CSR."""

import numpy as np
import scipy.sparse as sp

from steval.predictor.csr import csr_of


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
