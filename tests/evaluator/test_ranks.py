"""Differential expression against scipy's own tests, value by value."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from steval.data.columns import Columns
from steval.evaluator.cells.pair import Pair
from steval.evaluator.measure.de import benjamini_hochberg, rank_group, sort_controls
from steval.evaluator.measure.groups import Group
from steval.evaluator.measure.scan import Needs, scan
from support.engine_screens import CONTROL, screen


def gene_major(dense):
    """A group of the rows of `dense [n, G]`."""
    columns = sp.csc_matrix(dense)
    empty = np.zeros(dense.shape[1])
    return Group("group", len(dense), columns.indptr.astype(np.int64), columns.data.copy(), empty, empty, None)


def ranks(perturbed, control):
    with ThreadPoolExecutor(1) as pool:
        return rank_group(gene_major(perturbed), sort_controls(gene_major(control), pool))


def reference(perturbed, control):
    test = mannwhitneyu(perturbed, control, axis=0, method="asymptotic", use_continuity=True)
    return test.statistic, test.pvalue


values = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.25, 7.0]), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(values, values)
def test_any_ties_and_zeros_rank_as_in_scipy(perturbed, control):
    perturbed, control = (np.array(side, dtype=np.float32)[:, None] for side in (perturbed, control))
    statistic, p_value = ranks(perturbed, control)
    expected_u, expected_p = reference(perturbed.astype(float), control.astype(float))
    assert statistic[0] == expected_u[0]
    if len(set(perturbed.ravel()) | set(control.ravel())) == 1:
        assert p_value[0] == 1.0
    else:
        assert p_value[0] == pytest.approx(expected_p[0], abs=1e-12)


@pytest.mark.parametrize("num_controls", [3, 15, 16, 17, 500, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_continuous_values_find_their_place_among_any_number_of_controls(num_controls, dtype):
    generator = np.random.default_rng(num_controls)
    control = generator.gamma(1.0, size=(num_controls, 20)).astype(dtype)
    perturbed = generator.gamma(1.5, size=(41, 20)).astype(dtype)
    control[generator.random(control.shape) < 0.4] = 0
    perturbed[generator.random(perturbed.shape) < 0.3] = 0
    control[:, 3], perturbed[:, 4], control[:, 5], perturbed[:, 5] = 0, 0, 0, 0
    statistic, p_value = ranks(perturbed, control)
    expected_u, expected_p = reference(perturbed.astype(float), control.astype(float))
    np.testing.assert_array_equal(statistic, expected_u)
    np.testing.assert_allclose(np.delete(p_value, 5), np.delete(expected_p, 5), atol=1e-12)
    assert p_value[5] == 1.0


def test_false_discovery_rate_is_scipys():
    p_values = np.random.default_rng(0).random(500) ** 3
    p_values[:40] = p_values[40:80]
    np.testing.assert_array_equal(benjamini_hochberg(p_values), false_discovery_control(p_values))


def test_every_gene_of_a_wide_group_is_ranked_when_sorted_in_parts(monkeypatch):
    monkeypatch.setattr("steval.evaluator.measure.de.SORTED_AT_ONCE", 64)
    generator = np.random.default_rng(1)
    perturbed, control = (
        generator.poisson(1.0, (30, 50)).astype(np.float32),
        generator.poisson(1.2, (90, 50)).astype(np.float32),
    )
    statistic, _ = ranks(perturbed, control)
    np.testing.assert_array_equal(statistic, reference(perturbed.astype(float), control.astype(float))[0])


def test_threads_do_not_change_a_digit():
    real, pred = screen(num_perturbations=6)
    with Pair.build(pred, real, Columns()) as pair:
        one, three = (scan(pair.real, CONTROL, pair.genes, Needs(de=True, energy=True), threads) for threads in (1, 3))
    assert one.de.frame().equals(three.de.frame())
    np.testing.assert_array_equal(one.means, three.means)
    np.testing.assert_array_equal(one.energy, three.energy)


def test_means_are_those_of_the_cells():
    real, pred = screen(num_perturbations=4)
    with Pair.build(pred, real, Columns()) as pair:
        tables = scan(pair.real, CONTROL, pair.genes, Needs(), 1)
    labels = real.obs["target_gene"].astype(str).to_numpy()
    expected = np.vstack(
        [real.X[np.flatnonzero(labels == name)].toarray().astype(float).mean(axis=0) for name in tables.names]
    )
    np.testing.assert_allclose(tables.means, expected, rtol=1e-12)


def test_reading_is_serialised_by_the_lock_it_is_given():
    from steval.evaluator.measure.groups import read_group

    real, pred = screen(num_perturbations=4)
    with Pair.build(pred, real, Columns()) as pair:
        lock = Lock()
        group = read_group(pair.real, CONTROL, lock, keep_matrix=True)
    assert not lock.locked()
    assert group.matrix.shape == (120, 300)
    assert group.starts[-1] == group.matrix.nnz


def test_large_groups_are_read_piece_by_piece_with_the_same_values(monkeypatch):
    real, pred = screen(num_perturbations=4, num_genes=150)
    with Pair.build(pred, real, Columns()) as pair:
        whole = scan(pair.real, CONTROL, pair.genes, Needs(de=True), 2)
        monkeypatch.setattr("steval.evaluator.measure.groups.STREAMED_CELLS", 10)
        streamed = scan(pair.real, CONTROL, pair.genes, Needs(de=True), 2)
    assert streamed.de.frame().equals(whole.de.frame())
    np.testing.assert_array_equal(streamed.means, whole.means)
