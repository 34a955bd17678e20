"""Predicted and real cells that can be scored against each other: validated once, all problems reported together.

    with Pair.build("pred.h5ad", "real.h5ad", Columns()) as pair:
        evaluation = evaluate(pair, "vcc")

`Pair` is frozen. Genes are matched by name, so shuffled genes work.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pandas as pd

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import GeneAlignment, align
from steval.data.cells.scale import Scale, ScaleRecord, resolve_scale
from steval.data.columns import Columns
from steval.data.labels import is_labelled, unlabelled
from steval.errors import DataError, EvaluationError
from steval.evaluator.cells.sides import Cells, CellSource, StoredCells, cell_types, few_cells, group_rows, open_cells
from steval.wording import counted, listed


@dataclass(frozen=True)
class Pair:
    """Predicted and real cells with the same genes and perturbations, both on one scale."""

    pred: Cells
    real: StoredCells
    columns: Columns
    genes: tuple[str, ...]
    """In the real side's order."""
    perturbations: tuple[str, ...]
    """Sorted, the control left out."""
    scale_pred: ScaleRecord
    scale_real: ScaleRecord
    cell_type: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        pred: CellSource,
        real: CellSource,
        columns: Columns | None = None,
        *,
        scale: Scale | None = None,
        takes: Scale = "lognorm",
        otherwise: Mapping[Scale, str] | None = None,
        names: tuple[str, str] = ("predicted cells", "real cells"),
    ) -> Self:
        """Open and validate both sides.

        `pred`, `real`: path to an h5ad, `AnnData` or `CellFile`; `columns` hold for both; `scale` settles an undeclared scale;
        `takes` is the scale that both must have, `otherwise` says of other scales what to do with them. On counts, predictions
        need no control cells and those that are there are left out: the measured ones are every prediction's.
        Raises one `EvaluationError` that lists every problem (columns, controls, genes, perturbations, scale).
        """
        columns = columns or Columns()
        with ExitStack() as on_error:
            opened = []
            for source, name in zip((pred, real), names, strict=True):
                opened.append(open_cells(source, name, columns.perturbation))
                on_error.callback(opened[-1][0].close)
            built = cls._validated(opened[0], opened[1], columns, scale, (takes, otherwise or {}), names)
            on_error.pop_all()
        return built

    @classmethod
    def _validated(
        cls,
        pred: tuple[CellFile, bool],
        real: tuple[CellFile, bool],
        columns: Columns,
        scale: Scale | None,
        demand: tuple[Scale, Mapping[Scale, str]],
        names: tuple[str, str],
    ) -> Self:
        both = list(zip((pred[0], real[0]), names, strict=True))
        problems = [problem for cells, name in both for problem in _column_problems(cells, columns, name)]
        groups = [{} if problems else group_rows(_labels(cells, columns)) for cells, _ in both]
        own_controls = demand[0] != "counts"
        problems += _group_problems(groups[0], groups[1], columns, names, own_controls) if not problems else []
        alignment = _collect(problems, lambda: _same_genes(pred[0], real[0], names))
        records = [_collect(problems, lambda cells=cells: _scale(cells, scale, *demand)) for cells, _ in both]
        if problems:
            raise EvaluationError(f"{names[0]} and {names[1]} cannot be scored together", problems)
        identity = align(real[0].genes, real[0].genes)
        notes = _notes(alignment, records, names)
        if not own_controls and groups[0].pop(columns.control, None) is not None:
            notes.append(f"control cells of the {names[0]} are left out: the measured ones are every prediction's")
        return cls(
            pred=StoredCells("predicted", pred[0], groups[0], alignment, pred[1]),
            real=StoredCells("real", real[0], groups[1], identity, real[1]),
            columns=columns,
            genes=tuple(real[0].genes),
            perturbations=tuple(name for name in groups[1] if name != columns.control),
            scale_pred=records[0],
            scale_real=records[1],
            notes=tuple(notes),
        )

    @property
    def control(self) -> str:
        """Label of the control cells."""
        return self.columns.control

    def side(self, which: Literal["pred", "real"]) -> Cells:
        """One side by name."""
        return self.pred if which == "pred" else self.real

    @property
    def stored_pred(self) -> StoredCells:
        """The predicted side as it was opened; a pair whose prediction is made while it is read has none."""
        assert isinstance(self.pred, StoredCells)
        return self.pred

    def by_cell_type(self) -> "dict[str, Pair]":
        """A pair for each cell type, sorted by name; each must have controls and the same perturbations on both sides."""
        column = self.columns.cell_type
        sides = (self.stored_pred, self.real)
        missing = [side.name for side in sides if column is None or column not in side.file.obs]
        if column is None or missing:
            raise EvaluationError(
                f"there is no cell type column {column!r} in the {' and '.join(missing)} cells; name it with --cell-type-col"
            )
        labels = ("predicted cells", "real cells")
        types = [cell_types(side, column) for side in sides]
        scored = [kinds[np.concatenate(list(side.groups.values()))] for kinds, side in zip(types, sides, strict=True)]
        problems = [
            str(unlabelled(int((kinds == "").sum()), len(kinds), column, name))
            for kinds, name in zip(scored, labels, strict=True)
            if (kinds == "").any() and not self.columns.drop_unlabelled
        ]
        names = [sorted(set(kinds) - {""}) for kinds in scored]
        problems += _difference_problems(names[0], names[1], "cell type", labels)
        pairs = {}
        for name in names[1] if not problems else []:
            pred, real = (side.restricted(kinds == name, name) for side, kinds in zip(sides, types, strict=True))
            of_type = (f"predicted cells of type {name}", f"real cells of type {name}")
            own_controls = self.scale_real.scale != "counts"
            problems += _group_problems(pred.groups, real.groups, self.columns, of_type, own_controls)
            perturbations = tuple(group for group in real.groups if group != self.control)
            pairs[name] = replace(self, pred=pred, real=real, perturbations=perturbations, cell_type=name)
        if problems:
            raise EvaluationError("the cell types cannot be scored one by one", problems)
        return pairs

    def close(self) -> None:
        """Close both files."""
        self.stored_pred.file.close()
        self.real.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _labels(cells: CellFile, columns: Columns) -> pd.Series:
    return cells.obs[columns.perturbation]


