"""The objective: every term is logged under its name, counts by its weight, and is refused where the network cannot have it."""

from pathlib import Path

import pytest
import torch

from steval.errors import ConfigError
from steval.model.config import ModelConfig
from steval.model.network import Prediction
from steval.trainer.config import ObjectiveSettings
from steval.trainer.fit.batches import Batch
from steval.trainer.fit.objective import TERMS, Objective, idle_parameters, require_terms
from support.tiny_runs import run, tiny_config

NAMES = [term.name for term in TERMS]
SETS, CELLS, GENES, BATCHES = 3, 4, 8, 2


def model(**changes: object) -> ModelConfig:
    backbone = {
        "kind": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "head_dim": 8,
    }
    values = {"input_dim": GENES, "output_dim": GENES, "pert_dim": 2, "hidden_dim": 8, "batch_dim": BATCHES}
    tokens = {"batch_token": True, "confidence_token": True}
    return ModelConfig.parse({**values, "backbone": backbone | {"num_key_value_heads": 1}, **tokens, **changes})


@pytest.fixture
def given() -> tuple[Prediction, Batch]:
    generator = torch.Generator().manual_seed(5)
    predicted, control, target = (torch.rand(SETS, CELLS, GENES, generator=generator) for _ in range(3))
    codes = torch.tensor([[0], [1], [1]]).expand(SETS, CELLS)
    confidence, logits = torch.rand(SETS, generator=generator), torch.rand(SETS, BATCHES, generator=generator)
    return Prediction(predicted, None, confidence, logits), Batch(
        control, target, torch.rand(SETS, 2, generator=generator), codes, None, None
    )


@pytest.mark.parametrize("term", TERMS, ids=NAMES)
def test_a_term_counts_by_its_weight_under_its_name(term, given):
    weight = f"{term.name}_weight"
    assert ObjectiveSettings.model_fields[weight].default == 0
    plain = Objective(ObjectiveSettings(), model())
    with_term = Objective(ObjectiveSettings.parse({weight: 0.5}), model())
    assert plain.names == ("total", "gene")
    assert with_term.names == ("total", "gene", term.name)
    before, after = plain(*given), with_term(*given)
    torch.testing.assert_close(after[:2] - before, torch.stack([0.5 * after[2], torch.tensor(0.0)]))
    assert after[2] > 0


def test_values_of_the_terms(given):
    prediction, batch = given
    losses = dict(
        zip(("total", "gene", *NAMES), Objective(of(**dict.fromkeys(NAMES, 1.0)), model())(*given), strict=True)
    )
    each_B = (prediction.output_BSG - batch.target_BSG).square().mean(dim=(1, 2))
    chosen_B = torch.softmax(prediction.batch_logits_BK, dim=1)[torch.arange(SETS), torch.tensor([0, 1, 1])]
    torch.testing.assert_close(losses["confidence"], (prediction.confidence_B - each_B).square().mean())
    torch.testing.assert_close(losses["batch"], -chosen_B.log().mean())
    torch.testing.assert_close(losses["change"], (prediction.output_BSG - batch.control_BSG).abs().mean())


def of(**weights: float) -> ObjectiveSettings:
    return ObjectiveSettings.parse({"kind": "mse", **{f"{name}_weight": weight for name, weight in weights.items()}})


@pytest.mark.parametrize(
    ("weights", "changes", "idle"),
    [
        pytest.param({"confidence": 1, "batch": 1}, {}, (), id="all are reached"),
        pytest.param({}, {}, ("confidence_token.confidence_projection", "batch_classifier"), id="cells see the tokens"),
        pytest.param(
            {"change": 1},
            {"mask_attn": True},
            ("confidence_token", "batch_classifier", "batch_token"),
            id="they do not",
        ),
        pytest.param({"batch": 1}, {"attention": "causal"}, ("confidence_token",), id="cells come before it"),
    ],
)
def test_parameters_that_nothing_reaches(weights, changes, idle):
    assert idle_parameters(of(**weights), model(**changes)) == idle


def test_terms_that_the_network_cannot_have_are_refused_together(screen_path: Path, tmp_path: Path):
    require_terms(of(change=1), model(batch_token=False, confidence_token=False))
    config = tiny_config(screen_path, "loss.confidence_weight=0.1", "loss.batch_weight=0.2")
    with pytest.raises(ConfigError) as caught:
        run(config, tmp_path / "run")
    assert caught.value.problems == (
        "loss.confidence_weight is 0.1, and the network has no confidence token; set it to 0",
        "loss.batch_weight is 0.2, and the network has no batch token; set it to 0",
    )
    assert not (tmp_path / "run").exists()
