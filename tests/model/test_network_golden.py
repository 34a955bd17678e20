"""Parity with arc-state 0.11.1: the recorded outputs of real models, padded and unpadded, in float32."""

import pytest
import torch
from torch import Tensor

from support import golden_models

RELATIVE = 1e-5


def assert_parity(ours: Tensor, recorded: Tensor) -> None:
    """Equal to 1e-5 of the largest recorded value."""
    assert ours.shape == recorded.shape
    assert (ours - recorded).abs().max() <= RELATIVE * recorded.abs().max()


def in_sets(rows: Tensor | None, size: int) -> Tensor | None:
    return None if rows is None else rows.unflatten(0, (-1, size))


def recorded_inputs(arrays: dict[str, Tensor]) -> list[Tensor | None]:
    return [arrays.get(key) for key in ("in_ctrl_cell_emb", "in_pert_emb", "in_batch")]


@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
@torch.no_grad()
def test_full_sets(name):
    network, arrays = golden_models.golden_model(name)
    size = network.config.cell_set_size
    prediction = network(*(in_sets(rows, size) for rows in recorded_inputs(arrays)))
    assert_parity(prediction.output_BSG.flatten(0, 1), arrays["out_preds"])
    if "out_counts" in arrays:
        assert_parity(prediction.genes_BSD.flatten(0, 1), arrays["out_counts"])
    else:
        assert prediction.genes_BSD is None
    if "out_confidence" in arrays:
        assert_parity(prediction.confidence_B[:, None], arrays["out_confidence"])
    else:
        assert prediction.confidence_B is None


@pytest.mark.parametrize("padding", [0, 3, 7], ids=lambda rows: f"padded-{rows}")
@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
@torch.no_grad()
def test_short_set(name, padding):
    """The first S-3 rows of the first set, alone and with padding rows that hold other numbers."""
    network, arrays = golden_models.golden_model(name)
    size = network.config.cell_set_size - 3
    inputs = [None if rows is None else rows[:size] for rows in recorded_inputs(arrays)]
    filler = [None if rows is None else rows[-1:].expand(padding, *rows.shape[1:]) for rows in inputs]
    sets = [None if rows is None else torch.cat([rows, more])[None] for rows, more in zip(inputs, filler, strict=True)]
    padding_BS = (torch.arange(size + padding) >= size)[None] if padding else None
    prediction = network(*sets, padding_BS)
    assert_parity(prediction.output_BSG[0, :size], arrays["short_preds"])
    assert not prediction.output_BSG[0, size:].any()
    if "short_counts" in arrays:
        assert_parity(prediction.genes_BSD[0, :size], arrays["short_counts"])


@pytest.mark.parametrize("regime", golden_models.REGIMES)
@torch.no_grad()
def test_regimes_of_one_checkpoint(regime):
    network, arrays = golden_models.keyless_model(regime)
    sets = [in_sets(rows, network.config.cell_set_size) for rows in recorded_inputs(arrays)]
    output = network(*sets).output_BSG.flatten(0, 1)
    assert_parity(output, arrays["out_" + regime.replace("-", "_")])
    others = [arrays["out_" + other.replace("-", "_")] for other in golden_models.REGIMES if other != regime]
    assert all((output - other).abs().max() > 0.1 * other.abs().max() for other in others)


@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
def test_parameter_names_equal_the_checkpoint(name):
    """`golden_model` loads strictly; here: no buffers, and everything built on the meta device is assignable."""
    network, _ = golden_models.golden_model(name)
    with torch.device("meta"):
        empty = type(network)(network.config)
    empty.load_state_dict(network.state_dict(), assign=True)
    assert not list(empty.buffers())
    assert all(not parameter.is_meta for parameter in empty.parameters())
