"""Cell sets for training and validation: which cells form a set and which controls they start from.

A set holds cells of one cell type and one perturbation (and one batch, where controls are mapped by batch). Everything is a pure
function of (seed, epoch, number): any worker can make any batch, and a resumed run sees what an uninterrupted one would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steval.data.reference import Part
from steval.data.training.cells import TrainingCells
from steval.data.training.obsm_store import ObsmStore
from steval.data.training.row_store import Allocate, RowStore, SparseRows
from steval.errors import ConfigError, DataError
from steval.wording import counted

ControlMapping = Literal["cell_type", "batch"]
Sampling = Literal["cells", "perturbations"]

_ORDER, _CELLS, _CONTROLS, _TOP_UP = range(4)
"""Independent streams of random numbers under one seed."""


@dataclass(frozen=True)
class SetBatch:
    """B cell sets of at most S cells; G: columns of the input, D: genes of a separate gene target."""

    control_BSG: np.ndarray | SparseRows
    """Basal input, float32; zero where padded. `SparseRows` hold B·S rows."""
    target_BSG: np.ndarray | SparseRows
    """Measured cells in the space of the input, float32; zero where padded."""
    target_genes_BSD: np.ndarray | SparseRows | None
    """Their lognorm expression where the input is another matrix (embedding, `X_hvg`); none: it is `target_BSG`."""
    pert_codes_B: np.ndarray
    """int64 rows of `TrainingCells.features`."""
    batch_codes_BS: np.ndarray
    """int64 batch of each control cell, 0 where padded."""
    cell_type_codes_B: np.ndarray
    """int64."""
    padding_BS: np.ndarray | None
    """bool, True where a row is padding; none: every set is full."""
    target_rows_BS: np.ndarray
    """int64 cell numbers, -1 where padded."""
    control_rows_BS: np.ndarray
    """int64 cell numbers, -1 where padded."""
    auxiliary_BA: np.ndarray | None
    """Standardised mean embedding of the measured cells, float32; none: there is no auxiliary embedding."""


@dataclass(frozen=True)
class SetPlan:
    """The cells of one set."""

    pert_code: int
    cell_type_code: int
    targets: np.ndarray
    """int64 cell numbers `[n]`, n at most the set size."""
    controls: np.ndarray
    """int64 cell numbers `[n]`."""


class CellSetSampler:
    """Batches of cell sets of one part.

    In training every cell of a group is seen once an epoch (`sampling: cells`), or every perturbation in equally many
    sets (`perturbations`); short sets are topped up from their group, with replacement where it is smaller than a set,
    and the last batch from the epoch's first sets. In other parts the sets are fixed: every cell once, short sets stay
    short and are padded, `epoch` changes nothing.
    """

    def __init__(
        self, cells: TrainingCells, part: Part, *, set_size: int, sets_per_batch: int, seed: int,
        mapping: ControlMapping = "cell_type", sampling: Sampling = "cells", controls_as_targets: bool = True,
        max_sets_per_group: int | None = None,
    ):  # fmt: skip
        if set_size < 1 or sets_per_batch < 1:
            raise ConfigError(f"set_size and sets_per_batch must be at least 1, got {set_size} and {sets_per_batch}")
        self.cells = cells
        self.part = part
        self.set_size = set_size
        self.sets_per_batch = sets_per_batch
        self.seed = seed
        self.mapping = mapping
        self.sampling = sampling
        self.training = part == "train"
        self.max_sets_per_group = max_sets_per_group
        """Limit on the sets of a group outside training (a quick validation); none: every cell."""
        self._group(controls_as_targets and self.training)
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def num_sets(self) -> int:
        """Sets of an epoch."""
        return int(self._chunks.sum())

    def num_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch; every epoch has the same number."""
        return -(-self.num_sets // self.sets_per_batch)

    def plan(self, epoch: int) -> list[SetPlan]:
        """All sets of an epoch in the order of their batches."""
        return [self.set_plan(epoch, number) for number in range(self.num_sets)]

    def set_plan(self, epoch: int, number: int) -> SetPlan:
        """The set at place `number` of an epoch; training goes on with the first sets after the last one."""
        epoch = epoch if self.training else 0
        groups, chunks = self._epoch_order(epoch)
        group, chunk = int(groups[number % len(groups)]), int(chunks[number % len(groups)])
        targets = self._targets(epoch, group, chunk)
        pool = self._pools[int(self._pool_of_group[group])]
        generator = np.random.default_rng([self.seed, _CONTROLS, epoch, number])
        controls = pool[generator.choice(len(pool), len(targets), replace=len(pool) < len(targets))]
        return SetPlan(int(self._pert_of_group[group]), int(self._type_of_group[group]), targets, controls)

    def batch(
        self,
        epoch: int,
        index: int,
        shard: tuple[int, int] = (0, 1),
        *,
        keep_sparse: bool = False,
        allocate: Allocate = np.empty,
    ) -> SetBatch:
        """Batch `index` of an epoch; `shard` (number, count) takes one of `count` equal pieces of its sets. `keep_sparse`:
        cells that are held sparse, or on disk, come as `SparseRows`. `allocate` gives the memory that expression is written to."""
        if not 0 <= index < self.num_batches(epoch):
            raise IndexError(f"batch {index} of an epoch of {self.num_batches(epoch)}")
        number, count = shard
        if self.sets_per_batch % count:
            raise ConfigError(
                f"sets_per_batch ({self.sets_per_batch}) must be a multiple of the "
                f"{counted(count, 'process', 'processes')} that share it"
            )
        first = index * self.sets_per_batch
        last = first + self.sets_per_batch if self.training else min(first + self.sets_per_batch, self.num_sets)
        plans = [self.set_plan(epoch, place) for place in range(first, last)][number::count]
        size = self.set_size if self.training else None
        return gather_batch(self.cells, plans, size, keep_sparse=keep_sparse, allocate=allocate)

    def _group(self, with_controls: bool) -> None:
        cells = self.cells
        rows = cells.part(self.part)
        if with_controls:
            rows = np.concatenate([rows, cells.controls(self.part)])
        if not len(rows):
            raise DataError(f"the {self.part} part holds no perturbed cells to form sets of")
        pool_keys = self._pool_keys(rows)
        key = pool_keys * len(cells.perturbations) + cells.perturbation_codes[rows]
        order = np.argsort(key, kind="stable")
        self._rows = rows[order]
        edges = np.flatnonzero(np.diff(key[order], prepend=-1, append=-1))
        self._starts = edges
        sizes = np.diff(edges)
        heads = self._rows[edges[:-1]]
        self._pert_of_group = cells.perturbation_codes[heads]
        self._type_of_group = cells.cell_type_codes[heads]
        self._pool_of_group = self._pool_keys(heads)
        self._chunks = -(-sizes // self.set_size)
        if not self.training and self.max_sets_per_group is not None:
            self._chunks = np.minimum(self._chunks, self.max_sets_per_group)
        self._pools = self._control_pools()

    def _pool_keys(self, rows: np.ndarray) -> np.ndarray:
        """Which control cells belong to cells: their cell type, or cell type and batch."""
        types = self.cells.cell_type_codes[rows].astype(np.int64)
        if self.mapping == "cell_type":
            return types
        return types * len(self.cells.batches) + self.cells.batch_codes[rows]

    def _control_pools(self) -> dict[int, np.ndarray]:
        controls = self.cells.controls(self.part)
        keys = self._pool_keys(controls)
        order = np.argsort(keys, kind="stable")
        found, firsts = np.unique(keys[order], return_index=True)
        pools = dict(zip(found.tolist(), np.split(controls[order], firsts[1:]), strict=True)) if len(found) else {}
        needed = np.unique(self._pool_of_group)
        lacking = [self._pool_name(int(key)) for key in needed if key not in pools]
        if lacking:
            remedy = " or map controls within the cell type (mapping: cell_type)" if self.mapping == "batch" else ""
            raise DataError(
                f"the {self.part} part has perturbed cells without control cells to start from in {len(lacking)} of {len(needed)} "
                f"places; add controls, drop these cells{remedy}",
                lacking[:20],
            )
        return {int(key): pools[key] for key in needed}

    def _pool_name(self, key: int) -> str:
        if self.mapping == "cell_type":
            return f"cell type {self.cells.cell_types[key]!r}"
        cell_type, batch = divmod(key, len(self.cells.batches))
        return f"cell type {self.cells.cell_types[cell_type]!r}, batch {self.cells.batches[batch]!r}"

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Group and piece of each set of an epoch; kept for the latest epoch."""
        kept = self._order
        if kept is None or kept[0] != epoch:
            generator = np.random.default_rng([self.seed, _ORDER, epoch])
            counts = self._set_counts(generator)
            groups = np.repeat(np.arange(len(counts)), counts)
            chunks = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
            order = generator.permutation(len(groups))
            kept = self._order = (epoch, groups[order], chunks[order])
        return kept[1], kept[2]

    def _set_counts(self, generator: np.random.Generator) -> np.ndarray:
        """Sets of each group in one epoch; their sum is `num_sets`."""
        if not self.training or self.sampling == "cells":
            return self._chunks
        _, inverse = np.unique(self._pert_of_group, return_inverse=True)
        share = self._chunks / np.bincount(inverse, weights=self._chunks)[inverse]
        expected = np.cumsum(share) * (self.num_sets / share.sum())
        edges = np.floor(expected + generator.random()).astype(np.int64)
        edges[-1] = self.num_sets
        return np.diff(np.minimum(edges, self.num_sets), prepend=0)

    def _targets(self, epoch: int, group: int, chunk: int) -> np.ndarray:
        members = self._rows[self._starts[group] : self._starts[group + 1]]
        turn, piece = divmod(chunk, int(-(-len(members) // self.set_size)))
        order = np.random.default_rng([self.seed, _CELLS, epoch, group, turn]).permutation(len(members))
        taken = order[piece * self.set_size : (piece + 1) * self.set_size]
        lacking = self.set_size - len(taken)
        if lacking and self.training:
            generator = np.random.default_rng([self.seed, _TOP_UP, epoch, group, turn])
            others = order[: len(order) - len(taken)]
            more = (
                generator.choice(others, lacking, replace=False)
                if len(others) >= lacking
                else generator.choice(order, lacking)
            )
            taken = np.concatenate([taken, more])
        return members[taken]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_order": None}


def gather_batch(
    cells: TrainingCells,
    plans: Sequence[SetPlan],
    set_size: int | None = None,
    *,
    keep_sparse: bool = False,
    allocate: Allocate = np.empty,
) -> SetBatch:
    """Read the cells of planned sets; sets shorter than the longest (or than `set_size`) are padded. `keep_sparse` and `allocate`
    as for `CellSetSampler.batch`."""
    num_sets, longest = len(plans), set_size or max(len(plan.targets) for plan in plans)
    rows = np.full((2, num_sets, longest), -1, dtype=np.int64)
    for number, plan in enumerate(plans):
        rows[0, number, : len(plan.controls)] = plan.controls
        rows[1, number, : len(plan.targets)] = plan.targets
    inputs = cells.input_store or cells.store
    control_BSG, target_BSG = _gather(inputs, rows, keep_sparse, allocate)
    padding = rows[1] < 0
    return SetBatch(
        control_BSG=control_BSG,
        target_BSG=target_BSG,
        target_genes_BSD=None if cells.input_is_target else _gather(cells.store, rows[1:], keep_sparse, allocate)[0],
        pert_codes_B=np.array([plan.pert_code for plan in plans], dtype=np.int64),
        batch_codes_BS=np.where(padding, 0, cells.batch_codes[rows[0]]).astype(np.int64),
        cell_type_codes_B=np.array([plan.cell_type_code for plan in plans], dtype=np.int64),
        padding_BS=padding if padding.any() else None,
        target_rows_BS=rows[1],
        control_rows_BS=rows[0],
        auxiliary_BA=None if cells.auxiliary is None else cells.auxiliary.set_means(rows[1]),
    )


def _gather(
    store: RowStore | ObsmStore, rows_NBS: np.ndarray, keep_sparse: bool, allocate: Allocate
) -> list[np.ndarray] | list[SparseRows]:
    """The cells of each of N groups of rows."""
    if keep_sparse and isinstance(store, RowStore) and store.place != "dense memory":
        return [store.gather_sparse(rows_BS.reshape(-1), allocate) for rows_BS in rows_NBS]
    if isinstance(store, RowStore):
        memory = allocate(rows_NBS.size * store.num_genes, np.float32)
        dense = store.gather(rows_NBS.reshape(-1), memory.reshape(rows_NBS.size, store.num_genes))
    else:
        dense = store.gather(rows_NBS.reshape(-1))
    return list(dense.reshape(*rows_NBS.shape, -1))
