"""A pair is validated once, all problems together; layout and order of files change nothing."""

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.errors import DataError, EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.evaluation import evaluate, evaluate_by_cell_type
from steval.evaluator.reference.ceiling import split_pair
from support.engine_screens import screen

METRICS = ["mae", "pearson_delta", "discrimination_score_l1", "overlap_at_N", "de_nsig_counts"]


@pytest.fixture(scope="module")
def sides():
    return screen(num_perturbations=5, num_genes=150)


@pytest.fixture(scope="module")
def expected(sides):
    real, pred = sides
    with Pair.build(pred, real, Columns()) as pair:
        return evaluate(pair, METRICS).results


def assert_same(pred, real, expected):
    with Pair.build(pred, real, Columns()) as pair:
        found = evaluate(pair, METRICS).results
    assert found.drop("perturbation").to_numpy() == pytest.approx(expected.drop("perturbation").to_numpy(), abs=1e-6)
    assert found["perturbation"].to_list() == expected["perturbation"].to_list()


def test_shuffled_genes_are_matched_by_name(sides, expected):
    real, pred = sides
    order = np.random.default_rng(0).permutation(pred.n_vars)
    assert_same(pred[:, order].copy(), real, expected)


@pytest.mark.parametrize(
    "layout",
    ["csr", "csr gzip", "csr gzip sorted", "csc", "dense", "dense gzip", "dense float16", "csr int32 chunks"],
)
def test_layout_on_disk_does_not_matter(sides, expected, layout, tmp_path):
    real, pred = sides
    pred = pred.copy()
    if "sorted" in layout:
        pred = pred[np.argsort(pred.obs["target_gene"].astype(str).to_numpy(), kind="stable")].copy()
    if "csc" in layout:
        pred.X = sp.csc_matrix(pred.X)
    if "dense" in layout:
        pred.X = pred.X.toarray()
    path = tmp_path / "pred.h5ad"
    pred.write_h5ad(path, compression="gzip" if "gzip" in layout else None)
    if layout == "dense float16":
        with h5py.File(path, "r+") as handle:
            del handle["X"]
            stored = handle.create_dataset("X", data=pred.X.astype(np.float16))
            stored.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        with h5py.File(path) as handle:
            rounded = ad.AnnData(handle["X"][:].astype(np.float32), obs=pred.obs, var=pred.var)
        with Pair.build(rounded, real, Columns()) as pair:
            expected = evaluate(pair, METRICS).results
    if "chunks" in layout:
        with h5py.File(path, "r+") as handle:
            for name in ("data", "indices"):
                values = handle["X"][name][:]
                del handle["X"][name]
                handle["X"].create_dataset(name, data=values, chunks=(97,))
    assert_same(path, real, expected)
    with CellFile.open(path) as cells:
        assert_same(cells, real, expected)


def test_scattered_compressed_rows_leave_no_copy_behind(sides, tmp_path, monkeypatch):
    real, pred = sides
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    pred.write_h5ad(tmp_path / "pred.h5ad", compression="gzip")
    with Pair.build(tmp_path / "pred.h5ad", real, Columns()) as pair:
        assert list((tmp_path / "temporary").iterdir())
        evaluate(pair, ["mae"])
    assert not list((tmp_path / "temporary").iterdir())


def test_the_callers_anndata_is_left_as_it_was(sides):
    real, pred = sides
    unsorted = pred.copy()
    matrix = sp.csr_matrix(unsorted.X)
    first = slice(matrix.indptr[0], matrix.indptr[1])
    matrix.indices[first] = matrix.indices[first][::-1].copy()
    matrix.data[first] = matrix.data[first][::-1].copy()
    unsorted.X = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    before = unsorted.X.indices.copy()
    with Pair.build(unsorted, real, Columns()) as pair:
        evaluate(pair, ["mae"])
    np.testing.assert_array_equal(unsorted.X.indices, before)