def _column_problems(cells: CellFile, columns: Columns, name: str) -> list[str]:
    if columns.perturbation not in cells.obs.columns:
        known = listed(cells.obs.columns, 30)
        return [f"{name}: no obs column {columns.perturbation!r}; the columns are: {known} (--pert-col)"]
    labelled = is_labelled(cells.obs[columns.perturbation])
    if not labelled.all() and not columns.drop_unlabelled:
        return [str(unlabelled(int((~labelled).sum()), len(labelled), columns.perturbation, name))]
    return []


def _group_problems(
    pred: dict[str, np.ndarray],
    real: dict[str, np.ndarray],
    columns: Columns,
    names: tuple[str, str],
    own_controls: bool,
) -> list[str]:
    needing = [(pred, names[0]), (real, names[1])] if own_controls else [(real, names[1])]
    problems = [
        f"{name}: no control cells (label {columns.control!r} in column {columns.perturbation!r}); labels are "
        f"{listed(list(groups))} (--control)"
        for groups, name in needing
        if columns.control not in groups
    ]
    perturbed = [[label for label in groups if label != columns.control] for groups in (pred, real)]
    problems += _difference_problems(perturbed[0], perturbed[1], "perturbation", names)
    if not problems and not perturbed[1]:
        problems.append(f"{names[1]}: there are control cells only, no perturbation to score")
    return problems


def _difference_problems(pred: Sequence[str], real: Sequence[str], thing: str, names: tuple[str, str]) -> list[str]:
    lacking = [label for label in real if label not in set(pred)]
    extra = [label for label in pred if label not in set(real)]
    problems = []
    if lacking:
        problems.append(f"{names[0]}: {counted(len(lacking), thing)} of the {names[1]} missing: {listed(lacking)}")
    if extra:
        problems.append(f"{names[0]}: {counted(len(extra), thing)} not among the {names[1]}: {listed(extra)}")
    if problems and thing == "perturbation" and len(extra) < len(pred):
        problems[-1] += f"; --only-common scores the {len(pred) - len(extra)} that both have"
    return problems


def _same_genes(pred: CellFile, real: CellFile, names: tuple[str, str]) -> GeneAlignment:
    align(real.genes, real.genes, what=names[1])
    alignment = align(pred.genes, real.genes, what=names[0])
    if alignment.num_extra:
        known = set(real.genes)
        extra = [gene for gene in pred.genes if gene not in known]
        raise DataError(
            f"{names[0]}: {counted(len(extra), 'gene is', 'genes are')} not among those of the {names[1]}: {listed(extra)}"
        )
    return alignment


def _scale(cells: CellFile, option: Scale | None, takes: Scale, otherwise: Mapping[Scale, str]) -> ScaleRecord:
    """Scale by declaration or by a few evenly spaced cells; every value is checked again when it is read for good."""
    record = resolve_scale(few_cells(cells), option)
    if record.scale != takes:
        how = " (steval prepare makes it of counts)" if takes == "lognorm" and record.scale == "counts" else ""
        other = f"; {otherwise[record.scale]}" if record.scale in otherwise else ""
        raise DataError(f"{cells.name} holds {record.describe()}; {takes} is scored{how}{other}")
    return record


def _collect(problems: list[str], check):  # type: ignore[no-untyped-def]
    """The result of `check`, or None with its `DataError` added to `problems`."""
    try:
        return check()
    except DataError as error:
        problems.append(str(error))
        return None


def _notes(alignment: GeneAlignment, scales: list[ScaleRecord], names: tuple[str, str]) -> list[str]:
    notes = [f"{name}: {scale.describe()}" for name, scale in zip(names, scales, strict=True)]
    if alignment.reordered:
        notes.append(f"genes of the {names[0]} are in another order and were matched by name")
    return notes
