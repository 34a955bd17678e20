"""arc-state's `config.yaml` → a configuration of ours, with a list of what it sets and nothing there reads.

What each key does was found by running arc-state 0.11.1 with it changed and comparing the weights after some steps
(docs/finetuning.md has the list). The translation keeps that arithmetic: constant rate, no weight decay, one phase.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steval.errors import ConfigError
from steval.settings import read_yaml

DEAD_KEYS: dict[str, str] = {
    "training.loss_fn": "it is checked against a list of names; the loss is model.kwargs.loss",
    "training.weight_decay": "the optimiser is plain Adam",
    "training.ckpt_every_n_steps": "checkpoints follow the validations",
    "training.decoder_loss_weight": "the key that is read is model.kwargs.decoder_weight",
    "model.kwargs.decoder_loss_weight": "the key that is read is model.kwargs.decoder_weight",
    "model.kwargs.softplus": "the output ends in a ReLU either way",
    "model.kwargs.confidence_head": "the key that is read is confidence_token",
    "model.kwargs.use_effect_gating_token": "there is no such token",
    "model.kwargs.transformer_decoder": "there is no second transformer",
    "model.kwargs.transformer_backbone_kwargs.use_rotary_embeddings": "bidirectional_attention alone decides about rotary",
    "model.kwargs.transformer_backbone_kwargs.rotary_dim": "the backbone has no such setting",
    "model.kwargs.transformer_backbone_kwargs.hidden_dropout": "the backbone has no such setting",
    "model.kwargs.transformer_backbone_kwargs.layer_norm_eps": "the backbone reads rms_norm_eps",
    "data.kwargs.basal_rep": "controls are sampled either way",
    "data.kwargs.n_basal_samples": "one control cell for each cell",
    "data.kwargs.map_controls": "control cells are mapped either way",
}
"""Keys that change nothing, with the reason."""

NOT_CARRIED: dict[str, tuple[tuple[Any, ...], str]] = {
    "model.kwargs.init_from": ((None,), "steval finetune --init-from FILE starts from these weights"),
    "data.kwargs.downsample": ((None, 1), "reads of each cell were thinned; here all are taken"),
    "data.kwargs.downsample_cells": ((None,), "groups were cut to so many cells; here all are taken"),
    "data.kwargs.val_subsample_fraction": (
        (None, 1),
        "the share of sets that validated; here it is checks.validation_sets",
    ),
    "data.kwargs.use_consecutive_loading": ((None, False), "sets were neighbouring rows; here cells are drawn"),
    "training.devices": ((None, 1), "here it is compute.devices"),
    "training.strategy": ((None, "auto"), "here it is compute.strategy"),
}
"""Keys that have an effect there and are not translated: the values without one, and what to do."""

_LOSSES = ("energy", "sinkhorn", "mse", "se")
_COLUMNS = {"pert_col": "perturbation", "control_pert": "control", "cell_type_key": "cell_type", "batch_col": "batch"}
_NETWORK = {
    "hidden_dim": "hidden_dim", "n_encoder_layers": "num_encoder_layers", "n_decoder_layers": "num_decoder_layers",
    "predict_residual": "predict_residual", "use_basal_projection": "use_basal_projection", "mask_attn": "mask_attn",
    "batch_encoder": "batch_encoder", "dropout": "dropout", "activation": "activation",
}  # fmt: skip
_BACKBONE = {
    "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim", "intermediate_size": "intermediate_dim",
}  # fmt: skip
DECODER_DIMS = (1024, 1024, 512)
"""Hidden sizes of arc-state's gene decoder."""


@dataclass(frozen=True)
class Translation:
    """`values`: a configuration for `FinetuneConfig.parse`; the lists hold (key, what about it)."""

    values: dict[str, Any]
    dead: list[tuple[str, str]] = field(default_factory=list)
    """Keys of the file that had no effect."""
    unusual: list[tuple[str, str]] = field(default_factory=list)
    """Values outside the recommended range."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Keys of the file that had an effect and are not in `values`."""

    def lines(self) -> list[str]:
        """For people."""
        return [
            *(f"no effect in arc-state: {key} ({reason})" for key, reason in self.dead),
            *(f"unusual: {key}: {reason}" for key, reason in self.unusual),
            *(f"not carried over: {key} ({reason})" for key, reason in self.left_out),
        ]


