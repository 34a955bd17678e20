"""What leaves the device: compacted cells are the CSR of the dense ones, and on a GPU both come back in order."""

import numpy as np
import pytest
import torch

from steval.data.rows.csr import csr_of
from steval.predictor.cells.transfer import cells_to_host, compacted


def cells(number: int, rows: int = 7, columns: int = 11) -> torch.Tensor:
    drawn = torch.rand(rows, columns, generator=torch.Generator().manual_seed(number))
    drawn[drawn < 0.6] = 0
    drawn[rows // 2] = 0
    return drawn


def test_compacted_cells_are_the_csr_of_the_dense_ones() -> None:
    dense = cells(1)
    expected = csr_of(dense.numpy())
    values, columns, counts = (part.numpy() for part in compacted(dense))
    np.testing.assert_array_equal(values, expected.data)
    np.testing.assert_array_equal(columns, expected.indices)
    np.testing.assert_array_equal(np.cumsum(counts), expected.indptr[1:])
    assert columns.dtype == counts.dtype == np.int32


@pytest.mark.gpu
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_cells_come_back_in_order_while_the_next_are_computed(sparse: bool, count: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    weight = torch.eye(4000, device=device)

    def computed():
        for number in range(count):
            yield (cells(number, 300, 4000).to(device) @ weight) * 2

    found = list(cells_to_host(computed(), device, sparse=sparse))
    assert len(found) == count
    for number, part in enumerate(found):
        dense = part.toarray() if sparse else part
        np.testing.assert_allclose(dense, cells(number, 300, 4000).numpy() * 2, rtol=1e-6)
