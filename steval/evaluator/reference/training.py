"""What the training cells say, in one pass: mean profiles, mean effects of perturbations, where the control cells are.

Baselines are built from this and never from the evaluation data.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import GeneAlignment, align
from steval.data.cells.scale import Scale, lognorm, require_scale
from steval.data.columns import Columns
from steval.data.effects.measure import pair_means
from steval.data.files import sha256_file
from steval.data.labels import labelled_rows, labels_of
from steval.errors import EvaluationError, nearest_names
from steval.evaluator.cells.digests import SKETCH_CELLS, control_step, gene_keys, sketch, sketch_genes, value_bits
from steval.evaluator.cells.kernels import sum_cells
from steval.evaluator.cells.sides import CellSource, few_cells, open_cells
from steval.evaluator.cells.views import LOGNORM_TOTAL
from steval.wording import listed

BLOCK_CELLS = 2048
ALL = "all cells"
"""Name of the single context where there is no cell type column."""


@dataclass(frozen=True)
class FoldChanges:
    """What counts of training cells say of perturbations: changes of log(CPM + 1) from the controls of the same context."""

    by_name: dict[str, np.ndarray]
    """Mean over contexts `[G]`."""
    mean: np.ndarray
    """Mean over perturbations `[G]`."""


@dataclass(frozen=True)
class TrainingSummary:
    """What training cells say; every profile is a mean of lognorm expression over the pair's genes `[G]`.

    Counts are read as lognorm to `views.LOGNORM_TOTAL`.
    """

    cells: CellFile
    alignment: GeneAlignment
    mean_profile: np.ndarray
    """cell-eval's baseline: mean over the perturbations' means, the control's among them."""
    control_rows: dict[str, np.ndarray]
    """Rows of the control cells of each context."""
    effects: dict[str, np.ndarray]
    """Mean over contexts of each perturbation's change from the control of its context."""
    mean_effect: np.ndarray
    """Mean of `effects` over perturbations."""
    digests: np.ndarray
    """Digests of the perturbed cells."""
    control_digests: np.ndarray
    sketched: np.ndarray
    """Columns of the sketch genes (see `digests`)."""
    sketches: dict[str, np.ndarray]
    """Sketches of the first cells of each perturbation, float32 `[m, S]`."""
    control_sketches: np.ndarray
    """Sketches of evenly spaced control cells, float32 `[m, S]`."""
    num_cells: int
    dtype: "np.dtype[Any]"
    """Precision of the training cells; cell-eval's mean profile has it too."""
    target_sum: float | None
    """Total per cell before log1p; None: unknown."""
    digest: str
    """sha256 of the file, or of the cells' digests where they are in memory."""
    notes: tuple[str, ...]
    fold_changes: FoldChanges | None = None
    """Where the training cells are counts."""

    def matrix(self, rows: np.ndarray) -> sp.csr_matrix:
        """Cells of the training file by row, CSR `[n, G]`, genes in the pair's order."""
        return self.alignment.apply(self.cells.rows(rows, dtype=None))


def read_training(
    source: CellSource,
    genes: Sequence[str],
    columns: Columns,
    perturbations: Sequence[str],
    *,
    rows: np.ndarray | None = None,
    scale: Scale | None = None,
    takes: Scale = "lognorm",
    context: str | None = None,
    name: str = "training cells",
) -> TrainingSummary:
    """Summarise the training cells of `source` (its `rows` only, where given) for scoring `perturbations`.

    `takes`: the scale that they must have; `context`: their cell type column where they lack that of `columns`. Raises
    `EvaluationError` where columns, control or genes do not fit the evaluation data, `DataError` where the scale does not.
    """
    cells, _ = open_cells(source, name, columns.perturbation)
    if columns.cell_type not in cells.obs.columns and context in cells.obs.columns:
        columns = columns.model_copy(update={"cell_type": context})
    selected = _labelled(cells, columns, np.arange(cells.num_cells) if rows is None else np.asarray(rows), name)
    labels = _labels(cells, columns, selected, name)
    target_sum = require_scale(few_cells(cells), takes, scale).target_sum
    alignment = align(cells.genes, genes, what=name)
    counted, path = cells, cells.path
    if takes == "counts":
        cells, target_sum = _as_lognorm(cells), LOGNORM_TOTAL
    contexts = _contexts(cells.obs, columns, selected, name)
    keys = pd.MultiIndex.from_arrays([labels, contexts])
    codes, groups = pd.factorize(keys)
    sums, digests = _sum_groups(cells, alignment, selected, codes, len(groups))
    counts = np.bincount(codes, minlength=len(groups))
    perturbation = np.array([group[0] for group in groups], dtype=object)
    pairs = pair_means(sums, counts, [(str(p), str(c)) for p, c in groups], columns.control)
    effects = {
        name: pairs.effects[pairs.perturbation_codes == code].mean(axis=0)
        for code, name in enumerate(pairs.perturbations)
    }
    is_control = labels == columns.control
    sketched = sketch_genes(sums[perturbation == columns.control].sum(axis=0))
    return TrainingSummary(
        cells=cells,
        alignment=alignment,
        mean_profile=_mean_of_means(sums, counts, perturbation),
        control_rows={str(c): selected[is_control & (contexts == c)] for c in pd.unique(contexts[is_control])},
        effects=effects,
        mean_effect=np.mean(list(effects.values()), axis=0) if effects else np.zeros(len(genes)),
        digests=np.unique(digests[~is_control]),
        control_digests=np.unique(digests[is_control]),
        sketched=sketched,
        sketches=_sketches(cells, alignment, selected, labels, sketched, perturbations),
        control_sketches=_sketch_rows(
            cells, alignment, selected[is_control][:: control_step(is_control.sum())], sketched
        ),
        num_cells=len(selected),
        dtype=cells.rows(selected[:1], dtype=None).dtype,
        target_sum=target_sum,
        digest=hashlib.sha256(digests.tobytes()).hexdigest() if path is None else sha256_file(path),
        notes=pairs.notes,
        fold_changes=_fold_changes(counted, alignment, selected, codes, list(groups), columns)
        if takes == "counts"
        else None,
    )


