"""Means and norms between rows; the first step and tensor that are not finite."""

import pytest
import torch

from steval.trainer.fit.window import DivergenceError, Window


def window() -> Window:
    return Window(("total", "gene"), ("a.weight", "a.bias", "b.weight"), ("encoders", "encoders", "outputs"))


def test_flush_gives_means_of_losses_and_joint_norms_by_label() -> None:
    filled = window()
    filled.add(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 1.0]))
    filled.add(torch.tensor([3.0, 6.0]), torch.tensor([0.0, 1.0, 0.0]))
    values = filled.flush()
    assert values == pytest.approx(
        {
            "train/total": 2.0,
            "train/gene": 4.0,
            "grad_norm/encoders": (5 + 1) / 2,
            "grad_norm/outputs": 0.5,
            "grad_norm/total": (26**0.5 + 1) / 2,
        }
    )
    assert filled.flush() == {}


def test_a_saved_window_continues() -> None:
    first, second = window(), window()
    first.add(torch.tensor([1.0, 2.0]), torch.ones(3))
    second.restore(first.rows(), torch.device("cpu"))
    second.add(torch.tensor([2.0, 2.0]), torch.ones(3))
    assert second.flush()["train/total"] == 1.5


@pytest.mark.parametrize(
    ("losses", "norms", "message"),
    [
        pytest.param([1.0, float("nan")], [1.0, 1.0, 1.0], "step 7: not finite: loss gene", id="loss"),
        pytest.param([1.0, 1.0], [1.0, float("inf"), 1.0], "step 7: not finite: gradient of a.bias", id="gradient"),
        pytest.param([float("inf")] * 2, [float("nan")] * 3, "loss total, loss gene, gradient of a.weight", id="both"),
    ],
)
def test_the_first_bad_step_and_tensor_are_named(losses: list, norms: list, message: str) -> None:
    filled = window()
    filled.add(torch.ones(2), torch.ones(3))
    filled.add(torch.tensor(losses), torch.tensor(norms))
    assert not filled.latest_is_finite
    filled.add(torch.full((2,), float("nan")), torch.full((3,), float("nan")))
    with pytest.raises(DivergenceError, match=message):
        filled.require_finite(8)
