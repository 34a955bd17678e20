import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from steval.data.cells.prepare import PrepareSettings, prepare, prepare_in_memory
from steval.data.cells.record import read_record
from steval.data.columns import ColumnOptions
from steval.errors import DataError


@pytest.fixture
def foreign() -> ad.AnnData:
    rng = np.random.default_rng(2)
    counts = rng.poisson(3.0, (30, 5)).astype(np.float32)
    obs = pd.DataFrame({"gene": ["NT"] * 10 + ["A"] * 15 + ["B"] * 4 + [None], "line": ["k"] * 30})
    obs.index = obs.index.astype(str)
    return ad.AnnData(X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["u", "v", "w", "v2", "x"]))


OPTIONS = ColumnOptions(perturbation="gene", control="NT", cell_type="line", drop_unlabelled=True)


def test_foreign_counts_become_declared_lognorm(foreign, tmp_path):
    foreign.write_h5ad(tmp_path / "in.h5ad")
    settings = PrepareSettings(target_sum=100.0, min_cells=5)
    with pytest.raises(DataError, match="1 of 30 cells have no value in obs column 'gene'"):
        strict = OPTIONS.model_copy(update={"drop_unlabelled": False})
        prepare(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=strict, settings=settings)
    report = prepare(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=OPTIONS, settings=settings)
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    assert out.n_obs == report.num_cells == 25
    np.testing.assert_allclose(np.expm1(out.X.toarray()).sum(axis=1), 100.0, rtol=1e-5)
    assert set(out.obs["target_gene"]) == {"NT", "A"}
    assert list(out.obs["cell_type"].unique()) == ["k"]
    record = read_record(out.uns)
    assert record["columns"] == {"perturbation": "target_gene", "control": "NT", "cell_type": "cell_type"}
    assert (record["scale"], record["target_sum"]) == ("lognorm", 100.0)
    assert any("1 cell without a perturbation label" in line for line in report.done)
    assert any("1 perturbation with fewer than 5 cells" in line for line in report.done)


def test_lognorm_input_keeps_its_values(lognorm_path, tmp_path):
    prepare(lognorm_path, tmp_path / "again.h5ad")
    first, again = ad.read_h5ad(lognorm_path), ad.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())
    assert read_record(again.uns)["target_sum"] == 10_000.0
    with pytest.raises(DataError, match="needs the raw counts"):
        prepare(lognorm_path, tmp_path / "other.h5ad", settings=PrepareSettings(target_sum=100.0))


def test_duplicate_genes_are_refused_or_added_up(foreign, tmp_path):
    foreign.var_names = ["u", "v", "w", "v", "x"]
    with pytest.warns(UserWarning, match="not unique"):
        foreign.write_h5ad(tmp_path / "in.h5ad")
        ad.read_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(DataError, match="more than once: v"):
        prepare(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=OPTIONS)
    assert not (tmp_path / "out.h5ad").exists()
    settings = PrepareSettings(target_sum=100.0, duplicate_genes="sum")
    prepare(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=OPTIONS, settings=settings)
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(out.var_names) == ["u", "v", "w", "x"]
    counts = foreign.X.toarray()[0]
    np.testing.assert_allclose(np.expm1(out.X.toarray()[0, 1]), 100 * (counts[1] + counts[3]) / counts.sum(), rtol=1e-5)


def test_a_gene_list_fixes_names_and_order(foreign, tmp_path):
    foreign.write_h5ad(tmp_path / "in.h5ad")
    prepare(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=OPTIONS, genes=["x", "u"])
    assert list(ad.read_h5ad(tmp_path / "out.h5ad").var_names) == ["x", "u"]
    with pytest.raises(DataError, match="lacks 1 of the 2 genes"):
        prepare(tmp_path / "in.h5ad", tmp_path / "out2.h5ad", options=OPTIONS, genes=["x", "zz"])
    assert not (tmp_path / "out2.h5ad").exists()


def test_filters_that_leave_no_controls_are_refused(foreign, tmp_path):
    foreign.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(DataError, match="leave no control cells"):
        prepare(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=OPTIONS, settings=PrepareSettings(min_counts=1e6))


@pytest.mark.parametrize("recorded", [{"base": 2.0}, {}], ids=["recorded", "told by the cells"])
def test_other_logarithms_are_turned_into_natural_ones(foreign, tmp_path, recorded):
    foreign.write_h5ad(tmp_path / "counts.h5ad")
    prepare(tmp_path / "counts.h5ad", tmp_path / "natural.h5ad", options=OPTIONS)
    natural = ad.read_h5ad(tmp_path / "natural.h5ad")
    other = natural.copy()
    other.X.data = (other.X.data / np.log(2)).astype(np.float32)
    other.uns = {"log1p": recorded}
    other.write_h5ad(tmp_path / "other.h5ad")
    options = ColumnOptions(control="NT")
    report = prepare(tmp_path / "other.h5ad", tmp_path / "again.h5ad", options=options)
    again = ad.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_allclose(again.X.toarray(), natural.X.toarray(), rtol=1e-6)
    assert any("base 2 turned into natural" in line for line in report.done)
    assert read_record(again.uns)["target_sum"] == 10_000.0