def _as_lognorm(counts: CellFile) -> CellFile:
    return counts.transformed(lambda block: lognorm(block, LOGNORM_TOTAL), counts.genes, counts.uns, counts.name)


def _fold_changes(
    cells: CellFile, alignment: GeneAlignment, rows: np.ndarray, codes: np.ndarray, groups: Sequence, columns: Columns
) -> FoldChanges:
    """Of the groups (perturbation, context) that cells are in by `codes`."""
    sums = np.zeros((len(groups), len(alignment.target)))
    for start in range(0, len(rows), BLOCK_CELLS):
        chunk = slice(start, start + BLOCK_CELLS)
        block = alignment.apply(cells.rows(rows[chunk], dtype=None)).astype(np.float64)
        number = block.shape[0]
        membership = sp.csr_matrix((np.ones(number), (codes[chunk], np.arange(number))), shape=(len(groups), number))
        sums += (membership @ block).toarray()
    totals = np.maximum(sums.sum(axis=1, keepdims=True), 1.0)
    profiles = np.log1p(sums * 1e6 / totals)
    named = [(str(perturbation), str(context)) for perturbation, context in groups]
    pairs = pair_means(profiles, np.ones(len(groups), dtype=np.int64), named, columns.control)
    by_name = {
        name: pairs.effects[pairs.perturbation_codes == code].mean(axis=0)
        for code, name in enumerate(pairs.perturbations)
    }
    mean = np.mean(list(by_name.values()), axis=0) if by_name else np.zeros(sums.shape[1])
    return FoldChanges(by_name, mean)


def _labelled(cells: CellFile, columns: Columns, rows: np.ndarray, name: str) -> np.ndarray:
    """Those of `rows` that have the labels which baselines need."""
    used = [column for column in (columns.perturbation, columns.cell_type) if column in cells.obs.columns]
    kept = labelled_rows(cells.obs.iloc[rows], [str(column) for column in used], name, drop=columns.drop_unlabelled)
    return rows if kept is None else rows[kept]


def _labels(cells: CellFile, columns: Columns, rows: np.ndarray, name: str) -> np.ndarray:
    if columns.perturbation not in cells.obs.columns:
        known = listed(cells.obs.columns, 30)
        raise EvaluationError(f"{name}: no obs column {columns.perturbation!r}; the columns are: {known}")
    labels = labels_of(cells.obs.iloc[rows], columns.perturbation, name)
    present = set(labels)
    if columns.control not in present:
        near = listed(nearest_names(columns.control, sorted(present)) or ["none"])
        raise EvaluationError(
            f"{name}: no control cells (label {columns.control!r}; nearest {near}); baselines start from control cells"
        )
    if len(present) < 2:
        raise EvaluationError(f"{name}: there are control cells only; baselines need perturbed training cells")
    return labels


def _contexts(obs: pd.DataFrame, columns: Columns, rows: np.ndarray, name: str) -> np.ndarray:
    if columns.cell_type is None or columns.cell_type not in obs.columns:
        return np.full(len(rows), ALL, dtype=object)
    return labels_of(obs.iloc[rows], columns.cell_type, name)


def _sum_groups(
    cells: CellFile, alignment: GeneAlignment, rows: np.ndarray, codes: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums `[groups, G]` of the cells of each group and the digest of each cell."""
    keys = gene_keys(len(alignment.target))
    sums = np.zeros((num_groups, len(alignment.target)))
    digests = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), BLOCK_CELLS):
        chunk = slice(start, start + BLOCK_CELLS)
        block = alignment.apply(cells.rows(rows[chunk], dtype=None))
        bits = value_bits(block)
        sum_cells(block.indptr, block.indices, block.data, bits, keys, codes[chunk], sums, digests[chunk])
    return sums, digests


def _sketches(
    cells: CellFile,
    alignment: GeneAlignment,
    rows: np.ndarray,
    labels: np.ndarray,
    sketched: np.ndarray,
    perturbations: Sequence[str],
) -> dict[str, np.ndarray]:
    found = {}
    for name in perturbations:
        first = rows[labels == name][:SKETCH_CELLS]
        if len(first):
            found[name] = sketch(alignment.apply(cells.rows(first, dtype=None)), sketched)
    return found


def _sketch_rows(cells: CellFile, alignment: GeneAlignment, rows: np.ndarray, sketched: np.ndarray) -> np.ndarray:
    chunks = (rows[start : start + BLOCK_CELLS] for start in range(0, len(rows), BLOCK_CELLS))
    return np.concatenate([sketch(alignment.apply(cells.rows(chunk, dtype=None)), sketched) for chunk in chunks])


def _mean_of_means(sums: np.ndarray, counts: np.ndarray, perturbation: np.ndarray) -> np.ndarray:
    codes, names = pd.factorize(perturbation)
    pooled = np.zeros((len(names), sums.shape[1]))
    np.add.at(pooled, codes, sums)
    return (pooled / np.bincount(codes, weights=counts)[:, None]).mean(axis=0)
