"""obs columns of every stored kind become sorted names and codes, block by block."""

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from steval.data.cells.obs_codes import column_names, num_rows, read_coded, row_names
from steval.errors import DataError

LABELS = ["b", "a", "c", "a", "b", "a", "c"]
COLUMNS = {
    "categorical": pd.Categorical(LABELS, categories=["unused", "c", "b", "a"]),
    "text": LABELS,
    "nullable text": pd.array(LABELS, dtype="string"),
    "integers": [11, 2, 300, 2, 11, 2, 300],
    "nullable integers": pd.array([11, 2, 300, 2, 11, 2, 300], dtype="Int64"),
    "booleans": [True, False, True, False, True, False, True],
}


def write(handle: h5py.File, frame: pd.DataFrame) -> None:
    with ad.settings.override(allow_write_nullable_strings=True):
        ad.io.write_elem(handle, "obs", frame)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    frame = pd.DataFrame(COLUMNS, index=[f"cell{number}" for number in range(7)])
    with h5py.File(tmp_path / "obs.h5", "w") as handle:
        write(handle, frame)
    return tmp_path / "obs.h5"


@pytest.mark.parametrize("block", [2, 100])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_its_codes_into_sorted_names(
    path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steval.data.cells.obs_codes.BLOCK_ROWS", block)
    with h5py.File(path, "r") as handle:
        column = read_coded(handle["obs"], name)
    expected = [str(value) for value in COLUMNS[name]]
    assert [column.names[code] for code in column.codes] == expected
    assert column.names == tuple(sorted(set(expected)))
    assert column.codes.dtype == np.int32


def test_the_frame_says_its_columns_rows_and_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steval.data.cells.obs_codes.BLOCK_ROWS", 3)
    with h5py.File(path, "r") as handle:
        assert column_names(handle["obs"]) == list(COLUMNS)
        assert num_rows(handle["obs"]) == 7
        assert np.concatenate(list(row_names(handle["obs"]))).tolist() == [f"cell{number}" for number in range(7)]


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_the_layout_of_anndata_0_7_is_read_too(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as handle:
        obs = handle.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "names"})
        obs.attrs["column-order"] = np.array(["gene"], dtype=h5py.string_dtype())
        obs["names"] = np.array(["cell0", "cell1", "cell2"], dtype=h5py.string_dtype())
        obs["gene"] = np.array([1, 0, 1], dtype=np.int8)
        obs["__categories/gene"] = np.array(["y", "x"], dtype=h5py.string_dtype())
        obs["gene"].attrs["categories"] = obs["__categories/gene"].ref
    with h5py.File(tmp_path / "old.h5", "r") as handle:
        assert column_names(handle["obs"]) == ["gene"]
        assert num_rows(handle["obs"]) == 3
        column = read_coded(handle["obs"], "gene")
        assert [column.names[code] for code in column.codes] == ["x", "y", "x"]
        assert next(row_names(handle["obs"])).tolist() == ["cell0", "cell1", "cell2"]


@pytest.mark.parametrize(
    "values",
    [pd.Categorical(["a", None]), pd.array(["a", None], dtype="string"), ["a", ""], ["a", " "], [1.0, np.nan]],
)
def test_cells_without_a_label_have_no_code(tmp_path: Path, values: object) -> None:
    with h5py.File(tmp_path / "obs.h5", "w") as handle:
        write(handle, pd.DataFrame({"gene": values}, index=["x", "y"]))
    with h5py.File(tmp_path / "obs.h5", "r") as handle:
        column = read_coded(handle["obs"], "gene")
    assert column.codes.tolist() == [0, -1]
    assert column.missing.tolist() == [False, True]
    assert len(column.names) == 1
    filled = column.filled("none")
    assert [filled.names[code] for code in filled.codes] == [column.names[0], "none"]


def test_codes_of_no_category_are_damage(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "obs.h5", "w") as handle:
        write(handle, pd.DataFrame({"gene": pd.Categorical(["a", "b"])}, index=["x", "y"]))
        handle["obs/gene/codes"][1] = 7
    with h5py.File(tmp_path / "obs.h5", "r") as handle, pytest.raises(DataError, match="codes of no category"):
        read_coded(handle["obs"], "gene")
