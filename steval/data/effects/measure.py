"""Training effects measured in one pass over the training cells, from an open file or from cells opened for training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.columns import Columns
from steval.data.compiled import compiled
from steval.data.effects.record import MOST_VALUES, TrainingEffects
from steval.data.labels import labels_of, labels_or
from steval.data.splits.assignment import SINGLE_CELL_TYPE
from steval.data.training.cells import TrainingCells
from steval.errors import DataError
from steval.wording import counted

BLOCK_CELLS = 1024


def measure_file(cells: CellFile, columns: Columns) -> tuple[TrainingEffects, tuple[str, ...]]:
    """The effects of all cells of `cells` (lognorm), and notes on what gives none; contexts are its cell types.

    Raises `DataError` where there are no control cells or more pairs and genes than a record holds.
    """
    if columns.cell_type not in cells.obs.columns:
        columns = columns.model_copy(update={"cell_type": None})
    cells = cells.labelled(columns, "perturbation", "cell_type")
    labels = labels_of(cells.obs, columns.perturbation, cells.name)
    contexts = labels_or(cells.obs, columns.cell_type, SINGLE_CELL_TYPE, cells.name)
    codes, groups = pd.factorize(pd.MultiIndex.from_arrays([labels, contexts]))
    blocks = ((codes[rows], block) for rows, block in cells.blocks(BLOCK_CELLS))
    return _measured(blocks, codes, [(str(p), str(c)) for p, c in groups], columns.control, len(cells.genes))


def measure_training(cells: TrainingCells) -> tuple[TrainingEffects, tuple[str, ...]]:
    """The effects of the training part of `cells`, its control cells included; as `measure_file`."""
    rows = np.sort(np.concatenate([cells.part("train"), cells.controls("train")]))
    keys = cells.perturbation_codes[rows].astype(np.int64) * len(cells.cell_types) + cells.cell_type_codes[rows]
    found, codes = np.unique(keys, return_inverse=True)
    groups = [
        (cells.perturbations[key // len(cells.cell_types)], cells.cell_types[key % len(cells.cell_types)])
        for key in found.tolist()
    ]
    blocks = (
        (codes[start : start + BLOCK_CELLS], sp.csr_matrix(cells.gather(rows[start : start + BLOCK_CELLS])))
        for start in range(0, len(rows), BLOCK_CELLS)
    )
    return _measured(blocks, codes, groups, cells.columns.control, len(cells.genes))


@dataclass(frozen=True)
class PairMeans:
    """Mean effects of K pairs of perturbation and context, in double precision; see `TrainingEffects` for the fields."""

    perturbations: tuple[str, ...]
    contexts: tuple[str, ...]
    perturbation_codes: np.ndarray
    context_codes: np.ndarray
    num_cells: np.ndarray
    effects: np.ndarray
    control_means: np.ndarray
    num_controls: np.ndarray
    notes: tuple[str, ...]
    """Contexts that have no control cells and give no effects."""


def pair_means(sums: np.ndarray, counts: np.ndarray, groups: Sequence[tuple[str, str]], control: str) -> PairMeans:
    """Effects of M groups (perturbation, context) of cells from their summed expression `[M, G]` and numbers `[M]` (above 0)."""
    perturbation = np.array([group[0] for group in groups], dtype=object)
    context = np.array([group[1] for group in groups], dtype=object)
    is_control = perturbation == control
    contexts = tuple(sorted({str(name) for name in context[is_control]}))
    place = _places(context, contexts)
    means = sums / counts[:, None]
    control_means = np.zeros((len(contexts), sums.shape[1]))
    control_means[place[is_control]] = means[is_control]
    num_controls = np.zeros(len(contexts), dtype=np.int32)
    num_controls[place[is_control]] = counts[is_control]
    rows = np.flatnonzero(~is_control & (place >= 0))
    rows = rows[np.lexsort((context[rows].astype(str), perturbation[rows].astype(str)))]
    names, codes = np.unique(perturbation[rows].astype(str), return_inverse=True)
    lost = sorted({str(name) for name in context} - set(contexts))
    return PairMeans(
        perturbations=tuple(names.tolist()),
        contexts=contexts,
        perturbation_codes=codes.astype(np.int32),
        context_codes=place[rows].astype(np.int32),
        num_cells=counts[rows].astype(np.int32),
        effects=means[rows] - control_means[place[rows]],
        control_means=control_means,
        num_controls=num_controls,
        notes=(f"training cells of {', '.join(lost)} have no control and give no effects",) if lost else (),
    )


def effects_from_sums(
    sums: np.ndarray, squares: np.ndarray, counts: np.ndarray, groups: Sequence[tuple[str, str]], control: str
) -> tuple[TrainingEffects, tuple[str, ...]]:
    """The record of groups as `pair_means` takes them, with the sums of squares `[M, G]`; and its notes."""
    pairs = pair_means(sums, counts, groups, control)
    place = _places(np.array([group[1] for group in groups], dtype=object), pairs.contexts)
    record = TrainingEffects(
        perturbations=pairs.perturbations,
        contexts=pairs.contexts,
        perturbation_codes=pairs.perturbation_codes,
        context_codes=pairs.context_codes,
        num_cells=pairs.num_cells,
        effects=pairs.effects.astype(np.float32),
        control_means=pairs.control_means.astype(np.float32),
        num_controls=pairs.num_controls,
        cell_variance=_pooled_variance(sums, squares, counts, place, len(pairs.contexts)).astype(np.float32),
    )
    return record, pairs.notes


def _places(context: np.ndarray, contexts: tuple[str, ...]) -> np.ndarray:
    """Position of each group's context among `contexts`; -1 where it is none of them."""
    code = {name: index for index, name in enumerate(contexts)}
    return np.array([code.get(str(name), -1) for name in context], dtype=np.int64)


