"""Predictions that need no model, made of training cells; a score means something beside theirs.

- mean: cell-eval 0.8.2's baseline. Every perturbed cell is the mean over the training perturbations' mean profiles (the
  control's among them); the control cells are the training file's.
- control: no effect. Perturbed cells are training control cells of the same context.
- additive: training control cells of the context plus the perturbation's mean effect over the training contexts that
  have it, or where it is unseen plus the mean effect of all, carried as predictions are (`data.effects.carry`).
- ridge: as additive, with the effect predicted from perturbation features by ridge regression (penalty by leave-one-out).

Perturbed cells are as many as the real ones of each perturbation and context.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import scipy.sparse as sp

from steval.data.effects.carry import carry, mean_of_cells
from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import PIECE_CELLS, CellSide
from steval.evaluator.reference.training import ALL, TrainingCells

BaselineKind = Literal["mean", "control", "additive", "ridge"]
KINDS: tuple[BaselineKind, ...] = ("mean", "control", "additive", "ridge")
POOL_CELLS = 4096
"""Control cells of a context kept in memory to draw from."""
PENALTIES = np.logspace(-3, 6, 28)


@dataclass(frozen=True)
class BaselineSide(CellSide):
    """A predicted side whose cells are made when they are read; nothing is stored."""

    read: Callable[[np.ndarray], sp.csr_matrix] | None = field(default=None, repr=False, compare=False)
    """Training cells by row."""
    make: Callable[[str], sp.csr_matrix] | None = field(default=None, repr=False, compare=False)
    """The perturbed cells of a group."""
    control: str = ""

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """Control cells by `size`; the cells of a perturbation in one piece."""
        assert self.read is not None
        assert self.make is not None
        if group != self.control:
            yield self.make(group)
            return
        rows = self.groups[group]
        for start in range(0, len(rows), size):
            yield self.read(rows[start : start + size])

    def embedding(self, key: str, group: str) -> np.ndarray:
        """Baselines live in gene space."""
        raise EvaluationError(f"the {self.name} has no embedding {key!r}: baselines are made of gene expression alone")

    def digest(self) -> str:
        """Baselines are cheap to make and are not cached."""
        raise EvaluationError(f"the {self.name} has no file to take a digest of")


def baseline_pair(
    pair: Pair,
    training: TrainingCells,
    kind: BaselineKind,
    *,
    seed: int = 0,
    features: Mapping[str, np.ndarray] | None = None,
) -> Pair:
    """`pair` with its prediction replaced by the baseline `kind`; the real side is the same object."""
    contexts = real_contexts(pair)
    side = (
        _mean_side(pair, training) if kind == "mean" else _shifted_side(pair, training, kind, contexts, seed, features)
    )
    return replace(pair, pred=side)


def available_kinds(training: TrainingCells, features: Mapping[str, np.ndarray] | None) -> tuple[BaselineKind, ...]:
    """The baselines that can be made; ridge needs features of at least 3 training perturbations."""
    known = sum(name in (features or {}) for name in training.effects)
    return KINDS if known >= 3 else KINDS[:-1]


def real_contexts(pair: Pair) -> dict[str, dict[str, int]]:
    """Cells of each context (cell type) in each real group: group → context → number."""
    column = pair.columns.cell_type
    if pair.cell_type is not None or column is None or column not in pair.real.cells.obs.columns:
        single = pair.cell_type or ALL
        return {group: {single: len(rows)} for group, rows in pair.real.groups.items()}
    types = pair.real.cells.obs[column].astype(str).to_numpy(dtype=object)
    counted = {}
    for group, rows in pair.real.groups.items():
        names, numbers = np.unique(types[rows].astype(str), return_counts=True)
        counted[group] = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    return counted


def missing_contexts(pair: Pair, training: TrainingCells) -> list[str]:
    """Contexts of the real cells whose controls the training cells lack; their baselines start from other contexts."""
    wanted = {context for counts in real_contexts(pair).values() for context in counts}
    return [] if set(training.control_rows) == {ALL} else sorted(wanted - set(training.control_rows) - {ALL})


def ridge_effects(
    effects: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """Effects `[G]` of the `wanted` perturbations that have features, by ridge regression on the training effects."""
    names = [name for name in effects if name in features]
    inputs = np.stack([np.asarray(features[name], dtype=np.float64).ravel() for name in names])
    targets = np.stack([effects[name] for name in names])
    centre, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread[spread == 0] = 1.0
    scaled, offset = (inputs - centre) / spread, targets.mean(axis=0)
    left, singular, right = np.linalg.svd(scaled, full_matrices=False)
    projected = left.T @ (targets - offset)
    errors = [_leave_one_out(left, singular, projected, targets - offset, penalty) for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(errors))]
    weights = right.T @ (projected * (singular / (singular**2 + penalty))[:, None])
    present = [name for name in wanted if name in features]
    rows = [(np.asarray(features[name], dtype=np.float64).ravel() - centre) / spread for name in present]
    return {name: row @ weights + offset for name, row in zip(present, rows, strict=True)}


def _leave_one_out(
    left: np.ndarray, singular: np.ndarray, projected: np.ndarray, targets: np.ndarray, penalty: float
) -> float:
    """Sum of squared leave-one-out errors of ridge with an intercept, from the singular value decomposition."""
    shrink = singular**2 / (singular**2 + penalty)
    leverage = (left**2) @ shrink + 1.0 / len(left)
    residual = targets - left @ (projected * shrink[:, None])
    return float(((residual / np.maximum(1.0 - leverage, 1e-6)[:, None]) ** 2).sum())


def _mean_side(pair: Pair, training: TrainingCells) -> BaselineSide:
    profile = sp.csr_matrix(training.mean_profile[None, :].astype(training.dtype))
    controls = np.concatenate(list(training.control_rows.values()))
    return _side(
        pair, training, "mean baseline", controls, lambda group: _repeated(profile, len(pair.real.groups[group]))
    )


def _shifted_side(
    pair: Pair,
    training: TrainingCells,
    kind: BaselineKind,
    contexts: Mapping[str, Mapping[str, int]],
    seed: int,
    features: Mapping[str, np.ndarray] | None,
) -> BaselineSide:
    wanted = sorted({context for counts in contexts.values() for context in counts})
    own = {context: training.control_rows[context] for context in wanted if context in training.control_rows}
    pooled = np.concatenate(list((own or training.control_rows).values()))
    rest = [] if len(own) == len(wanted) else [(None, pooled)]
    pools = {context: _pool(training, rows, seed) for context, rows in [*own.items(), *rest]}
    predicted = dict(training.effects)
    if kind == "ridge":
        predicted |= ridge_effects(training.effects, features or {}, pair.perturbations)

    def make(group: str) -> sp.csr_matrix:
        generator = np.random.default_rng([seed, pair.perturbations.index(group)])
        drawn = [_draw(generator, pools[c if c in pools else None], n) for c, n in contexts[group].items()]
        cells = drawn[0] if len(drawn) == 1 else sp.csr_matrix(sp.vstack(drawn, format="csr"))
        if kind == "control":
            return cells
        wanted = mean_of_cells(cells) + predicted.get(group, training.mean_effect)
        return carry(cells, wanted, generator, target_sum=training.target_sum).cells

    return _side(pair, training, f"{kind} baseline", pooled, make)


def _side(
    pair: Pair, training: TrainingCells, name: str, controls: np.ndarray, make: Callable[[str], sp.csr_matrix]
) -> BaselineSide:
    groups = {group: np.arange(len(rows)) for group, rows in pair.real.groups.items()}
    groups[pair.control] = np.sort(controls)
    return BaselineSide(
        name,
        training.cells,
        groups,
        training.alignment,
        dense=False,
        read=training.matrix,
        make=make,
        control=pair.control,
    )


def _pool(training: TrainingCells, rows: np.ndarray, seed: int) -> sp.csr_matrix:
    """Control cells to draw from: all of them, or a sample of `POOL_CELLS`."""
    if len(rows) > POOL_CELLS:
        rows = np.random.default_rng(seed).choice(rows, POOL_CELLS, replace=False)
    return training.matrix(np.sort(rows))


def _draw(generator: np.random.Generator, pool: sp.csr_matrix, num: int) -> sp.csr_matrix:
    """`num` cells of the pool, without repeats as long as there are enough."""
    return pool[generator.choice(pool.shape[0], num, replace=num > pool.shape[0])]


def _repeated(profile: sp.csr_matrix, num: int) -> sp.csr_matrix:
    starts = np.arange(num + 1, dtype=profile.indptr.dtype) * profile.nnz
    return sp.csr_matrix(
        (np.tile(profile.data, num), np.tile(profile.indices, num), starts), shape=(num, profile.shape[1])
    )
