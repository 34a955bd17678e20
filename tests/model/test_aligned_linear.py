"""Products filled up to multiples of eight are the layer's own: outputs and gradients."""

import pytest
import torch

from steval.model.mlp import AlignedLinear, DownThenUp


@pytest.mark.parametrize(("columns", "rows"), [(20, 13), (13, 20), (11, 9), (16, 24)])
def test_filled_up_products_are_the_layers(columns: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = AlignedLinear(columns, rows, dtype=torch.float64)
    features = torch.randn(2, 5, columns, dtype=torch.float64, generator=generator)
    upstream = torch.randn(2, 5, rows, dtype=torch.float64, generator=generator)
    found = []
    for forward in (lambda x: layer.filled_up(x, torch.float64), layer.forward):
        layer.zero_grad()
        here = features.clone().requires_grad_()
        output = forward(here)
        output.backward(upstream)
        assert layer.weight.grad is not None and layer.bias.grad is not None
        found.append([output, here.grad, layer.weight.grad, layer.bias.grad])
    for filled, plain in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-13, atol=1e-13)


def test_the_bottleneck_keeps_its_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in DownThenUp(90).state_dict().items()}
    assert shapes == {"0.weight": (11, 90), "0.bias": (11,), "2.weight": (90, 11), "2.bias": (90,)}


@pytest.mark.gpu
def test_a_gpu_in_half_precision_gives_the_layers_cells() -> None:
    torch.manual_seed(0)
    layer = AlignedLinear(2260, 301, device="cuda")
    features = torch.randn(64, 2260, device="cuda")
    exact = layer(features)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = layer(features)
    assert half.dtype == torch.bfloat16 and half.shape == exact.shape
    assert float((half.float() - exact).norm() / exact.norm()) < 1e-2
