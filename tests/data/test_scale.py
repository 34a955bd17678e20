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


def in_base(counts: sp.csr_matrix, base: float) -> sp.csr_matrix:
    logs = lognorm(counts, 100.0)
    logs.data = (logs.data / np.log(base)).astype(np.float32)
    return logs


@pytest.mark.parametrize("recorded", [2, 2.0, np.float32(2), np.array([2.0]), np.array(2)], ids=repr)
@pytest.mark.parametrize("kept", [slice(None), slice(0, 3)], ids=["all genes", "some genes"])
def test_logarithms_to_a_recorded_base_are_refused(counts, recorded, kept):
    cells = wrap(in_base(counts, 2)[:, kept])
    cells.uns["log1p"] = {"base": recorded}
    for option in (None, "lognorm"):
        with pytest.raises(DataError, match=r"logarithms to base 2, .*steval prepare cells\.h5ad"):
            resolve_scale(cells, option)


@pytest.mark.parametrize("base", [2, 10])
@pytest.mark.parametrize("declared", [None, "lognorm"])
def test_logarithms_to_another_base_are_told_by_the_cells(counts, base, declared):
    cells = wrap(in_base(counts, base), scale=declared) if declared else wrap(in_base(counts, base))
    with pytest.raises(DataError, match=f"logarithms to base {base}"):
        resolve_scale(cells)


@pytest.mark.parametrize("recorded", [None, np.e, float(np.float32(np.e)), {}, "text"], ids=repr)
def test_natural_logarithms_are_what_lognorm_means(counts, recorded):
    cells = wrap(lognorm(counts, 100.0))
    cells.uns["log1p"] = {"base": recorded}
    assert resolve_scale(cells).target_sum == 100.0


def test_a_record_that_the_cells_contradict_is_refused(counts):
    cells = wrap(lognorm(counts, 100.0))
    cells.uns["log1p"] = {"base": 2.0}
    with pytest.raises(DataError, match=r"records logarithms to base 2, but its cells have a common total \(100\)"):
        resolve_scale(cells)
    with pytest.raises(DataError, match=r"declares target_sum 10000, but its cells have 100 in common"):
        resolve_scale(wrap(lognorm(counts, 100.0), scale="lognorm", target_sum=10_000.0))
    with pytest.raises(DataError, match=r"declares the scale 'tpm'; it is one of counts, lognorm, embedding"):
        resolve_scale(wrap(counts, scale="tpm"))


def test_a_base_beside_counts_does_not_matter(counts):
    cells = wrap(counts)
    cells.uns["log1p"] = {"base": 2.0}
    assert resolve_scale(cells).scale == "counts"
