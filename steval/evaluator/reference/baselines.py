"""Predictions that need no model, made of training cells; a score means something beside theirs.

- mean: cell-eval 0.8.2's baseline. Every perturbed cell is the mean over the training perturbations' mean profiles (the
  control's among them); the control cells are the training file's.
- control: no effect. Perturbed cells are training control cells of the same context.
- additive: training control cells of the context plus the perturbation's mean effect over the training contexts that
  have it, or where it is unseen plus the mean effect of all, carried as predictions are (`data.effects.carry`).
- ridge: as additive, with the effect predicted from perturbation features by ridge regression (penalty by leave-one-out).

Where the training cells hold no control cells of a context, control, additive and ridge start from the measured control cells of
all contexts, as predictions do; those of another context would make a model that is easily beaten.

On counts all start from the measured control cells of the same context, whose counts are thinned or multiplied by a fold change
(`multiplied`): none (control), the mean one of the training perturbations (mean), the perturbation's own (additive, ridge).

Perturbed cells are as many as the real ones of each perturbation and context.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.data.effects.carry import carry, mean_of_cells
from steval.data.labels import unlabelled
from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import PIECE_CELLS, cell_types
from steval.evaluator.reference.training import ALL, FoldChanges, TrainingSummary

POOL_CELLS = 4096
"""Control cells of a context kept in memory to draw from."""
PENALTIES = np.logspace(-3, 6, 28)


@dataclass(eq=False)
class MadeCells:
    """Predicted cells that are made when they are read (see `Cells`); nothing is stored."""

    name: str
    groups: Mapping[str, np.ndarray]
    num_genes: int
    control: str
    read: Callable[[np.ndarray], sp.csr_matrix]
    """Cells by row, `[n, G]`; the control cells are among them."""
    make: Callable[[str], sp.csr_matrix]
    """The perturbed cells of a group."""
    dense: bool = False
    is_read_twice: bool = False
    tables: dict[Any, Any] = field(default_factory=dict)

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """Control cells by `size`; the cells of a perturbation in one piece."""
        if group != self.control:
            yield self.make(group)
            return
        rows = self.groups[group]
        for start in range(0, len(rows), size):
            yield self.read(rows[start : start + size])

    def embedding(self, key: str, group: str) -> np.ndarray:
        """Baselines live in gene space."""
        raise EvaluationError(f"the {self.name} has no embedding {key!r}: baselines are made of gene expression alone")


@dataclass(frozen=True)
class Materials:
    """All that a baseline may be made of."""

    pair: Pair
    training: TrainingSummary
    seed: int = 0
    features: Mapping[str, np.ndarray] | None = None
    """Perturbation → vector."""


@dataclass(frozen=True)
class Baseline:
    """All that is known of a kind of baseline; a new one is a function and an entry in `BASELINES`."""

    kind: str
    sentence: str
    """For readers: what its perturbed cells are."""
    make: Callable[[Materials], MadeCells]
    colours: tuple[str, str]
    """In figures, on a light and on a dark page."""
    make_counts: Callable[[Materials], MadeCells]
    """The same of measured control cells and fold changes, for pairs on counts."""
    fewest_features: int = 0
    """Training perturbations that must have features."""

    @property
    def label(self) -> str:
        """Its name for readers."""
        return f"{self.kind} baseline"


def baseline_pair(
    pair: Pair,
    training: TrainingSummary,
    kind: str,
    *,
    seed: int = 0,
    features: Mapping[str, np.ndarray] | None = None,
) -> Pair:
    """`pair` with its prediction replaced by the baseline `kind`; the real side is the same object."""
    baseline = BASELINES[kind]
    make = baseline.make if training.fold_changes is None else baseline.make_counts
    return replace(pair, pred=make(Materials(pair, training, seed, features)))


def available_kinds(training: TrainingSummary, features: Mapping[str, np.ndarray] | None) -> tuple[str, ...]:
    """The baselines that can be made."""
    known = sum(name in (features or {}) for name in training.effects)
    return tuple(kind for kind, baseline in BASELINES.items() if known >= baseline.fewest_features)


def real_contexts(pair: Pair) -> dict[str, dict[str, int]]:
    """Cells of each context (cell type) in each real group: group → context → number."""
    column = pair.columns.cell_type
    if pair.cell_type is not None or column is None or column not in pair.real.file.obs.columns:
        single = pair.cell_type or ALL
        return {group: {single: len(rows)} for group, rows in pair.real.groups.items()}
    types = cell_types(pair.real, column)
    counted = {}
    for group, rows in pair.real.groups.items():
        names, numbers = np.unique(types[rows][types[rows] != ""].astype(str), return_counts=True)
        counted[group] = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    return counted


def require_contexts(pair: Pair, training: TrainingSummary) -> None:
    """Raise a `DataError` where baselines start from the controls of a cell's type and real cells have none."""
    column, side = pair.columns.cell_type, pair.real
    if column is None or column not in side.file.obs.columns or set(training.control_rows) == {ALL}:
        return
    rows = np.concatenate(list(side.groups.values()))
    num_missing = int((cell_types(side, column)[rows] == "").sum())
    if num_missing and not pair.columns.drop_unlabelled:
        raise unlabelled(num_missing, len(rows), column, "real cells")


