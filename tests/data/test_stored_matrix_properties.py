"""However a sparse matrix is stored, every reader of it sees the same numbers: cells, training from memory and disk, scores."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import lognorm
from steval.data.splits.assignment import CellSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import whole_group
from support.cells_on_disk import CONTROL, make_cells, write_as

CELLS = make_cells({"x": {"A": 14, "B": 8, CONTROL: 8}}, num_genes=9)
COUNTS = CELLS.X.toarray()
TARGET_SUM = 1e4

FORMS = {
    "layout": ("csr", "csc"),
    "split": (False, True),
    "zeros": (False, True),
    "shuffled": (False, True),
    "indices": ("int32", "int64", "uint32"),
    "pointers": ("int32", "int64"),
    "values": ("float32", "float64", "int32", "uint16"),
    "chunked": (False, True),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_as(CELLS, tmp_path_factory.mktemp("stored") / "cells.h5ad", "csr")


def store(path: Path, form: dict[str, object], generator: np.random.Generator) -> None:
    """Put the counts into X again in this form: in parts that add up, with zeros of their own, in any order."""
    rows, columns = np.nonzero(COUNTS)
    values = COUNTS[rows, columns]
    if form["split"]:
        first = np.floor(values * generator.random(len(values)))
        rows, columns = np.tile(rows, 2), np.tile(columns, 2)
        values = np.concatenate([first, values - first])
    if form["zeros"]:
        more = generator.integers(0, COUNTS.shape, (20, 2))
        rows, columns = np.concatenate([rows, more[:, 0]]), np.concatenate([columns, more[:, 1]])
        values = np.concatenate([values, np.zeros(len(more))])
    major, minor = (rows, columns) if form["layout"] == "csr" else (columns, rows)
    order = generator.permutation(len(values)) if form["shuffled"] else np.lexsort((minor, major))
    order = order[np.argsort(major[order], kind="stable")]
    pointers = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=COUNTS.shape[form["layout"] == "csc"]))])
    with h5py.File(path, "r+") as handle:
        group = handle["X"]
        group.attrs["encoding-type"] = f"{form['layout']}_matrix"
        for name, array, kind in (
            ("data", values[order], form["values"]),
            ("indices", minor[order], form["indices"]),
            ("indptr", pointers, form["pointers"]),
        ):
            del group[name]
            chunks = (7,) if form["chunked"] and name != "indptr" else None
            group.create_dataset(name, data=array.astype(kind), chunks=chunks)


def trained(path: Path, memory_gb: float, cache: Path) -> TrainingCells:
    values = {"files": [str(path)], "target_sum": TARGET_SUM, "memory_gb": memory_gb, "cache_dir": str(cache)}
    return TrainingCells.open(CellsSettings.parse(values), CellSplit())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(form=st.fixed_dictionaries({name: st.sampled_from(kinds) for name, kinds in FORMS.items()}), seed=st.integers(0))
def test_every_reader_sees_the_same_matrix(
    stored: Path, tmp_path_factory: pytest.TempPathFactory, form: dict[str, object], seed: int
) -> None:
    place = tmp_path_factory.mktemp("form")
    path = place / "cells.h5ad"
    path.write_bytes(stored.read_bytes())
    store(path, form, np.random.default_rng(seed))
    everything = np.arange(len(COUNTS))

    with CellFile.open(path) as cells:
        rows = cells.rows(everything)
        assert rows.has_canonical_format and rows.nnz == np.count_nonzero(COUNTS)
        assert np.array_equal(rows.toarray(), COUNTS)

    expected = lognorm(sp.csr_matrix(COUNTS), TARGET_SUM).toarray()
    for memory_gb, kept in ((1.0, "dense memory"), (0.0, "disk")):
        training = trained(path, memory_gb, place / "cache")
        assert training.store.place == kept
        np.testing.assert_allclose(training.gather(everything), expected, rtol=1e-6)
    packed = training.store.gather_sparse(everything)
    rows = np.repeat(everything, packed.counts)
    np.testing.assert_allclose(packed.values, expected[rows, packed.columns], rtol=1e-6)
    assert len(np.unique(rows * packed.num_genes + packed.columns)) == len(rows)
    assert np.count_nonzero(packed.values) == np.count_nonzero(expected)

    with Pair.build(path, path, scale="counts", takes="counts") as pair:
        for name, side in (("A", "pred"), ("B", "pred"), (CONTROL, "real")):
            group = whole_group(pair.side(side), name)
            assert group.has_canonical_format and group.nnz == np.count_nonzero(group.toarray())
            assert np.array_equal(group.toarray(), COUNTS[(CELLS.obs["target_gene"] == name).to_numpy()])
