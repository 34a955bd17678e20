"""Reading arc-state models: a run directory or a bare `.ckpt`, without running any of its code.

A run directory has `config.yaml`, `var_dims.pkl`, `pert_onehot_map.pt`, `batch_onehot_map.torch` (older: `.pkl`),
`cell_type_onehot_map.torch` and `checkpoints/{best,final,last}.ckpt`. Only files are read here; facts of the format are
in docs/checkpoints.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steval.checkpoints.adapters.arc_lora import ArcAdapters, take_adapters
from steval.checkpoints.arc_config import RegimeChoice, choose_attention, ignored_flags, model_config
from steval.checkpoints.arc_maps import ArcVocabulary, read_vocabulary
from steval.checkpoints.location import ARC_PREFERRED, local, require_plain
from steval.checkpoints.manifest import TrainingRecord
from steval.checkpoints.safe_load import check_tensors, load_foreign
from steval.errors import CheckpointError
from steval.model.config import ModelConfig
from steval.model.groups import is_unused
from steval.model.lora import merged
from steval.model.network import StateTransition
from steval.settings import json_digest
from steval.wording import counted

OTHER_MODELS = frozenset(
    {
        "celltypemean", "context_mean", "cpa", "decoder_only", "embedsum", "globalsimplesum", "old_neuralot", "perturb_mean",
        "pseudobulk", "scgpt-chemical", "scgpt-genetic", "scvi",
    }
)  # fmt: skip
"""What `model.name` of `config.yaml` calls arc-state's other networks; `pseudobulk` has the very tensors of a State Transition
model and computes something else with them (measured with 0.11.1)."""


@dataclass(frozen=True)
class ArcModel:
    """What an arc-state model holds, in steval's terms.

    `weights`: parameter name → float32 tensor (memory-mapped), complete and in the shapes of `config`; `dropped`: names
    of stored tensors that no computation reads; `vocabulary` holds names and codes, empty parts where there is no map.
    """

    source: Path
    checkpoint_path: Path
    config: ModelConfig
    regime: RegimeChoice
    weights: Mapping[str, Tensor]
    dropped: tuple[str, ...]
    vocabulary: ArcVocabulary
    training: TrainingRecord
    notes: tuple[str, ...]
    adapters: ArcAdapters | None = None
    """LoRA adapters; `weights` has them added."""
    base: Mapping[str, Tensor] | None = None
    """The weights without the adapters, where there are any."""


def read_arc(source: Path, attention: str | None = None) -> ArcModel:
    """Read an arc-state run directory or checkpoint file; `attention` overrides the regime.

    Raises `CheckpointError` for anything that is no State Transition model, cannot be trusted, or uses what steval does
    not compute (named); `ConfigError` for an unknown `attention`.
    """
    source = local(source)
    checkpoint_path, run_dir, notes = _locate(source)
    content = load_foreign(checkpoint_path)
    hyper, stored = _parts(content, checkpoint_path)
    check_tensors(stored, str(checkpoint_path))
    stored, adapters = take_adapters(hyper, stored)
    vocabulary = read_vocabulary(run_dir, hyper)
    _require_state_transition(vocabulary.run_config)
    hyper = _with_backbone_of(hyper, vocabulary.run_config)
    regime = choose_attention(hyper, attention)
    config = model_config(hyper, stored, regime.attention)
    weights, dropped = _match(stored, config, checkpoint_path)
    base = None
    if adapters is not None:
        base, weights = weights, merged(weights, adapters.pairs, adapters.scale)
        notes.append(
            f"LoRA adapters of rank {adapters.rank} (alpha {adapters.alpha:g}) beside "
            f"{counted(len(adapters.pairs), 'matrix', 'matrices')}, added to them"
        )
    notes += [f"attention {regime.attention}: {regime.reason}", *vocabulary.notes]
    notes += [f"{flag} is on in the file and changes nothing that is computed" for flag in ignored_flags(hyper)]
    if dropped:
        notes.append(f"left out {counted(len(dropped), 'stored tensor')} that nothing reads: {', '.join(dropped)}")
    return ArcModel(
        source=source,
        checkpoint_path=checkpoint_path,
        config=config,
        regime=regime,
        weights=weights,
        dropped=tuple(dropped),
        vocabulary=vocabulary,
        training=_training_record(content, vocabulary.run_config),
        notes=tuple(notes),
        adapters=adapters,
        base=base,
    )


def _require_state_transition(run_config: Mapping[str, Any]) -> None:
    """`config.yaml` may say that this is another of arc-state's networks."""
    model = run_config.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if str(name).lower() in OTHER_MODELS:
        raise CheckpointError(
            f"config.yaml says that this is arc-state's model {name!r}, another network than the State Transition model (`state`), "
            "which is the one that steval computes"
        )


