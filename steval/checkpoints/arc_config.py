"""arc-state's `hyper_parameters` and weights → `ModelConfig`: an explicit key map, nothing taken on trust.

What the weights can tell (depths, sizes, which parts there are) is read from the weights, the rest from the
hyper-parameters; where both speak they must agree. Meaning of each key as observed in arc-state 0.9.14 and 0.11.1
(docs/checkpoints.md, docs/decisions/002-attention-regimes.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from steval.errors import CheckpointError, ConfigError
from steval.model.config import Attention, ModelConfig

BACKBONE = "transformer_backbone"
_REFUSED_FLAGS = {
    "finetune_vci_decoder": "a gene decoder inside another model's weights",
    "transformer_decoder": "a second transformer behind the backbone",
}
_IGNORED_FLAGS = ("use_effect_gating_token", "confidence_head", "batch_predictor")
"""True in some files; arc-state 0.11.1 computes the same with and without them (measured)."""
_LLAMA_SWITCHES = ("attention_bias", "mlp_bias", "rope_scaling")


@dataclass(frozen=True)
class RegimeChoice:
    """The attention regime of an imported network, and whether the file said it."""

    attention: Attention
    reason: str
    recorded: bool
    """False where the file does not say and steval had to choose."""


def choose_attention(hyper: Mapping[str, Any], override: str | None = None) -> RegimeChoice:
    """The regime: option, then the key `bidirectional_attention`, then a choice that is explained.

    See docs/decisions/002-attention-regimes.md.
    """
    is_gpt2 = _backbone_kind(hyper) == "gpt2"
    if override is not None:
        if override not in get_args(Attention):
            raise ConfigError(f"--attention is one of {', '.join(get_args(Attention))}; got {override!r}")
        return RegimeChoice(override, "given by --attention", recorded=True)  # ty: ignore[invalid-argument-type]
    key = (hyper.get("transformer_backbone_kwargs") or {}).get("bidirectional_attention")
    if is_gpt2:
        return RegimeChoice(
            "causal",
            "a GPT-2 backbone, which arc-state computes causal whatever the key bidirectional_attention says. If it was "
            "trained otherwise: --attention bidirectional, or --probe data.h5ad",
            recorded=False,
        )
    if key:
        return RegimeChoice("bidirectional", "the checkpoint records bidirectional_attention: true", recorded=True)
    if key is not None:
        return RegimeChoice(
            "causal-rope",
            "the checkpoint records bidirectional_attention: false, which the releases that know the key (0.9.32 and "
            "later) compute causal with rotary embedding",
            recorded=True,
        )
    return RegimeChoice(
        "bidirectional",
        "the checkpoint lacks the key bidirectional_attention (all before arc-state 0.9.32), and installations of "
        "arc-state compute three different predictions from such a file; steval takes the authors' intent, attention "
        "in both directions without positions. Override with --attention causal|causal-rope, or let your own cells "
        "decide with --probe data.h5ad",
        recorded=False,
    )


def model_config(hyper: Mapping[str, Any], weights: Mapping[str, Tensor], attention: Attention) -> ModelConfig:
    """The configuration of the network that `weights` belong to. Raises `CheckpointError` with every problem found."""
    try:
        refuse_unsupported(hyper, weights)
        values = _values(hyper, weights)
        return ModelConfig.parse({**values, "attention": attention}, source="the hyper-parameters of the checkpoint")
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint lacks {error.args[0]!r}, without which an ST network cannot be rebuilt; is it a State "
            "Transition model of arc-state?"
        ) from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise CheckpointError(f"the hyper-parameters of the checkpoint cannot be read: {error}") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def refuse_unsupported(hyper: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Name what steval does not compute: foreign decoders, changed Llama blocks."""
    problems = [f"{flag}: {what}" for flag, what in _REFUSED_FLAGS.items() if hyper.get(flag)]
    inner = hyper.get("transformer_backbone_kwargs") or {}
    problems += [f"{key} of the backbone: {inner[key]!r}" for key in _LLAMA_SWITCHES if inner.get(key)]
    positions = weights.get("transformer_backbone.wpe.weight")
    if positions is not None and bool(positions.any()):
        problems.append(
            "a GPT-2 position table that is not zero (transformer_backbone.wpe): an ST network has no positions"
        )
    activation = inner.get("hidden_act") or inner.get("activation_function")
    if activation not in (None, "silu" if _backbone_kind(hyper) == "llama" else "gelu_new"):
        problems.append(f"activation of the backbone: {activation!r}")
    if problems:
        raise CheckpointError("the checkpoint uses what steval does not support", problems)


