"""Decoding settings: what contradicts itself is refused, effects are combined and carried as they say."""

import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.cells.scale import lognorm
from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.carry import mean_of_cells, sensitivity, totals_of_cells
from steval.data.effects.decoding import MOST_COMMON, DecodingSettings, not_negative
from steval.errors import ConfigError


@pytest.mark.parametrize(
    "values",
    [{"kind": "carried", "network_weight": 0.5}, {"kind": "network", "anchor": {}}, {"network_weight": 2.0}],
    ids=["no anchor", "network's own cells", "no share"],
)
def test_contradictions_are_refused(values):
    with pytest.raises(ConfigError):
        DecodingSettings.parse(values)


def test_effects_are_weighed_and_scaled():
    network, simple = np.array([1.0, 2.0]), np.array([3.0, 0.0])
    half = DecodingSettings(kind="carried", network_weight=0.25, anchor=AnchorSettings(), effect_scale=2)
    np.testing.assert_allclose(half.combined(network, simple), [5, 1])
    alone = DecodingSettings(kind="carried", network_weight=0, anchor=AnchorSettings())
    assert not alone.asks_network
    np.testing.assert_allclose(alone.combined(None, simple), simple)
    without = DecodingSettings(kind="carried")
    assert not without.asks_anchor
    np.testing.assert_allclose(without.combined(network, None), network)


def test_cells_have_the_mean_of_all_controls_and_the_effect():
    """Cells without a common total (a selection of genes) carry the effect as it is."""
    generator = np.random.default_rng(0)
    cells = sp.csr_matrix((generator.random((20, 8)) + 0.5).astype(np.float32))
    mean, effect = np.full(8, 1.3), np.linspace(-0.5, 0.5, 8)
    found = DecodingSettings(kind="carried").carried(cells, mean, effect, generator, 1e4)
    np.testing.assert_allclose(mean_of_cells(found.cells), mean + effect, rtol=1e-5)


@pytest.mark.parametrize("size", [-0.15, 0.15])
def test_normalised_cells_keep_their_totals_whatever_the_effect(size):
    generator = np.random.default_rng(0)
    counts = sp.csr_matrix(generator.poisson(generator.gamma(0.5, 2.0, 200), (60, 200)).astype(np.float32))
    cells = lognorm(counts, 1e4)
    np.testing.assert_allclose(totals_of_cells(cells), 1e4, rtol=1e-5)
    mean = mean_of_cells(cells)
    effect = size * sensitivity(mean) + 0.2 * generator.normal(size=200) * sensitivity(mean)
    found = DecodingSettings(kind="carried").carried(cells, mean, effect, generator, 1e4).cells
    without = DecodingSettings(kind="carried").carried(cells, mean, 0 * effect, generator, 1e4).cells
    assert totals_of_cells(found).mean() == pytest.approx(totals_of_cells(without).mean(), rel=0.02)
    centred = effect - size * sensitivity(mean)
    assert np.corrcoef(mean_of_cells(found) - mean, centred)[0, 1] > 0.99


def test_a_gene_told_to_take_most_counts_is_lowered_and_the_others_stay():
    """An effect moved from cells that have next to none of a gene; a common correction alone would halve all others."""
    generator = np.random.default_rng(0)
    counts = sp.csr_matrix(generator.poisson(generator.gamma(0.5, 20.0, 300), (60, 300)).astype(np.float32))
    cells = lognorm(counts, 1e4)
    mean, effect = mean_of_cells(cells), np.zeros(300)
    gene = int(np.argsort(mean)[150])
    effect[gene] = 9.0 - mean[gene]
    found = mean_of_cells(DecodingSettings(kind="carried").carried(cells, mean, effect, generator, 1e4).cells)
    others = (found - mean)[mean > 0.1] / sensitivity(mean[mean > 0.1])
    assert np.abs(np.median(others)) < 1.3 * MOST_COMMON
    assert mean[gene] + 1 < found[gene] < 8


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_noise_of_effects_does_not_raise_weak_genes(noise):
    generator = np.random.default_rng(0)
    controls = np.sort(generator.gamma(0.3, 0.1, 3000))
    wanted = controls + generator.normal(0, noise, 3000)
    found = not_negative(controls, wanted)
    assert (found >= 0).all()
    weak = slice(0, 1500)
    assert np.maximum(wanted, 0)[weak].sum() > 1.2 * controls[weak].sum()
    assert found[weak].sum() == pytest.approx(max(wanted[weak].sum(), 0), abs=0.02 * noise * 1500)
    np.testing.assert_array_equal(not_negative(controls, controls), controls)
