"""Configurations are strict, name all their problems, and translate arc-state's."""

import re
from pathlib import Path

import pytest
import yaml

from steval.errors import ConfigError
from steval.settings import apply_overrides, read_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import config_path, recipe_names
from steval.trainer.settings.arc_translation import NOT_CARRIED, translate

PHASE = {"name": "a", "steps": 5}


def test_all_problems_are_named_at_once_with_the_nearest_key() -> None:
    values = {
        "phases": [{**PHASE, "trians": ["encoders"]}, {"name": "b", "steps": 0}],
        "optimiser": {"clip": -1},
        "los": {"kind": "energy"},
        "loss": {"kind": "energi"},
    }
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.parse(values)
    text = str(caught.value)
    assert "phases.0.trians: unknown key; did you mean 'trains'?" in text
    assert "phases.1.steps" in text
    assert "optimiser.clip" in text
    assert "los: unknown key; did you mean 'loss'?" in text
    assert "loss.kind" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"phases": []}, "at least 1 item", id="no phase"),
        pytest.param({"phases": [PHASE, PHASE]}, "used twice: a", id="one name twice"),
        pytest.param({"phases": [{**PHASE, "trains": []}]}, "trains nothing", id="empty phase"),
        pytest.param(
            {"phases": [PHASE], "checks": {"select_best": "eval/mae"}}, "quick_eval_every", id="no evaluation"
        ),
        pytest.param(
            {"phases": [PHASE], "checks": {"select_best": "eval/mae", "quick_eval_every": 1}}, "min or max", id="no end"
        ),
        pytest.param(
            {"phases": [{**PHASE, "rates": {"backbone": 1e-5, "floor": 1e-4}}]}, "floor", id="floor above top"
        ),
    ],
)
def test_contradictions_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig.parse(values)


@pytest.mark.parametrize("text", ["32", "'32'", "bf16-mixed"])
def test_a_precision_may_be_written_as_yaml_reads_it(text: str) -> None:
    values = apply_overrides({"phases": [PHASE]}, [f"compute.precision={text}"])
    assert FinetuneConfig.parse(values).compute.precision == text.strip("'")


@pytest.mark.parametrize("name", ["raw-staged", "embedding-rounds", "frozen-only", "full", "quick-cpu"])
def test_a_recipe_parses_and_reads_back(name: str, tmp_path: Path) -> None:
    config = FinetuneConfig.load(config_path(name))
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert FinetuneConfig.load(tmp_path / "again.yaml").digest() == config.digest()
    assert name in recipe_names()


def test_raw_staged_has_the_phases_of_the_design() -> None:
    phases = {phase.name: phase for phase in FinetuneConfig.load(config_path("raw-staged")).phases}
    assert list(phases) == ["A", "C", "D", "E"]
    assert [set(phase.trains) for phase in phases.values()] == [
        {"encoders", "outputs"},
        {"encoders", "outputs", "top"},
        {"encoders", "outputs", "top", "middle"},
        {"encoders", "outputs", "top", "middle", "lower"},
    ]
    peaks = [(p.rates.encoders, p.rates.outputs) for p in phases.values()]
    assert peaks == [(3e-4, 3e-4), (2e-4, 2e-4), (2e-4, 2e-4), (1e-4, 1e-4)]
    assert [(phases[name].rates.backbone, phases[name].rates.floor) for name in "CDE"] == [
        (1e-4, 0.0), (1e-4, 3e-5), (3e-5, 1e-5),
    ]  # fmt: skip
    assert all(phase.start == "best" and phase.schedule == "cosine" for phase in phases.values())


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'raw-staged'"):
        config_path("raw-stagd")


def arc_config(**changes: object) -> dict:
    inner = {"bidirectional_attention": True, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "use_rotary_embeddings": False}  # fmt: skip
    config = {
        "data": {"kwargs": {"toml_config_path": "split.toml", "embed_key": None, "output_space": "all", "pert_col": "gene",
                            "batch_col": "plate", "control_pert": "NT", "cell_type_key": "line",
                            "basal_mapping_strategy": "random", "should_yield_control_cells": True}},
        "model": {"name": "state", "kwargs": {"cell_set_len": 16, "hidden_dim": 32, "loss": "energy", "n_encoder_layers": 4,
                  "n_decoder_layers": 4, "softplus": True, "distributional_loss": "energy", "freeze_pert_backbone": False,
                  "transformer_backbone_key": "llama", "transformer_backbone_kwargs": inner}},
        "training": {"lr": 1e-4, "batch_size": 2, "max_steps": 12, "train_seed": 7, "val_freq": 4, "weight_decay": 5e-4,
                     "gradient_clip_val": 10, "loss_fn": "mse", "ckpt_every_n_steps": 4},
    }  # fmt: skip
    config["model"]["kwargs"] |= changes
    return config