def test_sums_of_counts_are_not_filtered_in_lognorm(lognorm_path, tmp_path):
    with pytest.raises(DataError, match="--min-counts is about sums of counts"):
        prepare(lognorm_path, tmp_path / "o.h5ad", settings=PrepareSettings(min_counts=5))
    report = prepare(lognorm_path, tmp_path / "o.h5ad", settings=PrepareSettings(min_genes=1))
    assert report.num_cells == ad.read_h5ad(lognorm_path).n_obs


def test_in_memory_it_is_what_the_file_would_hold(foreign, tmp_path):
    foreign.obsm["X_pca"] = np.ones((30, 2))
    foreign.write_h5ad(tmp_path / "in.h5ad")  # which turns texts into categories
    before = foreign.copy()
    of_file = prepare(
        tmp_path / "in.h5ad", tmp_path / "out.h5ad", options=OPTIONS, settings=PrepareSettings(min_cells=5)
    )
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    made, report = prepare_in_memory(foreign, options=OPTIONS, settings=PrepareSettings(min_cells=5))
    np.testing.assert_array_equal(made.X.toarray(), written.X.toarray())
    pd.testing.assert_frame_equal(made.obs, written.obs)
    np.testing.assert_array_equal(made.obsm["X_pca"], written.obsm["X_pca"])
    assert list(made.var_names) == list(written.var_names)
    assert report.done == of_file.done
    assert report.path is None
    assert read_record(made.uns)["columns"] == read_record(written.uns)["columns"]
    np.testing.assert_array_equal(foreign.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(foreign.obs, before.obs)


def test_a_far_target_sum_is_told_with_a_nearer_one(foreign):
    """Five genes with three counts each on average: the median depth is about 15."""
    labelled = foreign.obs["gene"].notna().to_numpy()
    depth = float(np.median(foreign.X.toarray()[labelled].sum(axis=1)))
    _, far = prepare_in_memory(foreign, options=OPTIONS)
    assert far.found["median depth"] == f"{depth:g} counts a cell"
    assert f"--target-sum {depth:g}" in far.warnings[0]
    for near in (depth * 4, depth / 4):
        _, report = prepare_in_memory(foreign, options=OPTIONS, settings=PrepareSettings(target_sum=near))
        assert report.warnings == []
    _, below = prepare_in_memory(foreign, options=OPTIONS, settings=PrepareSettings(target_sum=1.0))
    assert "th of the median depth" in below.warnings[0]


def test_variable_genes_are_scanpys_in_their_order():
    rng = np.random.default_rng(4)
    counts = rng.negative_binomial(rng.uniform(0.3, 5, 200), 0.3, (90, 200)).astype(np.float32)
    counts[:, 7] = 0
    obs = pd.DataFrame({"target_gene": ["non-targeting", "A", "B"] * 30}, index=[f"c{i}" for i in range(90)])
    cells = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(200)]))
    made, report = prepare_in_memory(cells, settings=PrepareSettings(hvg=40))
    whole, _ = prepare_in_memory(cells)
    expressed = whole[:, [name for name in whole.var_names if name != "g7"]].copy()
    theirs = sc.pp.highly_variable_genes(expressed, n_top_genes=40, flavor="seurat", inplace=False)["highly_variable"]
    assert list(made.var_names) == list(expressed.var_names[theirs])
    assert "40 highly variable genes of 200 kept" in report.done
    np.testing.assert_array_equal(made.X.toarray(), whole[:, made.var_names].X.toarray())
    with pytest.raises(DataError, match="--hvg 201: the cells express 199 genes"):
        prepare_in_memory(cells, settings=PrepareSettings(hvg=201))
    with pytest.raises(DataError, match="give one of the two"):
        prepare_in_memory(cells, settings=PrepareSettings(hvg=2), genes=["g1"])


def test_a_chosen_column_takes_the_place_of_one_that_has_its_name(foreign):
    foreign.obs["cell_type"] = "T cell"
    made, report = prepare_in_memory(foreign, options=OPTIONS)
    assert list(made.obs["cell_type"].unique()) == ["k"]
    assert list(made.obs["cell_type_original"].unique()) == ["T cell"]
    assert "column 'cell_type' renamed to 'cell_type_original'" in report.done
    foreign.obs["cell_type_original"] = "more"
    with pytest.raises(DataError, match="'cell_type_original', which is there already"):
        prepare_in_memory(foreign, options=OPTIONS)


def test_the_cell_type_column_is_the_context_whatever_others_there_are(foreign):
    foreign.obs["cell_type"], foreign.obs["replicate"] = "T cell", ["r1", "r2"] * 15
    options = OPTIONS.model_copy(update={"cell_type": None})
    made, _ = prepare_in_memory(foreign, options=options)
    assert read_record(made.uns)["columns"]["cell_type"] == "cell_type"
    assert list(made.obs["cell_type"].unique()) == ["T cell"]