def translate(path: Path) -> Translation:
    """Translate arc-state's `config.yaml`; raises `ConfigError` for another file, and for what steval does not train."""
    config = read_yaml(path)
    with arc_values(path, config):
        return _translated(path, config)


@contextmanager
def arc_values(path: Path, config: Mapping[str, Any]) -> Generator[None]:
    """Within, values of another kind than arc-state writes are a `ConfigError`; so are sections that are not there."""
    if not all(isinstance(config.get(section), Mapping) for section in ("data", "model", "training")):
        raise ConfigError(
            f"{path} is no configuration of arc-state: it lacks one of the sections data, model, training"
        )
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"{path}: a value is of another kind than arc-state writes ({error})") from error


def _translated(path: Path, config: Mapping[str, Any]) -> Translation:
    data = dict(config["data"].get("kwargs") or {})
    model = dict(config["model"].get("kwargs") or {})
    training = dict(config["training"])
    _refuse(path, config["model"].get("name"), model)
    values = {
        "data": _data(data),
        "network": _network(model, data),
        "loss": _loss(model),
        "phases": [_phase(model, training)],
        "optimiser": {"weight_decay": 0.0, **_named(training, {"gradient_clip_val": "clip"})},
        "sets": _sets(model, data, training),
        "checks": _named(training, {"val_freq": "validate_every"}),
        "compute": _named(data, {"num_workers": "workers"}),
        **_named(training, {"train_seed": "seed"}),
    }
    return Translation(values, dead_keys(config), _unusual(training, model, data), _left_out(config))


def dead_keys(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The keys of `config` that have no effect in arc-state 0.11.1, with the reason."""
    found = [(key, reason) for key, reason in DEAD_KEYS.items() if _holds(config, key)]
    kwargs = config["model"].get("kwargs") or {}
    if "distributional_loss" in kwargs and kwargs.get("loss") != "energy":
        found.append(("model.kwargs.distributional_loss", "it is read only where loss is energy"))
    if "blur" in kwargs and _loss_kind(kwargs) == "energy":
        found.append(("model.kwargs.blur", "the energy distance has no blur"))
    if "randomize_mmd_chunks" in kwargs and kwargs.get("mmd_num_chunks", 1) == 1:
        found.append(("model.kwargs.randomize_mmd_chunks", "mmd_num_chunks is 1"))
    if kwargs.get("residual_decoder") and not kwargs.get("gene_decoder_bool"):
        found.append(("model.kwargs.residual_decoder", "without gene_decoder_bool there is no gene decoder"))
    return found


def _loss_kind(kwargs: Mapping[str, Any]) -> str:
    """The loss that is computed: where `loss` is energy, `distributional_loss` names it."""
    kind = kwargs.get("loss", "energy")
    return str(kwargs.get("distributional_loss", kind)) if kind == "energy" else str(kind)


def _holds(config: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.rpartition(".")
    return name in _section(config, section)


def _section(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The mapping at a dotted path, empty where there is none."""
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _left_out(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, (harmless, advice) in NOT_CARRIED.items():
        section, _, name = key.rpartition(".")
        value = _section(config, section).get(name)
        if value not in harmless:
            found.append((key, f"{value!r}: {advice}"))
    return found


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: values[theirs] for theirs, ours in names.items() if values.get(theirs) is not None}


def _refuse(path: Path, name: Any, model: Mapping[str, Any]) -> None:
    problems = [
        f"model.kwargs.{flag} is on, which steval does not train"
        for flag in ("finetune_vci_decoder",)
        if model.get(flag)
    ]
    lora = _lora(model)
    if lora.get("target", "auto") != "auto":
        problems.append(
            f"model.kwargs.lora.target is {lora['target']!r}; steval has phases.N.lora.targets: attention, mlp, encoders"
        )
    if lora.get("bias", "none") != "none":
        problems.append(f"model.kwargs.lora.bias is {lora['bias']!r}; biases beside steval's adapters stay frozen")
    if model.get("transformer_backbone_key", "llama").lower() != "llama":
        problems.append(
            f"a fresh backbone of kind {model['transformer_backbone_key']!r}; steval makes Llama blocks. A GPT-2 checkpoint "
            "can be fine-tuned with --init-from and a recipe"
        )
    if _loss_kind(model) not in _LOSSES:
        problems.append(f"loss {_loss_kind(model)!r}; steval has {', '.join(_LOSSES)}")
    if name is not None and str(name).lower() != "state":
        problems.append(f"model.name is {name!r}; only State Transition models (`state`) are trained")
    if problems:
        raise ConfigError(f"{path} cannot be translated", problems)


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"columns": _named(data, _COLUMNS)}
    values |= _named(data, {"embed_key": "input_key", "perturbation_features_file": "features"})
    if data.get("toml_config_path"):
        values["split"] = {"by": "toml", "path": str(data["toml_config_path"])}
    return values