def test_an_arc_configuration_is_translated(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(arc_config()))
    translation = translate(tmp_path / "config.yaml")
    config = FinetuneConfig.parse(translation.values)
    assert config.data.columns.perturbation == "gene"
    assert config.data.columns.control == "NT"
    assert config.data.split.by == "toml"
    assert (config.sets.size, config.sets.per_batch, config.seed) == (16, 2, 7)
    assert (config.network.hidden_dim, config.network.num_encoder_layers, config.network.attention) == (
        32,
        4,
        "bidirectional",
    )
    assert config.network.head == "down-then-up"
    (phase,) = config.phases
    assert (phase.steps, phase.schedule, phase.rates.backbone, phase.rates.encoders) == (12, "constant", 1e-4, 1e-4)
    assert config.optimiser.weight_decay == 0
    dead = dict(translation.dead)
    assert {"training.loss_fn", "training.weight_decay", "training.ckpt_every_n_steps"} <= set(dead)
    assert "model.kwargs.softplus" in dead
    assert "training.gradient_clip_val" in dict(translation.unusual)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"transformer_backbone_key": "GPT2"}, "GPT-2 checkpoint can be fine-tuned", id="gpt2"),
        pytest.param({"lora": {"enable": True, "bias": "all"}}, r"lora\.bias is 'all'", id="lora biases"),
        pytest.param({"lora": {"enable": True, "target": "q_proj"}}, r"lora\.target is 'q_proj'", id="lora targets"),
        pytest.param({"finetune_vci_decoder": True}, "does not train", id="foreign decoder"),
        pytest.param({"loss": "huber"}, "steval has energy", id="unknown loss"),
    ],
)
def test_what_cannot_be_translated_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(arc_config(**changes)))
    with pytest.raises(ConfigError, match=message):
        translate(tmp_path / "config.yaml")


@pytest.mark.parametrize("key", NOT_CARRIED)
def test_what_is_not_carried_over_is_said_where_it_has_an_effect(key: str, tmp_path: Path) -> None:
    harmless, advice = NOT_CARRIED[key]
    path = tmp_path / "config.yaml"
    for value, expected in ((harmless[-1], []), (0.25, [(key, f"0.25: {advice}")])):
        config = arc_config()
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
        path.write_text(yaml.safe_dump(config))
        assert translate(path).left_out == expected
    assert f"not carried over: {key} (0.25: {advice})" in translate(path).lines()


def test_arc_states_lora_becomes_a_lora_phase(tmp_path: Path) -> None:
    lora = {"enable": True, "r": 4, "alpha": 12, "dropout": 0.05, "bias": "none", "target": "auto", "adapt_mlp": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(arc_config(lora=lora)))
    (phase,) = FinetuneConfig.parse(translate(tmp_path / "config.yaml").values).phases
    assert (phase.trains, phase.lora.targets) == (("encoders", "outputs"), ("attention", "mlp"))
    assert (phase.lora.rank, phase.lora.alpha, phase.lora.dropout, phase.rates.adapters) == (4, 12, 0.05, 1e-4)


def test_a_configuration_of_ours_is_no_arc_configuration() -> None:
    assert "phases" in read_yaml(config_path("full"))
    with pytest.raises(ConfigError, match="no configuration of arc-state"):
        translate(config_path("full"))


def test_a_recipe_is_a_base_for_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "recipe: raw-staged\ndata: {files: [x.h5ad], split: {by: contexts, val: {all cells: [A]}}}\n"
        "phases: {C: {steps: 7, rates: {backbone: 5.0e-5}}, 3: {steps: 9}}\nsets: {size: 16}\n"
    )
    config, recipe = FinetuneConfig.load(path, ["phases.0.steps=5"]), FinetuneConfig.load(config_path("raw-staged"))
    assert [phase.steps for phase in config.phases] == [5, 7, 6000, 9]
    assert (config.phases[1].rates.backbone, config.phases[1].rates.encoders) == (5e-5, 2e-4)
    assert (config.sets.size, config.sets.per_batch, config.data.files) == (16, recipe.sets.per_batch, ("x.h5ad",))
    assert config.data.split.by == "contexts"
    assert config.phases[2] == recipe.phases[2]
    path.write_text("recipe: full\nphases: [{name: own, steps: 3}]\n")
    assert [phase.name for phase in FinetuneConfig.load(path).phases] == ["own"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("recipe: raw-stagd", "did you mean 'raw-staged'", id="unknown"),
        pytest.param("recipe: [full]", "recipe takes a name", id="no name"),
        pytest.param(
            "recipe: raw-staged\nphases: {B: {steps: 1}}", "phases.B: the recipe has A, C, D, E", id="no such phase"
        ),
        pytest.param("recipe: full\nsets: {sizes: 1}", "did you mean 'size'", id="typo on top"),
    ],
)
def test_a_base_that_cannot_be_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("phases.1.steps=4", r"phases is a list of 1 entry: phases\.0$"),
        ("phases.all.steps=4", r"phases is a list of 1 entry: phases\.0$"),
        ("phases.0.steps.x=4", r"phases\.0\.steps is \d+, which has nothing inside"),
    ],
)
def test_a_place_that_is_not_there_is_said_in_the_configuration_s_words(override, says):
    with pytest.raises(ConfigError, match=f"^--set {re.escape(override)}: {says}"):
        apply_overrides({"phases": [PHASE]}, [override])
