"""Which attention regime does a checkpoint belong to? The one under which it predicts the user's own cells best."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steval.checkpoints.store import Checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import Scale
from steval.data.columns import ColumnOptions, resolve_columns
from steval.data.labels import labels_of
from steval.errors import DataError
from steval.logs import progress
from steval.model.config import Attention, ModelConfig
from steval.model.loss_settings import LossSettings
from steval.model.losses import SetLoss, build_loss
from steval.model.network import StateTransition
from steval.predictor.controls import ControlPool, cell_controls
from steval.wording import counted, listed

MAX_PERTURBATIONS = 24
MAX_CELLS = 1024
"""Cells per perturbation and cell type: the loss of few cells rewards regimes that predict less spread."""
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
    is_clear: bool
    """Whether the lowest loss is below the next by more than two standard errors of their paired differences."""

    @property
    def best(self) -> Attention:
        """The regime with the lowest loss."""
        return min(self.losses, key=lambda regime: self.losses[regime])

    def describe(self) -> str:
        """One line with all numbers."""
        numbers = ", ".join(f"{regime} {loss:.6g}" for regime, loss in self.losses.items())
        doubt = "" if self.is_clear else " (their difference is within the noise of these cells; more cells would tell)"
        sets = f"{counted(self.num_sets, 'cell set')} of {counted(self.num_perturbations, 'perturbation')}"
        return f"energy loss on {sets}: {numbers}{doubt}"


@dataclass(frozen=True)
class _ProbedCells:
    """Cells of one perturbation and cell type: B control sets of S cells, and as many measured perturbed cells."""

    perturbation: str
    control_BSG: Tensor
    target_ND: Tensor
    batch_BS: Tensor | None


def probe_regimes(checkpoint: Checkpoint, path: Path, cells: CellOptions | None = None) -> ProbeReport:
    """Validation loss of `checkpoint` on real cell sets of an h5ad file, under each regime that its backbone can have.

    The file holds control and perturbed cells. Up to 24 of the perturbations that the checkpoint knows are drawn, each
    predicted from control cells of the same cell type in sets of the checkpoint's size, and all predicted cells of one
    are compared with as many measured ones. Raises `DataError` where no set can be made.
    """
    cells = cells or CellOptions()
    loss = build_loss(LossSettings(kind="energy"))
    networks = {regime: checkpoint.network(regime) for regime in regimes_of(checkpoint.manifest.model)}
    values: dict[Attention, list[float]] = {regime: [] for regime in networks}
    num_sets, names = 0, set()
    for group in progress(_groups(checkpoint, path, cells), "loss under each regime", "group"):
        num_sets += len(group.control_BSG)
        names.add(group.perturbation)
        for regime, network in networks.items():
            values[regime].append(_loss_of(network, checkpoint, group, loss))
    return ProbeReport(
        losses={regime: float(np.mean(found)) for regime, found in values.items()},
        num_sets=num_sets,
        num_perturbations=len(names),
        is_clear=_is_clear([np.array(found) for found in values.values()]),
    )


def _is_clear(values: list[np.ndarray]) -> bool:
    best, second = sorted(values, key=lambda found: found.mean())[:2]
    difference = second - best
    if len(difference) < 2:
        return False
    return bool(difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(len(difference)))


def regimes_of(model: ModelConfig) -> tuple[Attention, ...]:
    """The regimes that a network can be computed under: rotary embedding needs a Llama with an even head size."""
    if model.backbone.kind == "llama" and model.backbone.head_dim % 2 == 0:
        return ("bidirectional", "causal", "causal-rope")
    return ("bidirectional", "causal")


@torch.no_grad()
def _loss_of(network: StateTransition, checkpoint: Checkpoint, group: _ProbedCells, loss: SetLoss) -> float:
    features = checkpoint.feature_rows([group.perturbation])
    predicted = [
        network(
            group.control_BSG[index, None], features, None if group.batch_BS is None else group.batch_BS[index, None]
        ).output_BSG
        for index in range(len(group.control_BSG))
    ]
    return float(loss(torch.cat(predicted, dim=1), group.target_ND[None]).mean())


def _groups(checkpoint: Checkpoint, path: Path, cells: CellOptions) -> Iterator[_ProbedCells]:
    """One group at a time: at 18,080 genes all of them together would be gigabytes."""
    manifest = checkpoint.manifest
    rng = np.random.default_rng(cells.seed)
    num_groups = 0
    with CellFile.open(path) as data:
        columns = resolve_columns(data.obs, data.record, cells.columns, manifest.columns, source=data.name)
        data = data.labelled(columns, "perturbation", "cell_type")
        labels = labels_of(data.obs, columns.perturbation, data.name)
        found = sorted(set(labels) & (set(manifest.perturbation_names) - {manifest.control, columns.control}))
        pool = _every_cell(data, checkpoint, cells, columns.perturbation, columns.control)
        drawn = rng.choice(found, size=min(len(found), MAX_PERTURBATIONS), replace=False) if found else []
        for name, cell_type in itertools.product(sorted(map(str, drawn)), pool.cell_type_names):
            of_type = pool.cell_types == cell_type
            targets = np.flatnonzero((labels == name) & of_type)
            controls = np.flatnonzero((labels == columns.control) & of_type)
            available = min(len(targets), len(controls))
            if available >= MIN_SET_SIZE:
                size = min(manifest.model.cell_set_size, available)
                num_cells = size * max(1, min(available, MAX_CELLS) // size)
                chosen = [rng.choice(rows, num_cells, replace=False) for rows in (controls, targets)]
                num_groups += 1
                yield _gather(name, checkpoint, pool, *chosen, size)
    if not num_groups:
        raise DataError(
            f"{path} has no cell set to probe with: of its perturbations the checkpoint knows {len(found)}, and a set needs "
            f"{MIN_SET_SIZE} perturbed and {MIN_SET_SIZE} control cells of one cell type"
        )


def _every_cell(data: CellFile, checkpoint: Checkpoint, cells: CellOptions, column: str, control: str) -> ControlPool:
    """All cells of the file as one pool, its rows those of the file: perturbed cells obey the same contracts."""
    everything = data.select(np.arange(data.num_cells))
    everything.obs = everything.obs.assign(**{column: control})
    return cell_controls(everything, checkpoint.manifest, columns=cells.columns, scale=cells.scale)


def _gather(
    name: str, checkpoint: Checkpoint, pool: ControlPool, controls: np.ndarray, targets: np.ndarray, size: int
) -> _ProbedCells:
    model = checkpoint.manifest.model
    measured = pool.inputs(targets) if model.output_dim == model.input_dim else pool.measured(targets)
    batch_N = _batch_codes(checkpoint, pool.batches[controls]) if model.batch_encoder else None
    return _ProbedCells(
        name,
        torch.from_numpy(pool.inputs(controls).toarray()).unflatten(0, (-1, size)),
        torch.from_numpy(measured.toarray()),
        None if batch_N is None else batch_N.unflatten(0, (-1, size)),
    )


def _batch_codes(checkpoint: Checkpoint, names: np.ndarray) -> Tensor:
    code = {name: index for index, name in enumerate(checkpoint.manifest.batches)}
    unknown = sorted({str(name) for name in names} - code.keys())
    if unknown:
        raise DataError(
            f"the network embeds batches and does not know {listed(unknown, 5)}; its batches are "
            f"{listed(code, 5)}. Name the right column with --batch-col"
        )
    return torch.tensor([code[str(name)] for name in names])
