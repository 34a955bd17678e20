import anndata as ad
import numpy as np
import pytest

from steval.data.writer import CellWriter


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_blocks_come_back_as_one_file(layout, tmp_path):
    rng = np.random.default_rng(0)
    blocks = [rng.poisson(0.5, (n, 6)).astype(np.float32) for n in (3, 1, 5)]
    path = tmp_path / "cells.h5ad"
    with CellWriter(path, list("abcdef"), {"scale": "counts"}, layout=layout) as writer:
        for i, block in enumerate(blocks):
            writer.append(block, {"target_gene": [f"p{i}"] * len(block)})
            assert not path.exists()
    cells = ad.read_h5ad(path)
    matrix = cells.X if layout == "dense" else cells.X.toarray()
    np.testing.assert_array_equal(matrix, np.concatenate(blocks))
    assert list(cells.obs["target_gene"]) == ["p0"] * 3 + ["p1"] + ["p2"] * 5
    assert cells.uns["steval"]["scale"] == "counts"


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), CellWriter(tmp_path / "cells.h5ad", ["a"], {}) as writer:
        writer.append(np.ones((2, 1), np.float32), {"x": [1, 2]})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
