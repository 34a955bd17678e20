"""Rows from memory and from disk, whatever the layout, are the lognormed and aligned rows of the files."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from steval.data.cells.genes import align
from steval.data.cells.scale import lognorm
from steval.data.rows.flat_array import FlatArray
from steval.data.rows.matrix import StoredMatrix
from steval.data.rows.open_file import OpenFile
from steval.data.rows.row_copies import cached_rows
from steval.data.training.files import matrix_paths
from steval.data.training.obsm_store import ObsmStore
from steval.data.training.row_store import RowStore, SourceFile, SparseRows
from steval.errors import DataError
from support.cells_on_disk import CONTROL, make_cells, write_as

CONTRACT = ["gene7", "gene2", "gene11", "gene0", "gene5"]
MEMORY, DISK = 2**30, 0


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return make_cells({"x": {"A": 40, "B": 30, CONTROL: 30}}, num_genes=15)


def store_of(
    path: Path, adata: ad.AnnData, target_sum: float | None, memory: int, contract: list[str] | None = None
) -> RowStore:
    alignment = align(list(adata.var_names), contract or list(adata.var_names))
    return RowStore([SourceFile(path, adata.n_obs, alignment, target_sum)], memory)


def dense_of(rows: SparseRows) -> np.ndarray:
    indptr = np.concatenate([[0], np.cumsum(rows.counts)])
    return sp.csr_matrix((rows.values, rows.columns, indptr), shape=(len(rows.counts), rows.num_genes)).toarray()


def expected_rows(adata: ad.AnnData, target_sum: float | None, contract: list[str] | None = None) -> np.ndarray:
    matrix = sp.csr_matrix(adata.X)
    matrix = lognorm(matrix, target_sum) if target_sum else matrix
    columns = [list(adata.var_names).index(gene) for gene in contract or adata.var_names]
    return matrix.toarray()[:, columns]


@pytest.mark.parametrize("memory", [pytest.param(MEMORY, id="memory"), pytest.param(DISK, id="disk")])
@pytest.mark.parametrize("layout", ["csr", "csr-chunked", "csr-gzip", "dense", "dense-gzip"])
@pytest.mark.parametrize("contract", [None, CONTRACT], ids=["same genes", "aligned"])
@pytest.mark.parametrize("target_sum", [None, 200.0], ids=["as stored", "counts"])
def test_rows_are_those_of_the_file(
    cells: ad.AnnData, tmp_path: Path, layout: str, contract: list[str] | None, target_sum: float | None, memory: int
) -> None:
    path = write_as(cells, tmp_path / "cells.h5ad", layout)
    store = store_of(path, cells, target_sum, memory, contract)
    assert store.place == ("disk" if memory == DISK else "dense memory")
    indices = np.array([99, 3, 3, -1, 50, 0, 51, 52])
    expected = expected_rows(cells, target_sum, contract)[indices]
    expected[3] = 0
    out = np.full(expected.shape, 7, dtype=np.float32)
    assert store.gather(indices, out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_allclose(store.gather(indices), expected, rtol=1e-6)
    if store.place == "disk":
        np.testing.assert_allclose(dense_of(store.gather_sparse(indices)), expected, rtol=1e-6)


def test_large_counts_and_empty_cells_are_lognormed_like_all(tmp_path: Path) -> None:
    adata = make_cells({"x": {"A": 5, CONTROL: 5}}, num_genes=6)
    dense = adata.X.toarray()
    dense[0] = 0
    dense[1] = [63, 64, 65, 1_000_000, 0, 1]
    adata.X = sp.csr_matrix(dense)
    store = store_of(write_as(adata, tmp_path / "c.h5ad", "csr"), adata, 1e4, DISK)
    np.testing.assert_allclose(store.gather(np.arange(10)), expected_rows(adata, 1e4), rtol=1e-6)
    np.testing.assert_array_equal(dense_of(store.gather_sparse(np.arange(10))), store.gather(np.arange(10)))


@pytest.mark.parametrize("kind", ["float64", "int32", "uint16"])
def test_other_number_types_are_read(cells: ad.AnnData, tmp_path: Path, kind: str) -> None:
    other = cells.copy()
    other.X = cells.X.astype(kind)
    store = store_of(write_as(other, tmp_path / "c.h5ad", "csr"), other, 200, DISK)
    np.testing.assert_allclose(store.gather(np.arange(100)), expected_rows(cells, 200), rtol=1e-6)


def test_sparse_memory_gathers_the_same(cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = cells.copy()
    sparse.X = cells.X.multiply(cells.X > 4).tocsr()
    monkeypatch.setattr("steval.data.training.row_store.SMALL_BYTES", 0)
    store = store_of(write_as(sparse, tmp_path / "c.h5ad", "csr"), sparse, None, MEMORY)
    assert store.place == "sparse memory"
    indices = np.array([5, -1, 98, 5])
    expected = sparse.X.toarray()[indices]
    expected[1] = 0
    assert np.array_equal(store.gather(indices, np.full((4, 15), 7, dtype=np.float32)), expected)
    assert np.array_equal(
        store.expression_digests(np.arange(100))[0],
        store_of(Path(store.files[0].path), sparse, None, DISK).expression_digests(np.arange(100))[0],
    )


def test_several_files_are_one_range_of_numbers(tmp_path: Path) -> None:
    parts = [make_cells({"x": {"A": size, CONTROL: 4}}, seed=size) for size in (6, 9)]
    paths = [write_as(part, tmp_path / f"{number}.h5ad", "csr") for number, part in enumerate(parts)]
    names = list(parts[0].var_names)
    files = [SourceFile(path, part.n_obs, align(names, names), None) for path, part in zip(paths, parts, strict=True)]
    both = np.concatenate([part.X.toarray() for part in parts])
    for memory in (MEMORY, DISK):
        store = RowStore(files, memory)
        indices = np.random.default_rng(0).integers(0, len(both), 50)
        assert np.array_equal(store.gather(indices), both[indices])
        if memory == DISK:
            assert np.array_equal(dense_of(store.gather_sparse(indices)), both[indices])
        assert store.locate(10) == (1, 0)
        with pytest.raises(IndexError, match="from -1 to 22"):
            store.gather(np.array([23]))


@pytest.mark.parametrize("memory", [MEMORY, DISK])
def test_a_store_survives_pickling_and_threads(cells: ad.AnnData, tmp_path: Path, memory: int) -> None:
    store = store_of(write_as(cells, tmp_path / "c.h5ad", "csr-gzip"), cells, 200, memory)
    expected = store.gather(np.arange(100))
    gather = {MEMORY: RowStore.gather, DISK: lambda store, order: dense_of(store.gather_sparse(order))}[memory]
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  (our own object)
    orders = [np.random.default_rng(seed).permutation(100) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for order, rows in zip(orders, pool.map(partial(gather, again), orders), strict=True):
            assert np.array_equal(rows, expected[order])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_ranges_of_a_chunked_array_are_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    length, chunk = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 20))
    path = tmp_path_factory.mktemp("flat") / "a.h5"
    values = np.arange(length * 3, dtype=np.float32).reshape(length, 3)
    with h5py.File(path, "w") as handle:
        handle.create_dataset("v", data=values, chunks=(min(chunk, length), 3))
    starts = np.array(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=8)))
    stops = np.minimum(
        starts + np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(starts), max_size=len(starts)))), length
    )
    with h5py.File(path, "r") as handle, path.open("rb") as raw:
        flat = FlatArray(handle["v"], raw.fileno(), threading.Lock(), path)
        assert flat.is_plain
        out = np.empty((int((stops - starts).sum()), 3), dtype=np.float32)
        flat.read(starts, stops, out)
    assert np.array_equal(out, np.concatenate([values[a:b] for a, b in zip(starts, stops, strict=True)]))


@pytest.mark.parametrize("layout", ["csc", "csc-gzip", "csr-gzip"])
@pytest.mark.parametrize("memory", [pytest.param(400, id="many buckets"), pytest.param(2**30, id="one bucket")])
def test_a_copy_by_rows_holds_the_same_matrix(cells: ad.AnnData, tmp_path: Path, layout: str, memory: int) -> None:
    path = write_as(cells, tmp_path / "c.h5ad", layout)
    copy = cached_rows(StoredMatrix(OpenFile(path)), tmp_path / "cache", memory)
    with h5py.File(copy, "r") as handle:
        assert handle["X/data"].id.get_create_plist().get_nfilters() == 0
    store = store_of(copy, cells, None, DISK)
    assert np.array_equal(store.gather(np.arange(100)), cells.X.toarray())
    assert cached_rows(StoredMatrix(OpenFile(path)), tmp_path / "cache", memory) == copy
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [copy.name]


def test_only_what_is_too_large_and_slow_is_copied(cells: ad.AnnData, tmp_path: Path) -> None:
    csc = write_as(cells, tmp_path / "csc.h5ad", "csc")
    gzip = write_as(cells, tmp_path / "gzip.h5ad", "csr-gzip")
    plain = write_as(cells, tmp_path / "plain.h5ad", "csr")
    assert matrix_paths([csc, gzip, plain], MEMORY, None) == ([csc, gzip, plain], [])
    with pytest.raises(DataError, match=r"CSC layout are too large(?s:.*)cache_dir(?s:.*)csc.h5ad"):
        matrix_paths([csc, plain], DISK, None)
    paths, notes = matrix_paths([gzip, plain], DISK, None)
    assert paths == [gzip, plain]
    assert "cache_dir" in notes[0]
    paths, notes = matrix_paths([csc, gzip, plain], DISK, tmp_path / "cache")
    assert [path.parent.name == "cache" for path in paths] == [True, True, False]


@pytest.mark.parametrize("memory", [MEMORY, DISK])
def test_an_embedding_is_gathered_by_row(cells: ad.AnnData, tmp_path: Path, memory: int) -> None:
    embedded = cells.copy()
    embedded.obsm["X_state"] = np.random.default_rng(0).normal(size=(100, 4))
    path = write_as(embedded, tmp_path / "c.h5ad", "csr")
    store = ObsmStore([path, path], [100, 100], "X_state", memory)
    gathered = store.gather(np.array([150, -1, 3]))
    expected = embedded.obsm["X_state"][[50, 0, 3]].astype(np.float32)
    expected[1] = 0
    assert gathered.dtype == np.float32
    assert np.array_equal(gathered, expected)
    with pytest.raises(DataError, match="no obsm matrix 'X_pca'; it has: X_state"):
        ObsmStore([path], [100], "X_pca", memory)
