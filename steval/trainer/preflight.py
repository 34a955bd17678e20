"""The representation guard: what the run is about to do, in one table, before its first step."""

from collections.abc import Mapping

import torch

from steval.data.training.cells import TrainingCells
from steval.data.training.sets import CellSetSampler
from steval.errors import ConfigError
from steval.model.config import ModelConfig
from steval.model.groups import PARAMETER_GROUPS, parameter_group
from steval.model.network import StateTransition
from steval.trainer.config import FinetuneConfig
from steval.trainer.estimates import copies_memory, estimate_memory, skeleton
from steval.trainer.fit.optimiser import ParameterSet
from steval.trainer.progress.notices import Notice
from steval.trainer.settings.network import names_backbone
from steval.trainer.settings.phases import PhaseSettings
from steval.trainer.sources import Base
from steval.wording import counted, duration, memory_size

MISMATCH = (
    "the input is the embedding {key!r}, and the evaluator compares genes: the published rounds with embedding input "
    "scored under 0.2, the rounds with expression in and out 5.7. Use expression as input (recipe raw-staged), or go on "
    "with --allow-mismatch"
)


def guard_representation(
    cells: TrainingCells, model: ModelConfig, base: Base | None, *, allow_mismatch: bool
) -> list[str]:
    """Warnings about spaces and scales that do not fit each other; each is a `ConfigError` unless `allow_mismatch`."""
    problems = []
    if not model.input_is_genes:
        problems.append(MISMATCH.format(key=model.input_key))
        if model.gene_decoder is None:
            problems.append(
                "the network predicts an embedding alone: no gene-space score can be computed; set network.gene_decoder"
            )
    known = base.manifest.target_sum if base and base.manifest else None
    if known and cells.target_sum and abs(known - cells.target_sum) > 1e-6 * known:
        problems.append(
            f"the checkpoint was trained on lognorm with target_sum {known:.9g}, these cells have {cells.target_sum:g}; prepare "
            "them with the checkpoint's"
        )
    if problems and not allow_mismatch:
        raise ConfigError("input, output and evaluation do not fit each other", problems)
    return problems


def guard_fresh_weights(config: FinetuneConfig, base: Base | None, *, from_nothing: bool) -> list[str]:
    """Warnings about a backbone of random weights that a phase freezes; a `ConfigError` where nobody has asked for such a one.

    It is asked for by `from_nothing`, or by a configuration that gives the backbone its sizes.
    """
    frozen = [phase.name for phase in config.phases if phase.frozen_blocks]
    if base is not None or not frozen:
        return []
    problem = (
        f"the backbone has random weights, and {counted(len(frozen), 'phase freezes', 'phases freeze')} it or a part of it "
        f"({', '.join(frozen)}): what is frozen never learned anything"
    )
    if from_nothing or names_backbone(config.network):
        return [f"{problem}; recipes quick-cpu and full train all of a network that starts from nothing"]
    raise ConfigError(
        f"without --init-from {problem}. Start from a checkpoint (--init-from CKPT), take recipe quick-cpu or full for a network "
        "from nothing, or insist with --from-nothing"
    )


def preflight_notice(
    config: FinetuneConfig, cells: TrainingCells, model: ModelConfig, samplers: Mapping[str, CellSetSampler],
    base: Base | None, warnings: list[str],
) -> Notice:  # fmt: skip
    """What the run reads, predicts and is scored in, how much of it, and with how much memory."""
    sets = config.sets
    evaluated = (
        f"genes ({len(cells.genes):,})" if model.output_is_genes or model.gene_decoder else "none: embedding only"
    )
    total = sum(p.numel() for p in skeleton(model).parameters())
    memory = _memory_told(config, model, on_gpu=torch.cuda.is_available())
    rows = [
        ("starts from", base.source.name if base else "nothing (fresh weights)"),
        ("input space", f"{model.input_key or 'expression'}, {counted(model.input_dim, 'column')}"),
        ("output space", f"{model.output_space}, {counted(model.output_dim, 'column')}, head {model.head}"),
        ("evaluator's space", evaluated),
        *((label, text) for label, text in cells.summary().items() if label != "input"),
        ("cells per set", f"{sets.size}"),
        ("sets per step", f"{sets.per_batch} × {sets.accumulation} accumulated, on each device"),
        ("sets per epoch", f"{samplers['train'].num_sets:,} train, {samplers['val'].num_sets:,} val (fixed)"),
        ("parameters", f"{total:,}"),
        ("attention", model.attention),
        ("memory estimate", memory),
    ]
    return Notice("Preflight", ("what", "value"), tuple(rows), tuple(warnings))


def _memory_told(config: FinetuneConfig, model: ModelConfig, *, on_gpu: bool) -> str:
    step, copies = estimate_memory(config, model, on_gpu=on_gpu), copies_memory(config, model)
    return f"{memory_size(step)} on each device, {memory_size(copies)} beside it while checkpoints are written"


def estimate_notice(config: FinetuneConfig, model: ModelConfig, seconds_per_step: float, *, on_gpu: bool) -> Notice:
    """What a run will take; `seconds_per_step` as measured, on one device and without the optimiser's part."""
    weights = 4 * sum(p.numel() for p in skeleton(model).parameters())
    cells = config.total_steps * config.sets.per_batch * config.sets.accumulation * config.sets.size
    rows = (
        ("steps", f"{config.total_steps:,} in {counted(len(config.phases), 'phase')}"),
        ("cells seen", f"{cells:,} on each device"),
        (
            "time",
            f"about {duration(config.total_steps * seconds_per_step)}: {seconds_per_step:.3g} s a step, validation apart",
        ),
        (
            "memory",
            f"{_memory_told(config, model, on_gpu=on_gpu)} (--estimate has every choice)",
        ),
        ("disk", f"{memory_size(weights)} a checkpoint, about {memory_size(3 * weights)} for last.ckpt"),
    )
    return Notice("Estimate", ("what", "value"), rows)


def phase_notice(
    phase: PhaseSettings, number: int, count: int, network: StateTransition, sets: list[ParameterSet]
) -> Notice:
    """What trains in a phase, and at which peak rates."""
    total = sum(p.numel() for p in network.parameters())
    trainable = sum(group.num_parameters for group in sets)
    frozen = [
        group for group in PARAMETER_GROUPS if group not in phase.trains and _has(network, group, phase.top_blocks)
    ]
    by_label: dict[str, list[ParameterSet]] = {}
    for group in sets:
        by_label.setdefault(group.label, []).append(group)
    rows = [
        (
            label,
            sum(g.num_parameters for g in groups),
            f"{groups[0].rate:.3g}",
            f"{max(g.weight_decay for g in groups):g}",
        )
        for label, groups in by_label.items()
    ]
    title = (
        f"Phase {number + 1} of {count}, {phase.name}: {counted(phase.steps, 'step')}, {phase.schedule}, "
        f"{trainable:,} of {counted(total, 'parameter')} train" + (f" (frozen: {', '.join(frozen)})" if frozen else "")
    )
    return Notice(title, ("part", "parameters", "peak rate", "weight decay (matrices)"), tuple(rows))


def _has(network: StateTransition, group: str, top_blocks: int) -> bool:
    num_layers = network.config.backbone.num_layers
    return any(parameter_group(name, num_layers, top_blocks) == group for name, _ in network.named_parameters())
