"""The golden models on a GPU: float32 as exact as on the processors, TF32 and bfloat16 within what they round to."""

from collections.abc import Iterator

import pytest
import torch

from steval.model.distances import clouds
from steval.model.loss_settings import LossSettings
from steval.model.losses import build_loss
from support import golden_models

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["float32", "tf32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
def test_golden_outputs(name: str, precision: str) -> None:
    network, arrays = golden_models.golden_model(name)
    size = network.config.cell_set_size
    inputs = [arrays.get(key) for key in ("in_ctrl_cell_emb", "in_pert_emb", "in_batch")]
    sets = [None if rows is None else rows.unflatten(0, (-1, size)).cuda() for rows in inputs]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        prediction = network.cuda()(*sets)
    tolerance = {"float32": 1e-5, "tf32": 5e-3, "bf16": 5e-2}[precision]
    for found, expected in [
        (prediction.output_BSG.flatten(0, 1), arrays["out_preds"]),
        *([(prediction.genes_BSD.flatten(0, 1), arrays["out_counts"])] if "out_counts" in arrays else []),
    ]:
        assert (found.float().cpu() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", ["energy", "sinkhorn", "se", "mse"])
@pytest.mark.parametrize("fast_double", [True, False])
@pytest.mark.parametrize("far", [0.0, 20.0])
def test_losses_are_those_of_float64(kind: str, fast_double: bool, far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "has_fast_double", lambda device: fast_double)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(3, 48, 900, generator=generator) * 3 + far for _ in range(2))
    left[:, 5] = right[:, 7]
    padding = torch.zeros(3, 48, dtype=torch.bool)
    padding[2, 40:] = True
    loss = build_loss(LossSettings(kind=kind))  # type: ignore[arg-type]
    results = []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        points = left.to(device, dtype).requires_grad_()
        value = loss(points, right.to(device, dtype), padding.to(device))
        (gradient,) = torch.autograd.grad(value.sum(), points)
        results.append((value.detach().cpu().double(), gradient.cpu().double()))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() / expected.norm() < 2e-5