def _locate(source: Path) -> tuple[Path, Path | None, list[str]]:
    """The checkpoint file, the run directory with its maps (None: there is none), and what was chosen."""
    if source.is_dir():
        found = [folder / name for name in ARC_PREFERRED for folder in (source / "checkpoints", source)]
        found = [path for path in found if path.is_file()]
        # arc-state's evaluation leaves directories of results that are called eval_best.ckpt
        others = [path for path in (*source.glob("checkpoints/*.ckpt"), *source.glob("*.ckpt")) if path.is_file()]
        found = found or sorted(others)
        if not found:
            raise CheckpointError(
                f"{source} has no checkpoint: expected checkpoints/{{best,final,last}}.ckpt, or give the .ckpt itself"
            )
        others = [path.name for path in found[1:]]
        note = f"weights of {found[0].relative_to(source)}"
        return found[0], source, [note + (f" (also there: {', '.join(others)})" if others else "")]
    if not require_plain(source).exists():
        raise CheckpointError(f"no such checkpoint or run directory: {source}")
    parents = [folder for folder in (source.parent, source.parent.parent) if (folder / "var_dims.pkl").is_file()]
    if parents:
        return source, parents[0], [f"names and codes from the run directory {parents[0].name}"]
    return source, None, ["a bare checkpoint file: it carries no perturbation, cell type or batch names"]


def _parts(content: Any, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not isinstance(content, Mapping) or not {"state_dict", "hyper_parameters"} <= content.keys():
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint as arc-state writes it: it needs state_dict and hyper_parameters, found {keys}"
        )
    hyper, stored = content["hyper_parameters"], content["state_dict"]
    if not isinstance(hyper, Mapping) or not isinstance(stored, Mapping):
        raise CheckpointError(f"{path}: state_dict and hyper_parameters must be mappings")
    if not isinstance(hyper.get("transformer_backbone_kwargs"), Mapping):
        raise CheckpointError(
            f"{path}: its transformer_backbone_kwargs cannot be read; is it a State Transition model?"
        )
    return dict(hyper), dict(stored)


def _with_backbone_of(hyper: dict[str, Any], run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with the backbone keys that only `config.yaml` has (the regime's key among them)."""
    model = run_config.get("model")
    written = model.get("kwargs") if isinstance(model, Mapping) else None
    inner = written.get("transformer_backbone_kwargs") if isinstance(written, Mapping) else None
    own = hyper.get("transformer_backbone_kwargs")
    if not isinstance(inner, Mapping) or not isinstance(own, Mapping):
        return hyper
    return {**hyper, "transformer_backbone_kwargs": {**inner, **own}}


def _match(stored: Mapping[str, Tensor], config: ModelConfig, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The stored tensors that the network of `config` has, float32; unused ones apart; all else is an error."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in StateTransition(config).state_dict().items()}
    dropped = sorted(name for name in stored.keys() - expected.keys() if is_unused(name, config))
    unknown = sorted(stored.keys() - expected.keys() - set(dropped))
    problems = [f"unknown tensor {name} {list(stored[name].shape)}" for name in unknown]
    problems += [f"missing tensor {name} {list(expected[name])}" for name in sorted(expected.keys() - stored.keys())]
    problems += [
        f"{name} has shape {list(stored[name].shape)}, the hyper-parameters say {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in stored and tuple(stored[name].shape) != shape
    ]
    problems += [
        f"{name} holds {stored[name].dtype}"
        for name in sorted(expected.keys() & stored.keys())
        if not stored[name].is_floating_point()
    ]
    if problems:
        shown = problems[:20] + ([f"… and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise CheckpointError(f"{path}: its tensors do not make the network that its hyper-parameters describe", shown)
    return {name: stored[name].detach().to(torch.float32) for name in expected}, dropped


def _training_record(content: Mapping[str, Any], run_config: Mapping[str, Any]) -> TrainingRecord:
    step = content.get("global_step")
    lightning = content.get("pytorch-lightning_version")
    training = run_config.get("training")
    seed = training.get("train_seed") if isinstance(training, Mapping) else None
    return TrainingRecord(
        config_digest=json_digest(run_config) if run_config else None,
        config=dict(run_config),
        step=step if isinstance(step, int) else 0,
        seed=seed if isinstance(seed, int) else None,
        versions={"lightning": lightning} if isinstance(lightning, str) else {},
    )