def _network(model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    inner = dict(model.get("transformer_backbone_kwargs") or {})
    values = _named(model, _NETWORK) | _named(inner, _BACKBONE) | {"head": "down-then-up", "initial_weights": "random"}
    if "bidirectional_attention" in inner:
        values["attention"] = "bidirectional" if inner["bidirectional_attention"] else "causal-rope"
    if data.get("output_space") in ("gene", "all", "embedding"):
        values["output_space"] = data["output_space"]
    if data.get("embed_key") is not None and model.get("gene_decoder_bool"):
        values["gene_decoder"] = list(DECODER_DIMS)
    return values


def _loss(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": _loss_kind(model),
        **_named(model, {"blur": "blur", "decoder_weight": "decoder_weight"}),
    }


def _phase(model: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    rate = training.get("lr", 1e-4)
    frozen = bool(model.get("freeze_pert_backbone"))
    lora = _lora(model)
    if lora:
        return {
            "name": "lora",
            "trains": ["encoders", "outputs"],
            "lora": {
                **_named(lora, {"r": "rank", "alpha": "alpha", "dropout": "dropout"}),
                "targets": ["attention", "mlp"] if lora.get("adapt_mlp") else ["attention"],
            },
            "steps": training.get("max_steps", 40_000),
            "rates": {"encoders": rate, "outputs": rate, "adapters": rate},
            "schedule": "constant",
            "warmup_fraction": 0.0,
        }
    return {
        "name": "frozen" if frozen else "all",
        "trains": ["encoders", "outputs"] if frozen else "all",
        "steps": training.get("max_steps", 40_000),
        "rates": {"encoders": rate, "outputs": rate, "backbone": rate},
        "schedule": "constant",
        "warmup_fraction": 0.0,
    }


def _lora(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """arc-state's `lora`, where it is on; else empty."""
    lora = model.get("lora")
    return lora if isinstance(lora, Mapping) and lora.get("enable") else {}


def _sets(model: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    values = _named(model, {"cell_set_len": "size"})
    values |= _named(training, {"batch_size": "per_batch", "gradient_accumulation_steps": "accumulation"})
    values |= _named(data, {"should_yield_control_cells": "controls_as_targets"})
    if data.get("basal_mapping_strategy") == "batch":
        values["mapping"] = "batch"
    return values


def _unusual(training: Mapping[str, Any], model: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        ("(optimiser)", "no weight decay took effect; 1e-3 to 5e-3 on matrices is recommended (optimiser.weight_decay)")
    ]
    clip, rate = training.get("gradient_clip_val"), training.get("lr")
    if isinstance(clip, int | float) and clip > 5:
        found.append(("training.gradient_clip_val", f"{clip:g}; 1 is recommended, above 5 nothing is clipped"))
    if isinstance(rate, int | float) and not 1e-5 <= rate <= 1e-3:
        found.append(("training.lr", f"{rate:g}; 1e-5 to 1e-3 is recommended"))
    found.append(
        ("(schedule)", "the rate was constant; warm-up over 5 % and cosine to 10 % is recommended (phases.0.schedule)")
    )
    if model.get("mmd_num_chunks", 1) != 1:
        found.append(("model.kwargs.mmd_num_chunks", "the loss was computed on pieces of each set; here on whole sets"))
    if model.get("freeze_pert_backbone"):
        found.append(("model.kwargs.freeze_pert_backbone", "it also froze project_out; here the output layers train"))
    if data.get("embed_key") not in (None, "X_hvg"):
        found.append(
            (
                "data.kwargs.embed_key",
                f"{data['embed_key']!r}: an embedding as input scored under 0.2 where expression reached 5.7",
            )
        )
    return found