def _pooled_variance(
    sums: np.ndarray, squares: np.ndarray, counts: np.ndarray, place: np.ndarray, num_contexts: int
) -> np.ndarray:
    """Variance between the cells of a group, over the groups of each context `[C, G]`."""
    variance, freedom = np.zeros((num_contexts, sums.shape[1])), np.zeros(num_contexts)
    for row in np.flatnonzero(place >= 0):
        variance[place[row]] += squares[row] - sums[row] ** 2 / counts[row]
        freedom[place[row]] += counts[row] - 1
    return np.maximum(variance, 0.0) / np.maximum(freedom, 1.0)[:, None]


def _measured(
    blocks: Iterable[tuple[np.ndarray, sp.csr_matrix]],
    codes: np.ndarray,
    groups: Sequence[tuple[str, str]],
    control: str,
    num_genes: int,
) -> tuple[TrainingEffects, tuple[str, ...]]:
    if control not in {group[0] for group in groups}:
        raise DataError(f"the training cells hold no control cells ({control!r}); effects are changes from the control")
    if len(groups) * num_genes > MOST_VALUES:
        raise DataError(
            f"{counted(len(groups), 'pair')} of perturbation and context × {counted(num_genes, 'gene')} are more than "
            f"the {MOST_VALUES:,} "
            "values that a record of training effects holds; train on fewer contexts, or decode as the network puts out"
        )
    sums, squares = np.zeros((len(groups), num_genes)), np.zeros((len(groups), num_genes))
    for group, block in blocks:
        _add(block.indptr, block.indices, block.data, group, sums, squares)
    return effects_from_sums(sums, squares, np.bincount(codes, minlength=len(groups)), groups, control)


@compiled
def _add(indptr, indices, data, groups, sums, squares):  # type: ignore[no-untyped-def]
    """Add cell i and its squares to row `groups[i]`."""
    for row in range(indptr.shape[0] - 1):
        total, square = sums[groups[row]], squares[groups[row]]
        for k in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[k])
            total[indices[k]] += value
            square[indices[k]] += value * value
