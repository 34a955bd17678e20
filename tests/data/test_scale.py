import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import lognorm, measure, require_scale, resolve_scale
from steval.errors import DataError


@pytest.fixture
def counts() -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(1).poisson(2.0, (40, 30)).astype(np.float32))


def wrap(matrix, **record) -> CellFile:
    cells = ad.AnnData(X=sp.csr_matrix(matrix))
    if record:
        cells.uns["steval"] = record
    return CellFile.wrap(cells, "cells.h5ad")


def test_lognorm_gives_every_cell_the_target_sum(counts):
    totals = np.expm1(lognorm(counts, 200.0).toarray().astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(totals, 200.0, rtol=1e-5)
    expected = np.log1p(counts.toarray()[0] * 200 / counts.toarray()[0].sum())
    np.testing.assert_allclose(lognorm(counts, 200.0).toarray()[0], expected, rtol=1e-6)


def test_empty_cells_stay_zero():
    assert lognorm(sp.csr_matrix(np.zeros((2, 3))), 10.0).nnz == 0


def test_measured_scales(counts):
    assert measure(counts).scale == "counts"
    measured = measure(lognorm(counts, 10_000.0))
    assert (measured.scale, measured.target_sum) == ("lognorm", 10_000.0)
    subset = measure(lognorm(counts, 10_000.0)[:, :10])
    assert (subset.scale, subset.target_sum) == ("lognorm", None)


def test_normalised_without_log_is_ambiguous(counts):
    linear = lognorm(counts, 10_000.0)
    linear.data = np.expm1(linear.data)
    with pytest.raises(DataError, match="ambiguous"):
        measure(linear)


@pytest.mark.parametrize(("value", "message"), [(-1.5, "negative"), (np.nan, "NaN"), (np.inf, "infinite")])
def test_impossible_values_are_refused(counts, value, message):
    counts.data[3] = value
    with pytest.raises(DataError, match=message):
        measure(counts)


def test_a_declaration_that_the_values_contradict_is_refused(counts):
    with pytest.raises(DataError, match="raw counts"):
        resolve_scale(wrap(counts, scale="lognorm"))
    with pytest.raises(DataError, match="declared as counts, but holds fractions"):
        resolve_scale(wrap(lognorm(counts, 100.0), scale="counts"))
    with pytest.raises(DataError, match="raw counts"):
        resolve_scale(wrap(counts), option="lognorm")


def test_the_option_settles_what_is_not_declared(counts):
    record = resolve_scale(wrap(lognorm(counts, 100.0)), option="lognorm")
    assert (record.scale, record.target_sum, record.declared) == ("lognorm", 100.0, True)


def test_require_scale_says_how_to_get_it(counts):
    with pytest.raises(DataError, match=r"steval prepare cells\.h5ad"):
        require_scale(wrap(counts), "lognorm")
