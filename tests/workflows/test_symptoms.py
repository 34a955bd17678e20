"""The published curves' symptoms, regenerated, each named; a healthy run named by none."""

import numpy as np
import polars as pl
import pytest

from steval.errors import ConfigError
from steval.workflows.curves import Curves, read_curves
from steval.workflows.symptoms import curve_symptoms

STEPS = np.arange(0, 10_000, 100)


def run(tmp_path, **columns) -> Curves:
    frame = pl.DataFrame({"step": STEPS, **columns})
    frame.write_csv(tmp_path / "metrics.csv")
    return read_curves(tmp_path)


def falling(start: float, end: float) -> np.ndarray:
    return end + (start - end) * np.exp(-STEPS / 2500)


def noise(seed: int, size: float) -> np.ndarray:
    return 1 + size * np.random.default_rng(seed).standard_normal(len(STEPS))


def topics(curves: Curves, clip: float | None = None) -> set[str]:
    return {finding.topic for finding in curve_symptoms(curves, clip)}


def cosine(length: int) -> np.ndarray:
    return 1e-4 * (0.55 + 0.45 * np.cos(np.pi * np.arange(length) / length))


def test_a_healthy_run_has_no_symptoms(tmp_path):
    values = {
        "train/total": falling(10, 2) * noise(0, 0.01),
        "val/gene": falling(11, 3) * noise(1, 0.01),
        "lr/top": cosine(100),
    }
    assert topics(run(tmp_path, **values, **{"grad_norm/total": 0.5 * noise(2, 0.1)}), clip=1.0) == set()


def test_flat_validation_while_training_falls(tmp_path):
    values = {"train/total": falling(10, 1), "val/gene": 4.0 * noise(0, 0.001)}
    assert "validation flat while training falls" in topics(run(tmp_path, **values))


def test_over_fitting_is_named_and_its_best_checkpoint_is_early(tmp_path):
    values = {"train/total": falling(10, 1), "val/gene": 4.0 + (STEPS / 10_000 - 0.2) ** 2 * 4}
    assert {"over-fitting", "best checkpoint far before the last"} <= topics(run(tmp_path, **values))


def test_divergence_names_the_curve_and_the_step(tmp_path):
    curves = run(tmp_path, **{"train/total": np.where(STEPS < 6000, falling(10, 2), 30.0)})
    (finding,) = curve_symptoms(curves)
    assert finding.topic == "divergence"
    assert "train/total ends at 30" in finding.evidence


def test_nan_is_named_with_its_step(tmp_path):
    values = falling(10, 2)
    values[40:] = np.nan
    (finding,) = [f for f in curve_symptoms(run(tmp_path, **{"train/total": values})) if f.topic == "not finite"]
    assert "step 4000" in finding.evidence


def test_a_carried_over_scheduler_shows_as_saw_teeth(tmp_path):
    teeth = np.concatenate([cosine(25)] * 4)
    assert "learning-rate saw-teeth" in topics(run(tmp_path, **{"lr/top": teeth}))
    assert topics(run(tmp_path, **{"lr/top": teeth}, phase=np.repeat(["A", "C", "D", "E"], 25))) == set()


def test_warm_up_is_no_saw_tooth(tmp_path):
    rate = np.concatenate([np.linspace(0, 1e-4, 10), cosine(90)])
    assert topics(run(tmp_path, **{"lr/top": rate})) == set()


def test_gradients_always_clipped(tmp_path):
    assert "gradients always clipped" in topics(run(tmp_path, **{"grad_norm/total": 30 * noise(0, 0.1)}), clip=1.0)


def test_arc_state_columns_are_understood(tmp_path):
    assert "divergence" in topics(run(tmp_path, train_loss=np.where(STEPS < 6000, falling(10, 2), 30.0)))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "step\n"], ids=["empty", "no step", "no rows"])
def test_what_holds_no_curves_is_a_config_error(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ConfigError):
        read_curves(tmp_path)
    with pytest.raises(ConfigError, match="no such run"):
        read_curves(tmp_path / "nowhere")
