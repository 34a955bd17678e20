"""Weights of one network into another: loaded, remapped by name, re-initialised or dropped, and all of it reported.

The rule for each tensor of the target. Axes with names (one-hot perturbations, batches, genes) go by name, so that the
same shape in another order is not loaded by position; then equal shapes load; the rest keeps its fresh initial values.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steval.checkpoints.weight_source import Vocabulary, WeightSource
from steval.errors import CheckpointError
from steval.model.config import ModelConfig
from steval.model.network import StateTransition

Action = Literal["loaded", "remapped", "re-initialised", "dropped"]
ACTIONS: tuple[Action, ...] = ("loaded", "remapped", "re-initialised", "dropped")


@dataclass(frozen=True)
class Transfer:
    """What became of one tensor; shapes are None where that side has no such tensor."""

    name: str
    action: Action
    reason: str
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class TransplantReport:
    """Every tensor of the source and of the target, once."""

    source: str
    transfers: tuple[Transfer, ...]
    notes: tuple[str, ...] = ()

    def count(self, action: Action) -> int:
        return sum(transfer.action == action for transfer in self.transfers)

    def names(self, action: Action) -> list[str]:
        return [transfer.name for transfer in self.transfers if transfer.action == action]

    def lines(self) -> list[str]:
        """For people: the counts, then each tensor that was not simply loaded, with the reason."""
        counts = ", ".join(f"{self.count(action)} {action}" for action in ACTIONS)
        rest = [
            f"{t.action}: {t.name} {_shape(t.source_shape)} → {_shape(t.target_shape)} ({t.reason})"
            for t in self.transfers
            if t.action != "loaded"
        ]
        every = [] if rest else ["every tensor is loaded as it is"]
        return [f"weights of {self.source}: {counts}", *every, *rest, *self.notes]

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class _Axis:
    """One named axis of a tensor: names by position on either side; `what` for the report."""

    dim: int
    source: Sequence[str]
    target: Sequence[str]
    what: str


class _Refused(Exception):
    """The axes of a tensor mean different things, whatever their lengths; the message says what."""


def transplant(
    source: WeightSource, target: ModelConfig, vocabulary: Vocabulary, generator: torch.Generator
) -> tuple[dict[str, Tensor], TransplantReport]:
    """The complete state dict of a network of `target`, and the report.

    Fresh values come from `generator` (CPU). Source and target control labels are one and the same perturbation.
    Raises `CheckpointError` where nothing of the backbone fits: such a start would be no start from `source`.
    """
    with torch.device("meta"):
        network = StateTransition(target)
    network = network.to_empty(device="cpu")
    network.reset(generator)
    fresh = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    axes = _named_axes(source, target, vocabulary)
    transfers, state = [], {}
    for name, initial in fresh.items():
        stored = source.weights.get(name)
        state[name], action, reason = _transfer(name, stored, initial, axes)
        shape = None if stored is None else tuple(stored.shape)
        transfers.append(Transfer(name, action, reason, shape, tuple(initial.shape)))
    transfers += [
        Transfer(name, "dropped", "the target has no such tensor", tuple(source.weights[name].shape), None)
        for name in sorted(source.weights.keys() - fresh.keys())
    ]
    report = TransplantReport(source.name, tuple(transfers), _notes(source.config, target))
    _require_backbone(report, source.config, target)
    return state, report


def _transfer(
    name: str, stored: Tensor | None, initial: Tensor, axes: dict[str, Callable[[], _Axis | None]]
) -> tuple[Tensor, Action, str]:
    if stored is None:
        return initial, "re-initialised", "the source has no such tensor"
    try:
        axis = axes[name]() if name in axes else None
    except _Refused as refusal:
        return initial, "re-initialised", str(refusal)
    if axis is not None and tuple(axis.source) != tuple(axis.target):
        return _remap(stored, initial, axis)
    if stored.shape != initial.shape:
        return initial, "re-initialised", "the shape changed"
    reason = "same shape" if name not in axes else "same names" if axis else "same shape; no names to compare"
    return stored.detach().to("cpu", initial.dtype).clone(), "loaded", reason


def _remap(stored: Tensor, initial: Tensor, axis: _Axis) -> tuple[Tensor, Action, str]:
    """Copy what both sides have a name for; the rest of the target keeps its fresh values."""
    others = [dim for dim in range(initial.dim()) if dim != axis.dim]
    if stored.dim() != initial.dim() or any(stored.shape[dim] != initial.shape[dim] for dim in others):
        return initial, "re-initialised", "the shape changed"
    position = {name: index for index, name in enumerate(axis.source)}
    shared = [(position[name], index) for index, name in enumerate(axis.target) if name and name in position]
    found = f"{len(shared)} of {sum(bool(name) for name in axis.target)} {axis.what} found"
    if not shared:
        return initial, "re-initialised", found
    taken, placed = torch.tensor(shared, dtype=torch.int64).unbind(dim=1)
    values = stored.detach().to("cpu", initial.dtype).index_select(axis.dim, taken)
    return initial.clone().index_copy_(axis.dim, placed, values), "remapped", found


def _named_axes(
    source: WeightSource, target: ModelConfig, vocabulary: Vocabulary
) -> dict[str, Callable[[], _Axis | None]]:
    """Tensor name → its named axis, None where that has no names; asking may raise `_Refused`."""
    theirs = source.vocabulary

    def perturbations() -> _Axis | None:
        return _perturbation_axis(theirs, vocabulary)

    def batches() -> _Axis | None:
        if not theirs.batches or not vocabulary.batches:
            raise _Refused("the names of the batches are not known on both sides")
        return _Axis(0, theirs.batches, vocabulary.batches, "batches")

    def inputs(dim: int) -> _Axis | None:
        return _gene_axis(dim, theirs.input_genes, vocabulary.input_genes, source.config, target)

    def outputs(dim: int) -> _Axis | None:
        if source.config.gene_decoder or target.gene_decoder:  # the main head's output is the decoder's latent
            return inputs(dim)
        return _gene_axis(dim, theirs.output_genes, vocabulary.output_genes, source.config, target)

    def decoded() -> _Axis | None:
        return _by_name(0, theirs.output_genes, vocabulary.output_genes)

    last = f"project_out.{3 * (target.num_decoder_layers - 1)}"
    axes: dict[str, Callable[[], _Axis | None]] = {
        "pert_encoder.0.weight": perturbations,
        "batch_encoder.weight": batches,
        "batch_classifier.0.weight": batches,
        "batch_classifier.0.bias": batches,
        "basal_encoder.weight": lambda: inputs(1),
        "basal_encoder.0.weight": lambda: inputs(1),
        f"{last}.weight": lambda: outputs(0),
        f"{last}.bias": lambda: outputs(0),
        "final_down_then_up.0.weight": lambda: outputs(1),
        "final_down_then_up.2.weight": lambda: outputs(0),
        "final_down_then_up.2.bias": lambda: outputs(0),
    }
    if target.gene_decoder:
        depth = len(target.gene_decoder.hidden_dims)
        root = "gene_decoder.final_layer.0" if target.gene_decoder.residual else f"gene_decoder.decoder.{4 * depth}"
        axes |= {f"{root}.weight": decoded, f"{root}.bias": decoded}
    return axes


def _perturbation_axis(theirs: Vocabulary, ours: Vocabulary) -> _Axis | None:
    """The columns of a one-hot perturbation encoder by name; dense features (ESM2) have no named columns."""
    if theirs.features is None or ours.features is None:
        raise _Refused("the perturbation features are not known on both sides")
    columns = [
        one_hot_columns(side.features, side.perturbations) for side in (theirs, ours) if side.features is not None
    ]
    if columns[0] is None and columns[1] is None:
        return None
    if columns[0] is None or columns[1] is None:
        raise _Refused("one side has one-hot perturbations, the other feature vectors")
    source = [theirs.control if name == theirs.control else name for name in columns[0]]
    target = [theirs.control if name == ours.control else name for name in columns[1]]
    return _Axis(1, source, target, "perturbations")


def one_hot_columns(features: Tensor, names: Sequence[str]) -> list[str] | None:
    """The name of each column of one-hot `features [P, pert_dim]` (empty: no name), or None if they are not one-hot.

    A row of zeros (a control that a feature file lacks) names no column.
    """
    is_set = features != 0
    per_row = is_set.sum(dim=1)
    if bool((per_row > 1).any()) or bool((features[is_set] != 1).any()) or bool((is_set.sum(dim=0) > 1).any()):
        return None
    if not bool(is_set.any()):
        return None
    columns = [""] * features.shape[1]
    for row, name in enumerate(names):
        if per_row[row]:
            columns[int(is_set[row].to(torch.uint8).argmax())] = name
    return columns


def _gene_axis(
    dim: int, theirs: Sequence[str] | None, ours: Sequence[str] | None, source: ModelConfig, target: ModelConfig
) -> _Axis | None:
    if source.input_is_genes != target.input_is_genes or (
        not target.input_is_genes and source.input_key != target.input_key
    ):
        raise _Refused(f"the input changes from {source.input_key or 'X'} to {target.input_key or 'X'}")
    return _by_name(dim, theirs, ours)


def _by_name(dim: int, theirs: Sequence[str] | None, ours: Sequence[str] | None) -> _Axis | None:
    if theirs is None or ours is None:
        return None
    return _Axis(dim, theirs, ours, "genes")


def _notes(source: ModelConfig, target: ModelConfig) -> tuple[str, ...]:
    watched = ("attention", "predict_residual", "activation", "mask_attn", "output_space", "head")
    pairs = [(name, getattr(source, name), getattr(target, name)) for name in watched]
    return tuple(f"{name} was {before}, is {after}" for name, before, after in pairs if before != after)


def _require_backbone(report: TransplantReport, source: ModelConfig, target: ModelConfig) -> None:
    kept = Counter(t.action == "loaded" for t in report.transfers if t.name.startswith("transformer_backbone."))
    if not kept[True]:
        raise CheckpointError(
            f"nothing of the backbone of {report.source} fits: it has {_backbone_text(source)}, the new network "
            f"{_backbone_text(target)}. Take the backbone's settings from the source, or train from scratch"
        )


def _backbone_text(config: ModelConfig) -> str:
    backbone = config.backbone
    return f"{backbone.kind} blocks of hidden size {backbone.hidden_size} and {backbone.intermediate_size} inside"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "(none)" if shape is None else "×".join(map(str, shape))
