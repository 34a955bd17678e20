"""Which attention regime does a checkpoint belong to? The one under which it predicts the user's own cells best."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steval.checkpoints.store import Checkpoint
from steval.data.cellfile import CellFile
from steval.data.columns import ColumnOptions, resolve_columns
from steval.data.scale import Scale
from steval.errors import DataError
from steval.logs import progress
from steval.model.config import Attention, ModelConfig
from steval.model.loss_settings import LossSettings
from steval.model.losses import build_loss
from steval.model.network import StateTransition
from steval.predictor.controls import ControlPool, cell_controls

MAX_PERTURBATIONS = 24
SETS_PER_PERTURBATION = 2
MIN_SET_SIZE = 4
"""Cells below which a set says nothing about attention."""


@dataclass(frozen=True)
class CellOptions:
    """How the user's cells are read, and the seed of the choice among them."""

    columns: ColumnOptions | None = None
    scale: Scale | None = None
    seed: int = 0


@dataclass(frozen=True)
class ProbeReport:
    """Mean energy loss of one model under each regime on the same cell sets; 0 is best."""

    losses: dict[Attention, float]
    num_sets: int
    num_perturbations: int

    @property
    def best(self) -> Attention:
        """The regime with the lowest loss."""
        return min(self.losses, key=lambda regime: self.losses[regime])

    def describe(self) -> str:
        """One line with all numbers."""
        numbers = ", ".join(f"{regime} {loss:.6g}" for regime, loss in self.losses.items())
        return f"energy loss on {self.num_sets} cell sets of {self.num_perturbations} perturbations: {numbers}"


@dataclass(frozen=True)
class _ProbedSet:
    perturbation: str
    control_SG: Tensor
    target_SD: Tensor
    batch_S: Tensor | None


def probe_regimes(checkpoint: Checkpoint, path: Path, cells: CellOptions | None = None) -> ProbeReport:
    """Validation loss of `checkpoint` on real cell sets of an h5ad file, under each regime that its backbone can have.

    The file holds control and perturbed cells; up to 24 of the perturbations that the checkpoint knows are drawn, two
    sets of its set size each, controls of the same cell type. Raises `DataError` where no set can be made.
    """
    cells = cells or CellOptions()
    sets = _draw_sets(checkpoint, path, cells)
    loss = build_loss(LossSettings(kind="energy"))
    losses: dict[Attention, float] = {}
    for regime in regimes_of(checkpoint.manifest.model):
        network = checkpoint.network(regime)
        values = [_loss_of(network, checkpoint, one, loss) for one in progress(sets, f"loss, {regime}", "set")]
        losses[regime] = float(np.mean(values))
    return ProbeReport(losses, len(sets), len({one.perturbation for one in sets}))


def regimes_of(model: ModelConfig) -> tuple[Attention, ...]:
    """The regimes that a network can be computed under: rotary embedding needs a Llama with an even head size."""
    if model.backbone.kind == "llama" and model.backbone.head_dim % 2 == 0:
        return ("bidirectional", "causal", "causal-rope")
    return ("bidirectional", "causal")


@torch.no_grad()
def _loss_of(network: StateTransition, checkpoint: Checkpoint, one: _ProbedSet, loss) -> float:
    prediction = network(
        one.control_SG[None],
        checkpoint.feature_rows([one.perturbation]),
        None if one.batch_S is None else one.batch_S[None],
    )
    return float(loss(prediction.output_BSG, one.target_SD[None]).mean())


def _draw_sets(checkpoint: Checkpoint, path: Path, cells: CellOptions) -> list[_ProbedSet]:
    manifest = checkpoint.manifest
    rng = np.random.default_rng(cells.seed)
    with CellFile.open(path) as data:
        columns = resolve_columns(data.obs, data.record, cells.columns, manifest.columns, source=data.name)
        labels = data.obs[columns.perturbation].astype(str).to_numpy()
        known = set(manifest.perturbation_names) - {manifest.control, columns.control}
        found = sorted(set(labels) & known)
        pool = _every_cell(data, checkpoint, cells, columns.perturbation, columns.control)
        drawn = sorted(rng.choice(found, size=min(len(found), MAX_PERTURBATIONS), replace=False)) if found else []
        sets = []
        for name in drawn:
            for cell_type in pool.cell_type_names:
                of_type = pool.cell_types == cell_type
                targets = np.flatnonzero((labels == name) & of_type)
                controls = np.flatnonzero((labels == columns.control) & of_type)
                size = min(manifest.model.cell_set_size, len(targets), len(controls))
                if size >= MIN_SET_SIZE:
                    sets += [
                        _make_set(str(name), checkpoint, pool, *_pick(rng, controls, targets, size))
                        for _ in range(SETS_PER_PERTURBATION)
                    ]
    if not sets:
        raise DataError(
            f"{path} has no cell set to probe with: of its perturbations the checkpoint knows {len(found)}, and a set needs "
            f"{MIN_SET_SIZE} perturbed and {MIN_SET_SIZE} control cells of one cell type"
        )
    return sets


def _pick(
    rng: np.random.Generator, controls: np.ndarray, targets: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    return rng.choice(controls, size, replace=False), rng.choice(targets, size, replace=False)


def _every_cell(data: CellFile, checkpoint: Checkpoint, cells: CellOptions, column: str, control: str) -> ControlPool:
    """All cells of the file as one pool, its rows those of the file: perturbed cells obey the same contracts."""
    everything = data.select(np.arange(data.num_cells))
    everything.obs = everything.obs.assign(**{column: control})
    return cell_controls(everything, checkpoint.manifest, columns=cells.columns, scale=cells.scale)


def _make_set(
    name: str, checkpoint: Checkpoint, pool: ControlPool, controls: np.ndarray, targets: np.ndarray
) -> _ProbedSet:
    model = checkpoint.manifest.model
    measured = pool.inputs(targets) if model.output_dim == model.input_dim else pool.measured(targets)
    return _ProbedSet(
        name,
        torch.from_numpy(pool.inputs(controls).toarray()),
        torch.from_numpy(measured.toarray()),
        _batch_codes(checkpoint, pool.batches[controls]) if model.batch_encoder else None,
    )


def _batch_codes(checkpoint: Checkpoint, names: np.ndarray) -> Tensor:
    code = {name: index for index, name in enumerate(checkpoint.manifest.batches)}
    unknown = sorted({str(name) for name in names} - code.keys())
    if unknown:
        raise DataError(
            f"the network embeds batches and does not know {', '.join(unknown[:5])}; its batches are "
            f"{', '.join(list(code)[:5])}. Name the right column with --batch-col"
        )
    return torch.tensor([code[str(name)] for name in names])
