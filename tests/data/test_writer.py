import gc
import resource
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from steval.data.cells.writer import CellWriter
from steval.errors import DataError, NotFiniteError


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


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["X", "obsm"])
def test_values_that_are_not_finite_are_counted_and_never_written(tmp_path: Path, layout, value, place):
    good, bad = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    bad[1, 2] = bad[2, 0] = value
    with (
        pytest.raises(NotFiniteError, match="2 of 12 values are NaN or infinite"),
        CellWriter(tmp_path / "cells.h5ad", list("abcd"), {}, layout=layout) as writer,
    ):
        writer.append(good, {"x": [1, 2, 3]})
        if place == "X":
            writer.append(bad, {"x": [1, 2, 3]})
        writer.obsm["X_other"] = bad
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_cells", [pytest.param(2000, id="while-writing"), pytest.param(30, id="at-the-end")])
def test_a_full_disk_is_one_error_that_leaves_nothing(tmp_path: Path, capfd, num_cells: int):
    cells = np.random.default_rng(0).random((num_cells, 300), dtype=np.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with (
            pytest.raises(DataError, match=r"cannot write .*full\.h5ad: File too large$"),
            CellWriter(tmp_path / "full.h5ad", [f"g{i}" for i in range(300)], {}) as writer,
        ):
            writer.append(cells, {"batch": ["a"] * num_cells})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""  # h5py's tracebacks of objects that it cannot close
