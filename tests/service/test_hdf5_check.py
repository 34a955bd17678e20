"""HDF5 files that strangers made: what reaches outside, or unfolds to more than it holds, is refused."""

import h5py
import numpy as np
import pytest

from steval.errors import DataError
from steval.service.score.hdf5_check import require_harmless, require_hdf5

LIMIT = 1_000_000


@pytest.fixture
def h5ad(tmp_path, service_cells):
    path = tmp_path / "cells.h5ad"
    service_cells.write_h5ad(path)
    return path


def refused(path, words):
    with pytest.raises(DataError, match=words):
        require_harmless(path, "predictions", LIMIT)


def test_an_h5ad_is_harmless(h5ad):
    require_harmless(h5ad, "predictions", LIMIT)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04\x95", b"PK\x03\x04", b"\x89HDF"])
def test_other_files_are_refused_by_their_first_bytes(tmp_path, content):
    path = tmp_path / "x.h5ad"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not an h5ad"):
        require_hdf5(path, "predictions")


def test_a_truncated_file(h5ad):
    h5ad.write_bytes(h5ad.read_bytes()[:5000])
    refused(h5ad, "not a readable h5ad")


def test_links_to_other_places(h5ad, tmp_path):
    with h5py.File(h5ad, "a") as handle:
        handle["layers/secret"] = h5py.ExternalLink("/etc/passwd", "/X")
    refused(h5ad, "link")


def test_soft_links(h5ad):
    with h5py.File(h5ad, "a") as handle:
        handle["layers/again"] = h5py.SoftLink("/X")
    refused(h5ad, "link")


def test_data_in_other_files(h5ad, tmp_path):
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"\0" * 800)
    with h5py.File(h5ad, "a") as handle:
        handle.create_dataset("layers/raw", (100,), "f8", external=[(str(outside), 0, 800)])
    refused(h5ad, "other files")


def test_virtual_data_sets(h5ad, tmp_path):
    layout = h5py.VirtualLayout(shape=(10,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(10,))
    with h5py.File(h5ad, "a") as handle:
        handle.create_virtual_dataset("layers/virtual", layout)
    refused(h5ad, "other files")


def test_a_bomb_of_zeros(tmp_path):
    path = tmp_path / "bomb.h5ad"
    with h5py.File(path, "w") as handle:
        handle.create_dataset("X", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")
    assert path.stat().st_size < 10_000
    refused(path, "values")


def test_a_bomb_beside_the_matrix(h5ad):
    with h5py.File(h5ad, "a") as handle:
        handle.create_dataset("obsm/huge", (10**7, 10**4), "f4", chunks=(1000, 1000), compression="gzip")
    refused(h5ad, "unfold")


def test_a_sparse_matrix_of_impossible_shape(h5ad):
    with h5py.File(h5ad, "a") as handle:
        handle["X"].attrs["shape"] = np.array([10**9, 10**9])
    refused(h5ad, "values")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("indices", lambda old: old + 1000, id="columns beyond the last"),
        pytest.param("indices", lambda old: old - 1000, id="negative columns"),
        pytest.param("indptr", lambda old: old[::-1], id="pointers that fall"),
        pytest.param("indptr", lambda old: old * 2, id="pointers beyond the end"),
    ],
)
@pytest.mark.parametrize("place", ["X", "layers/more"])
def test_sparse_indices_outside_their_matrix(h5ad, place, name, change):
    with h5py.File(h5ad, "a") as handle:
        if place != "X":
            handle.copy("X", place)
        handle[place][name][...] = change(handle[place][name][:])
    refused(h5ad, f"sparse matrix /{place} is damaged")


def test_too_many_objects(tmp_path, monkeypatch):
    monkeypatch.setattr("steval.service.score.hdf5_check.MOST_OBJECTS", 50)
    path = tmp_path / "many.h5ad"
    with h5py.File(path, "w") as handle:
        handle.create_dataset("X", (2, 2), "f4")
        for number in range(51):
            handle.create_group(f"g{number}")
    refused(path, "objects")


def test_no_matrix(tmp_path):
    path = tmp_path / "none.h5ad"
    h5py.File(path, "w").close()
    refused(path, "no matrix X")