def test_all_problems_are_told_together(sides):
    real, pred = sides
    names = sorted(set(pred.obs["target_gene"].astype(str)))
    broken = pred[~pred.obs["target_gene"].isin([names[0], "non-targeting"]), 5:].copy()
    with pytest.raises(EvaluationError) as caught:
        Pair.build(broken, real, Columns())
    text = str(caught.value)
    assert "no control cells" in text
    assert names[0] in text
    assert "lacks 5 of the 150 genes" in text
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cells: cells.obs.rename(columns={"target_gene": "gene"}),
            "no obs column 'target_gene'; the columns are: gene",
        ),
        (
            lambda cells: cells.obs.assign(target_gene=[None, *cells.obs["target_gene"][1:]]),
            r"predicted cells: 1 of \d+ cells have no value in obs column 'target_gene'",
        ),
    ],
)
def test_bad_labels_are_errors(sides, change, message):
    real, pred = sides
    broken = ad.AnnData(pred.X, obs=change(pred), var=pred.var)
    with pytest.raises(EvaluationError, match=message):
        Pair.build(broken, real, Columns())


def test_counts_and_scaled_values_are_refused(sides, counts_path, lognorm_path):
    with pytest.raises(EvaluationError, match="steval prepare"):
        Pair.build(counts_path, lognorm_path, Columns())
    real, pred = sides
    scaled = pred.copy()
    scaled.X = scaled.X.copy()
    scaled.X.data -= 1.0
    with pytest.raises(EvaluationError, match="negative"):
        Pair.build(scaled, real, Columns())


def test_a_bad_value_that_no_sample_shows_is_found_when_it_is_read():
    large = screen(num_perturbations=5, num_genes=150, cells=150, controls=300)[1]
    large.X.data[large.X.indptr[7] + 1] = 40.0
    pair = Pair.build(large, screen(num_perturbations=5, num_genes=150)[0], Columns())
    with pytest.raises(EvaluationError, match=r"hold values from .* to 40"):
        evaluate(pair, ["mae"])
    large.X.data[large.X.indptr[7] + 1] = np.nan
    pair = Pair.build(large, screen(num_perturbations=5, num_genes=150)[0], Columns())
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        evaluate(pair, ["mae"])


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_column_outside_the_matrix_is_found_before_compiled_code_writes_there(sides, tmp_path, where):
    real, pred = sides
    path = tmp_path / "pred.h5ad"
    pred.write_h5ad(path)
    with h5py.File(path, "r+") as handle:
        handle["X/indices"][0 if where == "first" else -1] = 10**6
    with pytest.raises(DataError, match="is damaged"), Pair.build(path, real, Columns()) as pair:
        evaluate(pair, METRICS)


def test_explicit_zeros_are_zeros(sides, expected):
    real, pred = sides
    padded = pred.copy()
    dense = padded.X.toarray()
    rows, columns = np.indices(dense.shape)
    padded.X = sp.csr_matrix((dense.ravel(), (rows.ravel(), columns.ravel())), shape=dense.shape)
    assert padded.X.nnz == dense.size
    assert_same(padded, real, expected)


def test_cell_types_are_scored_one_by_one_as_if_alone():
    real, pred = screen(num_perturbations=4, num_genes=120, cell_types=2)
    with Pair.build(pred, real, Columns()) as pair:
        together = evaluate_by_cell_type(pair, METRICS)
    assert list(together) == ["type0", "type1"]
    for name, evaluation in together.items():
        alone = [side[side.obs["cell_type"] == name].copy() for side in (pred, real)]
        assert_same(*alone, evaluation.results)


def test_a_cell_type_that_one_side_lacks_is_an_error():
    real, pred = screen(num_perturbations=4, num_genes=120, cell_types=2)
    with (
        Pair.build(pred[pred.obs["cell_type"] == "type0"].copy(), real, Columns()) as pair,
        pytest.raises(EvaluationError, match="1 cell type of the real cells missing: type1"),
    ):
        pair.by_cell_type()


def test_real_halves_can_be_scored_against_each_other(sides):
    real, pred = sides
    with Pair.build(pred, real, Columns()) as pair:
        halves, dropped = split_pair(pair, seed=0)
        results = evaluate(halves, ["mae", "discrimination_score_l1"]).results
    assert not dropped
    assert results["discrimination_score_l1"].min() > 0.7
    assert results["mae"].max() < 0.5


def test_declared_counts_of_the_file_are_believed(sides, tmp_path):
    real, pred = sides
    counts = pred.copy()
    counts.X = lognorm(sp.csr_matrix(np.rint(np.expm1(counts.X.toarray())).astype(np.float32)), 1e4)
    counts.uns["steval"] = {"scale": "counts"}
    with pytest.raises(EvaluationError, match="declared as counts, but holds fractions"):
        Pair.build(counts, real, Columns())
