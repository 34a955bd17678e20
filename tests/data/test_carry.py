"""Control cells that carry a mean: exact, valid, sparse, repeatable."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steval.data.cells.scale import lognorm
from steval.data.effects.carry import carry, ceiling_of, expressing_share, mean_of_cells
from steval.errors import DataError

TARGET_SUM = 1e4


def controls(num_cells=60, num_genes=40, seed=0, depth=500):
    """Lognorm cells whose genes range from never to always expressed; gene 0 is silent."""
    generator = np.random.default_rng(seed)
    rates = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, num_genes - 1)])
    counts = generator.poisson(rates / rates.sum() * depth, (num_cells, num_genes))
    return lognorm(sp.csr_matrix(counts.astype(np.float32)), TARGET_SUM)


def carried(cells, wanted, seed=0, **options):
    return carry(cells, wanted, np.random.default_rng(seed), target_sum=TARGET_SUM, **options)


changes = hnp.arrays(np.float64, 40, elements=st.floats(-12, 12, allow_nan=False))


@settings(max_examples=60, deadline=None)
@given(changes=changes, follow=st.sampled_from([0.0, 0.4, 1.0]), num_cells=st.integers(1, 70), seed=st.integers(0, 5))
def test_means_are_exact_within_the_range_and_values_valid(changes, follow, num_cells, seed):
    cells = controls(num_cells, seed=seed)
    wanted = mean_of_cells(cells) + changes
    result = carried(cells, wanted, zeros_follow=follow)
    ceiling = ceiling_of(TARGET_SUM)
    reached = mean_of_cells(result.cells)
    np.testing.assert_allclose(reached, np.clip(wanted, 0, ceiling), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(result.missed, wanted - reached, atol=1e-5)
    assert (result.cells.data > 0).all()
    assert result.cells.data.max(initial=0) < np.log1p(TARGET_SUM)
    assert result.cells.dtype == cells.dtype
    assert result.cells.has_canonical_format


@settings(max_examples=40, deadline=None)
@given(factors=hnp.arrays(np.float64, 40, elements=st.floats(0, 1.2)), seed=st.integers(0, 5))
def test_zeros_stay_zeros_where_the_expressing_cells_can_bear_the_mean(factors, seed):
    cells = controls(seed=seed)
    result = carried(cells, mean_of_cells(cells) * factors).cells.toarray()
    before = cells.toarray()
    bearable = before.sum(axis=0) * factors <= before.max() * (before > 0).sum(axis=0)
    assert not result[:, bearable][before[:, bearable] == 0].any()
    for gene in np.flatnonzero(bearable & (factors > 0)):
        order = np.argsort(before[:, gene], kind="stable")
        assert (np.diff(result[order, gene]) >= 0).all()


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_only_changed_genes_are_touched_whatever_the_others_do(follow):
    cells = controls()
    mean = mean_of_cells(cells)
    one, two = mean.copy(), mean.copy()
    one[[5, 30]] += 0.7
    two[[5, 20]] += 0.7, 0.2
    first, second = (carried(cells, wanted, zeros_follow=follow).cells.toarray() for wanted in (one, two))
    same = np.setdiff1d(np.arange(40), [5, 30])
    np.testing.assert_array_equal(first[:, same], cells.toarray()[:, same])
    np.testing.assert_array_equal(first[:, 5], second[:, 5])


def test_a_gene_that_no_cell_expresses_switches_on_in_the_share_of_its_rate():
    cells = controls(num_cells=400)
    wanted = mean_of_cells(cells)
    wanted[0] = 2.0
    result = carried(cells, wanted).cells.toarray()[:, 0]
    typical = np.median(cells.data)
    assert result.mean() == pytest.approx(2.0, rel=1e-5)
    assert (result > 0).mean() == pytest.approx(1 - np.exp(-2.0 / typical), abs=0.003)
    np.testing.assert_allclose(result[result > 0], result.max(), rtol=1e-6)


def test_the_whole_of_a_large_effect_on_a_rare_gene_is_carried():
    cells = controls(num_cells=400)
    gene = int(np.flatnonzero((cells.toarray() > 0).mean(axis=0) > 0.01)[0])
    wanted = mean_of_cells(cells)
    wanted[gene] += 1.5
    result = carried(cells, wanted)
    np.testing.assert_allclose(mean_of_cells(result.cells), wanted, rtol=1e-5)
    assert result.cells.data.max() <= cells.data.max() * (1 + 1e-6)


@pytest.mark.parametrize("ratio", [0.4, 1.4])
def test_zeros_follow_the_mean_as_far_as_asked(ratio):
    cells = controls(num_cells=2000)
    before = (cells.toarray() > 0).mean(axis=0)
    gene = int(np.argmin(np.abs(before - 0.3)))
    wanted = mean_of_cells(cells)
    wanted[gene] *= ratio
    lawful = expressing_share(before[gene], ratio)
    shares = [
        (carried(cells, wanted, zeros_follow=follow).cells.toarray()[:, gene] > 0).mean() for follow in (0, 0.5, 1)
    ]
    np.testing.assert_allclose(shares, [before[gene], (before[gene] + lawful) / 2, lawful], atol=1e-3)


def test_cells_with_many_counts_get_no_zeros_and_vary_as_before():
    """A gene of mean 3 that every cell expresses is 0 in none: one zero among 40 cells would double its variance."""
    cells = controls(num_cells=40, depth=50_000)
    expressed = (cells.toarray() > 0).all(axis=0)
    result = carried(cells, mean_of_cells(cells) * 0.8, zeros_follow=1.0).cells.toarray()
    assert expressed.sum() > 20
    assert (result[:, expressed] > 0).all()
    assert (result.var(axis=0) <= cells.toarray().var(axis=0) + 1e-9)[expressed].all()


def test_expressing_share_is_what_thinned_counts_have():
    counts = np.random.default_rng(0).poisson(0.8, 200_000)
    thinned = np.random.default_rng(1).binomial(counts, 0.3)
    assert expressing_share((counts > 0).mean(), 0.3) == pytest.approx((thinned > 0).mean(), abs=0.003)


def test_equal_generators_give_equal_cells():
    cells = controls()
    wanted = mean_of_cells(cells) * 1.8 + 0.1
    first, again, other = (carried(cells, wanted, seed, zeros_follow=1.0).cells for seed in (3, 3, 4))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


def test_what_cannot_be_carried_is_refused():
    cells = controls()
    mean = mean_of_cells(cells)
    for wanted in (mean[:-1], np.where(np.arange(40) == 3, np.nan, mean)):
        with pytest.raises(DataError, match="a mean is carried by"):
            carried(cells, wanted)
    with pytest.raises(DataError, match="at least one cell"):
        carried(cells[:0], mean)
    with pytest.raises(DataError, match="share from 0 to 1"):
        carried(cells, mean, zeros_follow=1.5)
    with pytest.raises(DataError, match="'counts'"):
        carried(cells, mean, scale="counts")