def missing_contexts(pair: Pair, training: TrainingSummary) -> list[str]:
    """Contexts of the real cells whose controls the training cells lack."""
    wanted = {context for counts in real_contexts(pair).values() for context in counts}
    return [] if set(training.control_rows) == {ALL} else sorted(wanted - set(training.control_rows) - {ALL})


@dataclass(frozen=True)
class Controls:
    """Control cells to start from."""

    rows: Mapping[str, np.ndarray]
    """Of each context."""
    read: Callable[[np.ndarray], sp.csr_matrix]
    """Cells by row, `[n, G]`."""


def controls_of(pair: Pair, training: TrainingSummary) -> Controls:
    """Those of training, or the measured ones where training lacks a context that has some."""
    measured = measured_controls(pair)
    if set(missing_contexts(pair, training)) & set(measured.rows):
        return measured
    return Controls(training.control_rows, training.matrix)


def measured_controls(pair: Pair) -> Controls:
    """Control cells of the real side."""
    side, column = pair.real, pair.columns.cell_type
    rows = side.groups[pair.control]

    def read(chosen: np.ndarray) -> sp.csr_matrix:
        return sp.csr_matrix(side.alignment.apply(side.file.rows(chosen, dtype=None)))

    if pair.cell_type is not None or column is None or column not in side.file.obs.columns:
        return Controls({pair.cell_type or ALL: rows}, read)
    types = cell_types(side, column)[rows]
    return Controls({str(one): rows[types == one] for one in np.unique(types[types != ""].astype(str))}, read)


