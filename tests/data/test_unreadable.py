"""Whatever is damaged or unknown in an h5ad is a `DataError` that names the file, wherever a reader meets it."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from steval.data.cells.cellfile import CellFile
from steval.errors import DataError
from tests.support.predictor_models import lognorm_cells


def endless_link(place: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[place]
        file[place] = h5py.SoftLink(f"/{place}")

    return change


def unknown_encoding(place: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[place].attrs["encoding-type"] = "9.9.9"

    return change


def shortened(file: h5py.File) -> None:
    codes = file["obs/target_gene/codes"][:5]
    del file["obs/target_gene/codes"]
    file["obs/target_gene/codes"] = codes


CHANGES = {
    "a link without end in X": endless_link("X/data"),
    "X itself": endless_link("X"),
    "obsm": endless_link("obsm"),
    "a column": endless_link("obs/target_gene"),
    "an unknown encoding of uns": unknown_encoding("uns"),
    "of var": unknown_encoding("var"),
    "of a column": unknown_encoding("obs/target_gene"),
    "fewer codes than cells": shortened,
}


def read_all(path: Path) -> None:
    with CellFile.open(path, with_obs=False) as cells:
        cells.rows(np.arange(cells.num_cells))
        for key in cells.obsm_keys:
            cells.obsm(key, [0])
        names = cells.column_names()
        assert sum(len(block) for block in cells.row_names()) == cells.num_cells
        for name in names:
            assert len(cells.coded(name).codes) == cells.num_cells
    with CellFile.open(path):
        pass


@pytest.mark.parametrize("change", CHANGES)
def test_every_reader_says_what_it_cannot_read(change: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    lognorm_cells()[::20].copy().write_h5ad(path)
    read_all(path)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(DataError, match=r"cells\.h5ad"):
        read_all(path)


def test_bytes_that_are_changed_where_hdf5_describes_itself(tmp_path: Path) -> None:
    lognorm_cells()[::60].copy().write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for place in generator.integers(0, 4096, size=20):
            content[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "cells.h5ad").write_bytes(content)
        try:
            read_all(tmp_path / "cells.h5ad")
        except DataError:
            refused += 1
    assert refused > 20
