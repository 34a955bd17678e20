"""Heads on an auxiliary embedding: their losses by hand, what padding and equal perturbations do, and gradients."""

import math

import pytest
import torch

from steval.model.auxiliary import TEMPERATURE, AuxiliaryHeads, without_heads

B, S, C, A = 4, 5, 6, 3


def heads(*kinds: str) -> AuxiliaryHeads:
    made = AuxiliaryHeads(kinds, C, A)  # type: ignore[arg-type]
    made.reset(torch.Generator().manual_seed(0))
    return made


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, S, C, generator=generator), torch.randn(B, A, generator=generator), torch.eye(B)


def test_distil_is_the_squared_error_of_the_pooled_sets() -> None:
    hidden, embedding, pert = inputs()
    made = heads("distil")
    assert made.distil is not None
    expected = (hidden.mean(1) @ made.distil.weight.T + made.distil.bias - embedding).square().mean()
    found = made(hidden, None, embedding, pert)
    assert set(found) == {"distil"}
    torch.testing.assert_close(found["distil"], expected)


def test_contrast_names_each_set_by_its_embedding_and_each_embedding_by_its_set() -> None:
    hidden, embedding, pert = inputs()
    made = heads("contrast")
    assert made.contrast is not None and made.contrast_embedding is not None
    ours, theirs = made.contrast(hidden.mean(1)).detach(), made.contrast_embedding(embedding).detach()
    expected = 0.0
    for row in range(B):
        for one, others in ((ours[row], theirs), (theirs[row], ours)):
            logits = [float(torch.cosine_similarity(one, other, dim=0)) / TEMPERATURE for other in others]
            expected += (math.log(sum(map(math.exp, logits))) - logits[row]) / (2 * B)
    assert made(hidden, None, embedding, pert)["contrast"].item() == pytest.approx(expected, rel=1e-4)


def test_sets_of_one_perturbation_are_no_counter_examples() -> None:
    hidden, embedding, pert = inputs()
    made = heads("contrast")
    alike = torch.zeros(B, B)
    assert made(hidden, None, embedding, alike)["contrast"].item() == pytest.approx(0.0, abs=1e-6)
    assert made(hidden, None, embedding, pert)["contrast"].item() > 0.1
    assert made(hidden[:1], None, embedding[:1], pert[:1])["contrast"].item() == pytest.approx(0.0, abs=1e-6)


def test_padded_cells_change_nothing() -> None:
    hidden, embedding, pert = inputs()
    made = heads("distil", "contrast")
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 3:] = True
    changed = hidden.clone()
    changed[1, 3:] = 100.0
    found, again = (made(cells, padding, embedding, pert) for cells in (hidden, changed))
    for kind, loss in found.items():
        torch.testing.assert_close(loss, again[kind])
    assert found["distil"].item() != made(hidden, None, embedding, pert)["distil"].item()


def test_every_parameter_and_the_backbone_get_gradients() -> None:
    hidden, embedding, pert = inputs()
    made = heads("distil", "contrast")
    hidden.requires_grad_()
    sum(made(hidden, None, embedding, pert).values()).backward()  # type: ignore[union-attr]
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum().item() > 0, name
    assert hidden.grad is not None and bool((hidden.grad.abs().sum((1, 2)) > 0).all())


def test_a_checkpoint_has_none_of_them() -> None:
    state = {"project_out.0.weight": torch.ones(1), "auxiliary.distil.weight": torch.ones(1)}
    assert list(without_heads(state)) == ["project_out.0.weight"]