def ridge_effects(
    effects: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """Effects `[G]` of the `wanted` perturbations that have features, by ridge regression on the training effects.

    Features are standardised; the penalty is the one of `PENALTIES` with the least squared leave-one-out error over all genes.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    present = [name for name in wanted if name in features]
    if not present:
        return {}
    known = [name for name in effects if name in features]
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES))
    model.fit(_stacked(features, known), np.stack([effects[name] for name in known]))
    return dict(zip(present, model.predict(_stacked(features, present)), strict=True))


def _stacked(features: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.stack([np.asarray(features[name], dtype=np.float64).ravel() for name in names])


def _mean(given: Materials) -> MadeCells:
    training, groups = given.training, given.pair.real.groups
    profile = sp.csr_matrix(training.mean_profile[None, :].astype(training.dtype))
    controls = Controls(training.control_rows, training.matrix)
    return _made(given, "mean", controls, lambda group: _repeated(profile, len(groups[group])))


def _control(given: Materials) -> MadeCells:
    draw, controls = _control_draws(given)
    return _made(given, "control", controls, lambda group: draw(group)[0])


def _additive(given: Materials) -> MadeCells:
    return _shifted(given, "additive", given.training.effects)


def _ridge(given: Materials) -> MadeCells:
    effects = given.training.effects
    predicted = ridge_effects(effects, given.features or {}, given.pair.perturbations)
    return _shifted(given, "ridge", {**effects, **predicted})


def _shifted(given: Materials, kind: str, effects: Mapping[str, np.ndarray]) -> MadeCells:
    draw, controls = _control_draws(given)
    training = given.training

    def make(group: str) -> sp.csr_matrix:
        cells, generator = draw(group)
        wanted = mean_of_cells(cells) + effects.get(group, training.mean_effect)
        return carry(cells, wanted, generator, target_sum=training.target_sum).cells

    return _made(given, kind, controls, make)


def _control_draws(
    given: Materials,
) -> tuple[Callable[[str], tuple[sp.csr_matrix, np.random.Generator]], Controls]:
    """Draws control cells for a group, as many of each context as it really has; and those of its contexts.

    A draw comes with its generator, from which all further chance of that group is taken.
    """
    pair = given.pair
    source = controls_of(pair, given.training)
    contexts = real_contexts(pair)
    wanted = sorted({context for counts in contexts.values() for context in counts})
    own = {context: source.rows[context] for context in wanted if context in source.rows}
    used = own or source.rows
    rest = [] if len(own) == len(wanted) else [(None, np.concatenate(list(used.values())))]
    pools = {context: _pool(source, rows, given.seed) for context, rows in [*own.items(), *rest]}

    def draw(group: str) -> tuple[sp.csr_matrix, np.random.Generator]:
        generator = np.random.default_rng([given.seed, pair.perturbations.index(group)])
        drawn = [_draw(generator, pools[c if c in pools else None], n) for c, n in contexts[group].items()]
        cells = drawn[0] if len(drawn) == 1 else sp.csr_matrix(sp.vstack(drawn, format="csr"))
        return cells, generator

    return draw, Controls(used, source.read)


def _made(given: Materials, kind: str, controls: Controls, make: Callable[[str], sp.csr_matrix]) -> MadeCells:
    pair = given.pair
    groups = {group: np.arange(len(rows)) for group, rows in pair.real.groups.items()}
    groups[pair.control] = np.sort(np.concatenate(list(controls.rows.values())))
    return MadeCells(BASELINES[kind].label, groups, len(pair.genes), pair.control, controls.read, make)


def _pool(source: Controls, rows: np.ndarray, seed: int) -> sp.csr_matrix:
    """Control cells to draw from: all of them, or a sample of `POOL_CELLS`."""
    if len(rows) > POOL_CELLS:
        rows = np.random.default_rng(seed).choice(rows, POOL_CELLS, replace=False)
    return source.read(np.sort(rows))


def _draw(generator: np.random.Generator, pool: sp.csr_matrix, num: int) -> sp.csr_matrix:
    """`num` cells of the pool, without repeats as long as there are enough."""
    return pool[generator.choice(pool.shape[0], num, replace=num > pool.shape[0])]


def _repeated(profile: sp.csr_matrix, num: int) -> sp.csr_matrix:
    starts = np.arange(num + 1, dtype=profile.indptr.dtype) * profile.nnz
    return sp.csr_matrix(
        (np.tile(profile.data, num), np.tile(profile.indices, num), starts), shape=(num, profile.shape[1])
    )


def _learnt(given: Materials) -> FoldChanges:
    assert given.training.fold_changes is not None
    return given.training.fold_changes


def _ridge_fold_changes(given: Materials) -> dict[str, np.ndarray]:
    by_name = _learnt(given).by_name
    return {**by_name, **ridge_effects(by_name, given.features or {}, given.pair.perturbations)}


def _by_fold_changes(
    kind: str, known: Callable[[Materials], Mapping[str, np.ndarray] | None]
) -> Callable[[Materials], MadeCells]:
    """Measured control cells by log fold changes: those that are `known`, for all others the mean one; None: no change."""

    def made(given: Materials) -> MadeCells:
        pair, changes = given.pair, known(given)
        rows = pair.real.groups[pair.control]
        if len(rows) > POOL_CELLS:
            rows = np.sort(np.random.default_rng(given.seed).choice(rows, POOL_CELLS, replace=False))
        pool = sp.csr_matrix(pair.real.alignment.apply(pair.real.file.rows(rows, dtype=None)))

        def make(group: str) -> sp.csr_matrix:
            generator = np.random.default_rng([given.seed, pair.perturbations.index(group)])
            cells = _draw(generator, pool, len(pair.real.groups[group]))
            if changes is None:
                return cells
            return multiplied(cells, np.exp(changes.get(group, _learnt(given).mean)), generator)

        groups = {group: np.arange(len(rows)) for group, rows in pair.real.groups.items() if group != pair.control}
        return MadeCells(f"{kind} baseline", groups, len(pair.genes), pair.control, given.training.matrix, make)

    return made


def multiplied(cells: sp.csr_matrix, factor: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
    """Counts `[n, G]` times `factor [G]`, as sampling leaves them: thinned by chance below 1, above it with Poisson counts more."""
    by = factor[cells.indices]
    counts = cells.data.astype(np.int64)
    kept = generator.binomial(counts, np.minimum(by, 1.0)) + generator.poisson(counts * np.maximum(by - 1.0, 0.0))
    result = sp.csr_matrix((kept.astype(np.float32), cells.indices.copy(), cells.indptr.copy()), shape=cells.shape)
    result.eliminate_zeros()
    return result


_ALL = (
    Baseline(
        "mean",
        "Every cell is the mean over the training perturbations' mean profiles, the control's among them, as in cell-eval; "
        "members are normalised by this one.",
        _mean,
        ("#8a929c", "#8d97a3"),
        _by_fold_changes("mean", lambda given: {}),
    ),
    Baseline(
        "control",
        "No effect: training control cells of the same cell type.",
        _control,
        ("#b9a36b", "#cdb779"),
        _by_fold_changes("control", lambda _: None),
    ),
    Baseline(
        "additive",
        "Training control cells of the same cell type plus the perturbation's mean effect over the training cell types that "
        "have it, carried by the cells that express a gene; where it is unseen, plus the mean effect of all.",
        _additive,
        ("#d9822b", "#f0a04b"),
        _by_fold_changes("additive", lambda given: _learnt(given).by_name),
    ),
    Baseline(
        "ridge",
        "As additive, with the effect predicted from perturbation features by ridge regression.",
        _ridge,
        ("#7a56b0", "#b795ea"),
        _by_fold_changes("ridge", _ridge_fold_changes),
        fewest_features=3,
    ),
)

BASELINES: Mapping[str, Baseline] = MappingProxyType({baseline.kind: baseline for baseline in _ALL})
"""Every baseline by kind, in the order of tables and figures."""
REFERENCE = "mean"
"""The baseline that members are normalised by: cell-eval's."""
