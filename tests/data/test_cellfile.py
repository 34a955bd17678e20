import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile, read_anndata, write_anndata
from steval.errors import DataError


@pytest.fixture
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.7, (50, 7)).astype(np.float32)
    obs = pd.DataFrame({"target_gene": ["a", "b"] * 25}, index=[f"c{i}" for i in range(50)])
    return ad.AnnData(X=sp.csr_matrix(dense), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(7)]))


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray()], ids=["csr", "csc", "dense"])
def test_rows_come_in_the_order_asked_for_repeats_included(cells, layout, tmp_path):
    wanted = np.array([49, 3, 3, 20, 0, 21, 48])
    expected = cells.X[wanted].toarray()
    cells.X = layout(cells.X)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with CellFile.open(tmp_path / "cells.h5ad") as opened:
        np.testing.assert_array_equal(opened.rows(wanted).toarray(), expected)
        assert opened.rows(np.array([], dtype=int)).shape == (0, 7)


@pytest.mark.parametrize("layout", [sp.csr_matrix, lambda x: x.toarray()], ids=["csr", "dense"])
def test_evenly_spaced_rows_do_not_pull_in_the_whole_file(layout, tmp_path, monkeypatch):
    num_rows, num_genes, step, piece = 4000, 60, 10, 50_000
    matrix = sp.random(num_rows, num_genes, 0.5, format="csr", random_state=np.random.default_rng(0), dtype=np.float32)
    ad.AnnData(layout(matrix)).write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    stored_bytes = matrix.data.nbytes + matrix.indices.nbytes if layout is sp.csr_matrix else num_rows * num_genes * 4
    wanted = np.arange(0, num_rows, step)
    sizes = []
    read, read_direct = h5py.Dataset.__getitem__, h5py.Dataset.read_direct

    def measured(self, *arguments, **options):
        found = read(self, *arguments, **options)
        sizes.append(getattr(found, "nbytes", 0))
        return found

    def measured_direct(self, target, *arguments):
        read_direct(self, target, *arguments)
        sizes.append(target.nbytes)

    with CellFile.open(tmp_path / "cells.h5ad") as opened:
        expected = opened.rows(wanted).toarray()
        np.testing.assert_array_equal(expected, matrix[wanted].toarray())
        monkeypatch.setattr("steval.data.rows.flat_array.MERGE_BYTES", piece)
        monkeypatch.setattr(h5py.Dataset, "__getitem__", measured)
        monkeypatch.setattr(h5py.Dataset, "read_direct", measured_direct)
        np.testing.assert_array_equal(opened.rows(wanted).toarray(), expected)
        assert len(sizes) >= 0.8 * stored_bytes / piece
        assert max(sizes) <= piece
        monkeypatch.setattr("steval.data.rows.flat_array.MERGE_BYTES", 1)
        np.testing.assert_array_equal(opened.rows(wanted[:9]).toarray(), expected[:9])


def test_blocks_cover_the_file_once(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with CellFile.open(tmp_path / "cells.h5ad") as opened:
        blocks = [block.toarray() for _, block in opened.blocks(8)]
    np.testing.assert_array_equal(np.concatenate(blocks), cells.X.toarray())


def test_selection_and_stack_read_the_same_cells(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    even, odd = np.arange(0, 50, 2), np.arange(1, 50, 2)
    with CellFile.open(tmp_path / "cells.h5ad") as opened:
        stacked = CellFile.stack([opened.select(even), CellFile.wrap(cells).select(odd)])
        wanted = np.array([30, 1, 30, 0, 49])
        source = np.concatenate([even, odd])[wanted]
        np.testing.assert_array_equal(stacked.rows(wanted).toarray(), cells.X[source].toarray())
        assert list(stacked.obs.index[wanted]) == list(cells.obs_names[source])


def test_stacking_files_with_other_genes_is_refused(cells):
    other = cells[:, ::-1].copy()
    with pytest.raises(DataError, match="different genes"):
        CellFile.stack([CellFile.wrap(cells), CellFile.wrap(other)])


def test_obsm_rows_and_the_names_of_those_that_exist(cells, tmp_path):
    cells.obsm["X_state"] = np.arange(100, dtype=np.float64).reshape(50, 2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with CellFile.open(tmp_path / "cells.h5ad") as opened:
        np.testing.assert_array_equal(opened.obsm("X_state", [4, 4, 1]), [[8, 9], [8, 9], [2, 3]])
        with pytest.raises(DataError, match=r"no obsm matrix 'X_hvg'; it has: X_state"):
            opened.obsm("X_hvg", [0])


def test_what_is_no_h5ad_is_one_clear_error(tmp_path, cells):
    text = tmp_path / "text.h5ad"
    text.write_text("not HDF5")
    bare = tmp_path / "bare.h5ad"
    with h5py.File(bare, "w") as handle:
        handle["other"] = [1]
    whole = tmp_path / "whole.h5ad"
    cells.write_h5ad(whole)
    truncated = tmp_path / "truncated.h5ad"
    truncated.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for path, message in [
        (text, "not a readable h5ad"),
        (bare, "lacks obs, var, X"),
        (truncated, "truncated"),
        (tmp_path / "nowhere.h5ad", "no such data file"),
        (tmp_path, "directory"),
    ]:
        with pytest.raises(DataError, match=message):
            CellFile.open(path)


def test_writing_is_all_or_nothing(cells, tmp_path):
    path = tmp_path / "out.h5ad"
    cells.obs["bad"] = [object()] * 50
    with pytest.raises(Exception, match=r".+"):
        write_anndata(cells, path)
    assert list(tmp_path.iterdir()) == []
    del cells.obs["bad"]
    write_anndata(cells, path)
    np.testing.assert_array_equal(read_anndata(path).X.toarray(), cells.X.toarray())