def ignored_flags(hyper: Mapping[str, Any]) -> list[str]:
    """Flags that are on in the file and change nothing that arc-state computes."""
    return [flag for flag in _IGNORED_FLAGS if hyper.get(flag)]


def _values(hyper: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    decoder_layers = _linear_layers(weights, "project_out")
    encoder_layers = _linear_layers(weights, "pert_encoder")
    projected = "basal_encoder.weight" not in weights
    first_basal = "basal_encoder.0.weight" if projected else "basal_encoder.weight"
    hidden_dim, input_dim = weights[first_basal].shape
    batch_token = "batch_token" in weights
    batch_codes = weights.get("batch_encoder.weight", weights.get("batch_classifier.0.weight"))
    return {
        "input_dim": input_dim,
        "output_dim": weights[f"project_out.{3 * (decoder_layers - 1)}.weight"].shape[0],
        "pert_dim": weights["pert_encoder.0.weight"].shape[1],
        "hidden_dim": hidden_dim,
        "batch_dim": None if batch_codes is None else batch_codes.shape[0],
        "input_key": hyper.get("embed_key"),
        "output_space": hyper["output_space"],
        "num_encoder_layers": encoder_layers,
        "num_decoder_layers": decoder_layers,
        "activation": hyper.get("activation") or "gelu",
        "dropout": hyper.get("dropout", 0.1),
        "predict_residual": hyper["predict_residual"],
        "use_basal_projection": projected,
        "backbone": _backbone(hyper, weights),
        "mask_attn": bool(hyper.get("mask_attn", False)),
        "batch_encoder": "batch_encoder.weight" in weights,
        "batch_token": batch_token,
        "confidence_token": "confidence_token.confidence_token" in weights,
        "gene_decoder": _gene_decoder(hyper, weights),
        "cell_set_size": hyper["cell_set_len"],
    }


def _backbone_kind(hyper: Mapping[str, Any]) -> str:
    kind = str(hyper.get("transformer_backbone_key", "")).lower()
    if kind not in ("llama", "gpt2"):
        raise CheckpointError(
            f"the backbone of the checkpoint is {hyper.get('transformer_backbone_key')!r}; steval computes llama and GPT2"
        )
    return kind


def _backbone(hyper: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    inner = hyper.get("transformer_backbone_kwargs") or {}
    if _backbone_kind(hyper) == "gpt2":
        hidden, intermediate = weights[f"{BACKBONE}.h.0.mlp.c_fc.weight"].shape
        return {
            "kind": "gpt2",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_layers": _blocks(weights, "h"),
            "num_heads": inner["n_head"],
            "norm_eps": inner.get("layer_norm_epsilon", 1e-5),
        }
    block = f"{BACKBONE}.layers.0"
    num_heads = int(inner["num_attention_heads"])
    intermediate, hidden = weights[f"{block}.mlp.gate_proj.weight"].shape
    head_dim = inner.get("head_dim") or weights[f"{block}.self_attn.q_proj.weight"].shape[0] // num_heads
    rope = inner.get("rope_parameters") or {}
    return {
        "kind": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_layers": _blocks(weights, "layers"),
        "num_heads": num_heads,
        "num_key_value_heads": inner.get("num_key_value_heads") or num_heads,
        "head_dim": head_dim,
        "norm_eps": inner.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta") or inner.get("rope_theta") or 10000.0,
    }


def _gene_decoder(hyper: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The decoder that the weights hold, whatever `decoder_cfg` says: with raw expression there is none."""
    names = [name for name in weights if name.startswith("gene_decoder.")]
    if not names:
        return None
    residual = any(name.startswith("gene_decoder.blocks.") for name in names)
    plain = any(name.startswith("gene_decoder.decoder.") for name in names)
    if residual == plain:
        raise CheckpointError(f"the gene decoder has a form that steval does not know: {', '.join(names[:5])}")
    linear = [weights[name] for name in names if name.endswith(".weight") and weights[name].dim() == 2]
    return {
        "latent_dim": linear[0].shape[1],
        "gene_dim": linear[-1].shape[0],
        "hidden_dims": tuple(matrix.shape[0] for matrix in linear[:-1]),
        "dropout": (hyper.get("decoder_cfg") or {}).get("dropout", 0.1),
        "residual": residual,
    }


def _linear_layers(weights: Mapping[str, Tensor], root: str) -> int:
    count = 0
    while f"{root}.{3 * count}.weight" in weights:
        count += 1
    if not count:
        raise KeyError(f"{root}.0.weight")
    return count


def _blocks(weights: Mapping[str, Tensor], container: str) -> int:
    prefix = f"{BACKBONE}.{container}."
    return len({name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)})
