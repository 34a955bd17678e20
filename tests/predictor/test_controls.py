"""Control pools: cells reach the network by gene name and on the checkpoint's scale, or the user is told why not."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.record import KEY
from steval.data.cells.scale import sample_indices
from steval.data.columns import ColumnOptions
from steval.data.example import example_path
from steval.errors import ConfigError, DataError
from steval.predictor.controls import SCALE_CELLS, cell_controls, checkpoint_controls, file_controls
from steval.predictor.plan import make_plan
from steval.predictor.requests import request_names
from support.predictor_models import NUM_GENES, manifest_for, tiny_config


def pool_of(cells, manifest, **options):
    return cell_controls(CellFile.wrap(cells), manifest, **options)


def measured(cells):
    return cells[(cells.obs["target_gene"] == "non-targeting").to_numpy()]


def test_own_controls_are_those_of_the_file(checkpoint, cells):
    pool = checkpoint_controls(checkpoint)
    rows = np.array([5, 0, 99])
    np.testing.assert_array_equal(pool.inputs(rows).toarray(), measured(cells).X[rows].toarray())
    np.testing.assert_array_equal(pool.measured(rows).toarray(), pool.inputs(rows).toarray())


def test_genes_are_aligned_by_name(checkpoint, cells):
    rng = np.random.default_rng(0)
    shuffled = cells[:, rng.permutation(NUM_GENES)].copy()
    pool = pool_of(shuffled, checkpoint.manifest)
    np.testing.assert_array_equal(pool.inputs(np.arange(100)).toarray(), measured(cells).X.toarray())
    with pytest.raises(AssertionError):
        trusted = pool_of(shuffled, checkpoint.manifest, trust_order=True)
        np.testing.assert_array_equal(trusted.inputs(np.arange(100)).toarray(), measured(cells).X.toarray())


def test_missing_genes_are_an_error_or_zeros_as_asked(checkpoint, cells):
    fewer = cells[:, 3:].copy()
    with pytest.raises(DataError, match="lacks 3 of the 120 genes"):
        pool_of(fewer, checkpoint.manifest)
    pool = pool_of(fewer, checkpoint.manifest, fill_missing="zero")
    found = pool.inputs(np.arange(100)).toarray()
    assert not found[:, :3].any()
    np.testing.assert_array_equal(found[:, 3:], measured(cells).X[:, 3:].toarray())
    assert pool.notes["input_genes_missing"] == 3


def test_trusted_order_needs_the_right_number_of_genes(checkpoint, cells):
    with pytest.raises(DataError, match="has 117 and the checkpoint's input 120"):
        pool_of(cells[:, 3:].copy(), checkpoint.manifest, trust_order=True)


def test_raw_counts_are_refused(checkpoint):
    with pytest.raises(DataError, match=r"holds counts .* but lognorm is needed here; use steval prepare"):
        file_controls(example_path(), checkpoint.manifest)


def test_another_target_sum_is_refused(checkpoint, cells):
    other = cells.copy()
    other.X.data = np.log1p(np.expm1(other.X.data) * 100)
    other.uns[KEY] = {**dict(cells.uns[KEY]), "target_sum": 1e6}
    with pytest.raises(DataError, match=r"target_sum 1e\+06, but the checkpoint was trained with 10000"):
        pool_of(other, checkpoint.manifest)


def test_columns_and_label_by_option(checkpoint, cells):
    renamed = cells.copy()
    renamed.obs = renamed.obs.rename(columns={"target_gene": "gene"})
    renamed.obs["gene"] = renamed.obs["gene"].astype(str).replace({"non-targeting": "NT"})
    with pytest.raises(DataError, match="no obs column 'target_gene'"):
        pool_of(renamed, checkpoint.manifest)
    with pytest.raises(DataError, match="label 'non-targeting' does not occur"):
        pool_of(renamed, checkpoint.manifest, columns=ColumnOptions(perturbation="gene"))
    pool = pool_of(renamed, checkpoint.manifest, columns=ColumnOptions(perturbation="gene", control="NT"))
    assert len(pool) == 100


def test_nan_among_the_controls(checkpoint, cells):
    broken = cells.copy()
    broken.X[np.flatnonzero(cells.obs["target_gene"] == "non-targeting")[3], 2] = np.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        pool_of(broken, checkpoint.manifest).inputs(np.arange(100))


def test_nan_beyond_the_cells_that_tell_the_scale(checkpoint, cells):
    """Found where the cell is used, and also where it would only be written beside the predictions."""
    many = ad.concat([cells] * 8, index_unique="-")
    many.uns = dict(cells.uns)
    rows = np.flatnonzero(many.obs["target_gene"] == "non-targeting")
    unseen = next(row for row in range(len(rows)) if row not in sample_indices(len(rows), SCALE_CELLS))
    values = many.X.toarray()
    values[rows[unseen], 2] = np.nan
    many.X = sp.csr_matrix(values)
    pool = pool_of(many, checkpoint.manifest)
    for read in (pool.inputs, pool.measured):
        assert np.isfinite(read(np.arange(unseen)).data).all()
        with pytest.raises(DataError, match="NaN or infinite"):
            read(np.array([unseen]))


def embedding_manifest(cells, **changes):
    config = tiny_config(input_dim=8, output_dim=8, input_key="X_state", output_space="embedding")
    return manifest_for(config, cells, **{"input_genes": None, "output_genes": None, **changes})


def test_embedding_comes_from_obsm(cells):
    manifest = embedding_manifest(cells)
    with pytest.raises(DataError, match="no obsm matrix 'X_state'; it has: "):
        pool_of(cells, manifest)
    embedded = cells.copy()
    embedded.obsm["X_state"] = np.arange(600 * 8, dtype=np.float32).reshape(600, 8)
    pool = pool_of(embedded, manifest)
    np.testing.assert_array_equal(pool.inputs(np.arange(100)).toarray(), measured(embedded).obsm["X_state"])
    embedded.obsm["X_state"] = embedded.obsm["X_state"][:, :5]
    with pytest.raises(DataError, match="has 5 columns; the checkpoint's input has 8"):
        pool_of(embedded, manifest)


def test_hvg_are_taken_from_x_by_name_and_from_obsm_only_on_trust(cells):
    genes = tuple(reversed(cells.var_names[10:30]))
    config = tiny_config(input_dim=20, output_dim=20, input_key="X_hvg", output_space="gene")
    manifest = manifest_for(config, cells, input_genes=genes, output_genes=genes)
    stored = cells.copy()
    stored.obsm["X_hvg"] = np.full((600, 20), 7.0, dtype=np.float32)
    pool = pool_of(stored, manifest)
    np.testing.assert_array_equal(pool.inputs(np.arange(100)).toarray(), measured(cells)[:, list(genes)].X.toarray())
    trusted = pool_of(stored, manifest, trust_order=True)
    assert (trusted.inputs(np.arange(100)).toarray() == 7).all()


def two_types(cells):
    both = cells.copy()
    both.obs["cell_type"] = ["A" if row % 3 else "B" for row in range(both.n_obs)]
    return both


def test_sets_keep_to_their_cell_type_and_batch(checkpoint, cells):
    pool = pool_of(two_types(cells), checkpoint.manifest)
    request = request_names(["SRC", "STAT1"], 40, cell_types=["A", "B"])
    for planned in make_plan(request, pool, checkpoint.manifest).sets():
        assert set(pool.cell_types[planned.control_indices]) == {planned.cell_type}
    batch = pool.batches[pool.cell_types == "A"][0]
    request = request_names(["SRC"], 40, cell_types=["A"], batch=batch)
    for planned in make_plan(request, pool, checkpoint.manifest).sets():
        assert set(pool.batches[planned.control_indices]) == {batch}


def test_a_pool_smaller_than_a_set_is_used_evenly(checkpoint, cells):
    rows = np.concatenate([np.flatnonzero(cells.obs["target_gene"] == "non-targeting")[:5], np.arange(3)])
    pool = pool_of(cells[np.unique(rows)].copy(), checkpoint.manifest)
    (planned,) = make_plan(request_names(["SRC"], 16), pool, checkpoint.manifest).sets()
    counts = np.bincount(planned.control_indices, minlength=len(pool))
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({}, "hold 2 cell types (A, B); choose with --cell-type", id="none chosen"),
        pytest.param({"cell_types": ["C"]}, "no cells of cell type 'C'; they hold: A, B", id="unknown type"),
        pytest.param({"cell_types": ["A"], "batch": "b9"}, "no A cells of batch 'b9'; they hold: Flex", id="batch"),
    ],
)
def test_cell_types_and_batches_that_the_pool_lacks(checkpoint, cells, options, match):
    pool = pool_of(two_types(cells), checkpoint.manifest)
    with pytest.raises(ConfigError) as caught:
        make_plan(request_names(["SRC"], 4, **options), pool, checkpoint.manifest)
    assert match in str(caught.value)
