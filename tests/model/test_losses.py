"""Losses against geomloss 0.3.1, against hand-computed values, and at the places where rounding bites."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steval.errors import ConfigError
from steval.model.distances.clouds import measure_clouds
from steval.model.distances.sinkhorn import temperatures
from steval.model.loss_settings import LossKind, LossSettings
from steval.model.losses import build_loss

KINDS = ["plain", "identical", "nearly-equal", "collapsed", "duplicates", "far-from-zero", "clusters", "all-zero"]


def clouds(kind: str, columns: int = 400, num_left: int = 24, num_right: int = 24):
    """Two sets of sparse expression-like points in float64, exactly representable in float32."""
    generator = torch.Generator().manual_seed(len(kind))

    def draw(num_points):
        values = torch.rand(2, num_points, columns, generator=generator, dtype=torch.float64) * 3
        return values * (torch.rand(values.shape, generator=generator) < 0.3)

    left, right = draw(num_left), draw(num_right)
    noise = torch.randn(left.shape, generator=generator, dtype=torch.float64)
    if kind == "identical":
        left = right.clone()
    elif kind == "nearly-equal":
        left = right + 1e-4 * noise
    elif kind == "collapsed":
        left = left.mean(dim=1, keepdim=True) + 1e-3 * noise
    elif kind == "duplicates":
        left[:, 1], right[:, 0] = left[:, 0], left[:, 2]
    elif kind == "far-from-zero":
        left, right = left + 50, right + 50
    elif kind == "clusters":
        left = left[:, [0, 1] * (num_left // 2)] + 1e-3 * noise
    elif kind == "all-zero":
        left = torch.zeros_like(left)
    return left.float().double(), right.float().double()


def value_and_gradients(loss, left, right):
    left, right = left.clone().requires_grad_(), right.clone().requires_grad_()
    value_B = loss(left, right)
    gradients = torch.autograd.grad(value_B.sum(), (left, right))
    return [value_B.detach().double(), *(gradient.double() for gradient in gradients)]


def distance(ours, theirs):
    return (ours - theirs).norm().item()


def geomloss(kind, blur=0.05):
    samples_loss = pytest.importorskip("geomloss").SamplesLoss
    if kind != "se":
        return samples_loss(kind, blur=blur)
    energy, sinkhorn = samples_loss("energy", blur=blur), samples_loss("sinkhorn", blur=blur)
    return lambda left, right: 0.3 * sinkhorn(left, right) + 2.0 * energy(left, right)


def ours(kind, blur=0.05):
    return build_loss(LossSettings(kind=kind, blur=blur, sinkhorn_weight=0.3, energy_weight=2.0))


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "se"])
def test_equals_geomloss_in_float64(loss, kind):
    pair = clouds(kind)
    for mine, reference in zip(
        value_and_gradients(ours(loss), *pair), value_and_gradients(geomloss(loss), *pair), strict=True
    ):
        assert distance(mine, reference) <= 1e-5 * reference.norm().item() + 1e-12


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["energy", "sinkhorn"])
def test_float32_is_no_further_from_float64_than_geomloss(loss, kind):
    pair = clouds(kind)
    exact = value_and_gradients(geomloss(loss), *pair)
    single = [part.float() for part in pair]
    mine = value_and_gradients(ours(loss), *single)
    theirs = value_and_gradients(geomloss(loss), *single)
    for own, other, reference in zip(mine, theirs, exact, strict=True):
        unavoidable = 2e-7 * reference.norm().item() + 1e-8
        assert distance(own, reference) <= max(distance(other, reference), unavoidable)


@pytest.fixture
def as_on_a_fast_card(monkeypatch):
    """float32 points are measured by float64 products, as cards do that are as fast in them."""
    monkeypatch.setattr("steval.model.distances.clouds.has_fast_double", lambda device: True)


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["energy", "sinkhorn"])
def test_products_in_float64_are_no_further_from_float64_than_geomloss(loss, kind, as_on_a_fast_card):
    test_float32_is_no_further_from_float64_than_geomloss(loss, kind)


@pytest.mark.parametrize("columns", [37, 400])
@pytest.mark.parametrize("kind", KINDS)
def test_products_in_float64_measure_what_float64_points_do(kind, columns, as_on_a_fast_card):
    left, right = clouds(kind, columns=columns)
    right = right[:, :18]
    padding = torch.zeros(left.shape[:2], dtype=torch.bool)
    padding[1, -5:] = True
    left = left.masked_fill(padding[..., None], 0)
    single = measure_clouds(left.float(), right.float(), padding, None)
    double = measure_clouds(left, right, padding, None)
    kept = ~padding
    pairs = kept[:, :, None] & kept[:, None]
    for ours, exact in [
        (single.left_left_BSS[pairs], double.left_left_BSS[pairs]),
        (single.right_right_BTT, double.right_right_BTT),
        (single.left_right_BST[kept], double.left_right_BST[kept]),
    ]:
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.peer
@pytest.mark.parametrize("blur", [0.05, 0.7, 100.0])
def test_sinkhorn_of_sets_of_different_sizes(blur):
    pair = clouds("plain", columns=30, num_left=10, num_right=17)
    for mine, reference in zip(
        value_and_gradients(ours("sinkhorn", blur), *pair),
        value_and_gradients(geomloss("sinkhorn", blur), *pair),
        strict=True,
    ):
        assert distance(mine, reference) <= 1e-5 * reference.norm().item()


def test_energy_by_hand():
    """Points 0 and 2 against 1 and 1 on a line: means of distances 1, 1 and 0 → 1 - ½·1 - ½·0."""
    left = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
    right = torch.tensor([[[1.0], [1.0]]], dtype=torch.float64)
    torch.testing.assert_close(ours("energy")(left, right), torch.tensor([0.5], dtype=torch.float64), atol=1e-4, rtol=0)


def test_sinkhorn_of_single_points_is_half_the_squared_distance():
    left, right = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]])
    torch.testing.assert_close(ours("sinkhorn")(left, right), torch.tensor([12.5]))


def test_mse_by_hand():
    left, right = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]]), torch.zeros(1, 2, 2)
    torch.testing.assert_close(ours("mse")(left, right), torch.tensor([21 / 4]))
    torch.testing.assert_close(ours("mse")(left, right, torch.tensor([[False, True]])), torch.tensor([5 / 2]))


@pytest.mark.parametrize("kind", get_args(LossKind))
def test_every_kind_that_can_be_set_is_a_loss_of_each_set(kind):
    """A name that nothing computes would only be found when a run starts."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.rand(3, 6, 5, generator=generator) for _ in range(2))
    apart_B, same_B = ours(kind)(left, right), ours(kind)(right, right)
    assert apart_B.shape == (3,) and (apart_B > 0).all()
    assert same_B.abs().max() < 0.01 * apart_B.min()


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "se"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_points_have_value_zero_and_no_gradient(loss, dtype):
    points = clouds("plain")[0].to(dtype)
    value_B, *gradients = value_and_gradients(ours(loss), points, points)
    assert value_B.abs().max() < 1e-12
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "se"])
def test_gradients_are_those_of_the_value(loss):
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    right = torch.rand(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    # Sinkhorn's gradient holds the potentials fixed: it is that of the value up to convergence only.
    tolerance = 1e-6 if loss == "energy" else 5e-3
    value = build_loss(LossSettings(kind=loss, blur=1.0))
    assert torch.autograd.gradcheck(value, (left, right), atol=tolerance, rtol=tolerance)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("loss", ["energy", "mse"])
def test_padded_sets_equal_each_alone(loss, sizes, seed):
    """Padding rows hold huge numbers; sinkhorn is not here: its temperatures are of the whole batch."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.rand(len(sizes), 7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    padding_BS = torch.arange(7)[None] >= torch.tensor(sizes)[:, None]
    left[padding_BS], right[padding_BS] = 1e6, float("nan")
    left.requires_grad_()
    together = ours(loss)(left, right, padding_BS)
    (gradient,) = torch.autograd.grad(together.sum(), left)
    for row, size in enumerate(sizes):
        alone = left[row : row + 1, :size].detach().requires_grad_()
        value = ours(loss)(alone, right[row : row + 1, :size])
        torch.testing.assert_close(together[row : row + 1], value)
        torch.testing.assert_close(gradient[row : row + 1, :size], torch.autograd.grad(value.sum(), alone)[0])
        assert not gradient[row, size:].any()


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "se"])
def test_one_padded_set_equals_the_set_alone(loss):
    left, right = clouds("plain", columns=20)
    left, right = left[:1], right[:1]
    left_padding, right_padding = torch.arange(24)[None] >= 11, torch.arange(24)[None] >= 17
    padded = ours(loss)(left, right, left_padding, right_padding)
    torch.testing.assert_close(padded, ours(loss)(left[:, :11], right[:, :17]))


@pytest.mark.parametrize("loss", ["energy", "sinkhorn"])
def test_half_precision_and_autocast_are_computed_in_float32(loss):
    left, right = (part.bfloat16() for part in clouds("plain"))
    expected = ours(loss)(left.float(), right.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours(loss)(left, right)
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_distances_hold_where_products_of_float32_cancel(offset):
    """Pairs at 1e-3 of the cloud's size, near zero and far from it."""
    left, right = clouds("clusters")
    left, right = (left + offset).float(), (right + offset).float()
    measured = measure_clouds(left, right, None, None)
    for ours_, pair in (
        (measured.left_left_BSS, (left, left)),
        (measured.right_right_BTT, (right, right)),
        (measured.left_right_BST, (left, right)),
    ):
        exact = torch.cdist(*(part.double() for part in pair), compute_mode="donot_use_mm_for_euclid_dist") ** 2
        # Centring rounds each point by half a unit of its last place.
        rounding = (exact.sqrt() * (offset + 1) * 1e-6).clamp_min(1e-12)
        assert ((ours_ - exact).abs() <= 1e-3 * exact + rounding).all()


def test_temperatures_fall_by_four_to_the_blur():
    assert temperatures(8.0, 1.0) == [64.0, 64.0, 16.0, 4.0, 1.0]
    assert temperatures(0.5, 1.0) == [0.25, 1.0]
    assert temperatures(0.0, 1.0) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("left", "right", "padding", "message"),
    [
        ((1, 2, 3), (2, 2, 3), None, "sets and columns must be equal"),
        ((1, 2, 3), (1, 2, 4), None, "sets and columns must be equal"),
        ((2, 3), (2, 3), None, "sets and columns must be equal"),
        ((1, 2, 3), (1, 4, 3), (1, 3), "padding must be of shape"),
    ],
)
def test_shapes_that_cannot_be_compared(left, right, padding, message):
    padding = None if padding is None else torch.zeros(padding, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        ours("energy")(torch.zeros(left), torch.zeros(right), padding)


def test_mse_needs_equal_sizes():
    with pytest.raises(ValueError, match="use energy for sets of different sizes"):
        ours("mse")(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3))


def test_settings_refuse_what_has_no_meaning():
    with pytest.raises(ConfigError, match="above 0, both are 0"):
        LossSettings.parse({"kind": "se", "sinkhorn_weight": 0, "energy_weight": 0})
    with pytest.raises(ConfigError, match="kind"):
        LossSettings.parse({"kind": "gaussian"})
