"""DE of both sides on one grid of perturbations × genes: what the DE metrics read, computed here or in tables from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steval.errors import EvaluationError
from steval.evaluator.measure.de import DifferentialExpression
from steval.wording import listed

REQUIRED = ("target", "feature", "log2_fold_change", "p_value", "fdr")


@dataclass(frozen=True)
class DETable:
    """One side's DE, `[P, G]` arrays in float32, the precision in which cell-eval compares; absent rows are not `present`."""

    fdr: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray
    absolute: np.ndarray | None = None
    """`abs_log2_fold_change` where a table brought its own."""
    present: np.ndarray | None = None
    """Which rows a table holds; None: all."""
    order: np.ndarray | None = None
    """Row numbers of a table from elsewhere, which settle ties; None: genes in order."""

    def column(self, name: str) -> np.ndarray:
        """`log2_fold_change`, `abs_log2_fold_change`, `p_value` or `fdr`, `[P, G]`."""
        if name == "abs_log2_fold_change":
            return np.abs(self.log2_fold_change) if self.absolute is None else self.absolute
        return {"log2_fold_change": self.log2_fold_change, "p_value": self.p_value, "fdr": self.fdr}[name]

    def significant(self, threshold: float) -> np.ndarray:
        """Mask `[P, G]` of FDR under `threshold`."""
        return self.fdr < np.float32(threshold)


@dataclass(frozen=True)
class DEComparison:
    """Real and predicted DE on the same grid."""

    perturbations: tuple[str, ...]
    """Sorted."""
    num_genes: int
    real: DETable
    pred: DETable


Source = DifferentialExpression | pl.DataFrame


def compare(real: Source, pred: Source) -> DEComparison:
    """Put both sides on one grid; different perturbations, missing columns and repeated rows are an `EvaluationError`."""
    names = [_perturbations(source, which) for source, which in ((real, "real"), (pred, "predicted"))]
    if names[0] != names[1]:
        different = sorted(set(names[0]) ^ set(names[1]))
        raise EvaluationError(
            f"the DE tables hold different perturbations: {listed(different)} "
            f"({len(names[0])} in the real table, {len(names[1])} in the predicted one)"
        )
    genes = list(dict.fromkeys([*_genes(real), *_genes(pred)]))
    tables = [
        _from_arrays(source, genes)
        if isinstance(source, DifferentialExpression)
        else _from_frame(source, names[0], genes, which)
        for source, which in ((real, "real"), (pred, "predicted"))
    ]
    return DEComparison(tuple(names[0]), len(genes), tables[0], tables[1])


def _perturbations(source: Source, which: str) -> list[str]:
    if isinstance(source, DifferentialExpression):
        return sorted(source.names)
    missing = [column for column in REQUIRED if column not in source.columns]
    if missing:
        raise EvaluationError(
            f"the {which} DE table lacks the columns {', '.join(missing)}; it has: {', '.join(source.columns)}. "
            f"Needed are pdex's: {', '.join(REQUIRED)}"
        )
    return sorted(source["target"].cast(pl.String).unique().drop_nulls().to_list())


def _genes(source: Source) -> Sequence[str]:
    if isinstance(source, DifferentialExpression):
        return source.genes
    return source["feature"].cast(pl.String).unique(maintain_order=True).to_list()


def _from_arrays(de: DifferentialExpression, genes: list[str]) -> DETable:
    rows = np.argsort(np.asarray(de.names, dtype=object), kind="stable")
    columns = None if len(genes) == len(de.genes) else np.arange(len(de.genes))
    shape = (len(rows), len(genes))
    fdr, change, p_value = (np.full(shape, np.nan, dtype=np.float32) for _ in range(3))
    width = len(de.genes)
    for target, row in enumerate(rows):
        fdr[target, :width] = de.fdr(row)
        change[target, :width] = de.log2_fold_change(row)
        p_value[target, :width] = de.p_value[row]
    if columns is None:
        return DETable(fdr, change, p_value)
    present = np.zeros(shape, dtype=bool)
    present[:, :width] = True
    return DETable(fdr, change, p_value, present=present)


def _from_frame(frame: pl.DataFrame, names: list[str], genes: list[str], which: str) -> DETable:
    shape = (len(names), len(genes))
    target = _codes(frame["target"], names)
    feature = _codes(frame["feature"], genes)
    place = target * shape[1] + feature
    if len(np.unique(place)) != len(place):
        raise EvaluationError(
            f"the {which} DE table holds a perturbation and gene more than once; keep one row of each"
        )

    def grid(column: str) -> np.ndarray:
        values = np.full(shape[0] * shape[1], np.nan, dtype=np.float32)
        absent = 1.0 if column == "fdr" else float("nan")
        values[place] = frame[column].cast(pl.Float32).fill_null(absent).to_numpy()
        return values.reshape(shape)

    present = np.zeros(shape[0] * shape[1], dtype=bool)
    present[place] = True
    order = np.zeros(shape[0] * shape[1], dtype=np.int64)
    order[place] = np.arange(len(place))
    own = grid("abs_log2_fold_change") if "abs_log2_fold_change" in frame.columns else None
    return DETable(
        grid("fdr"), grid("log2_fold_change"), grid("p_value"), own, present.reshape(shape), order.reshape(shape)
    )


def _codes(values: pl.Series, names: list[str]) -> np.ndarray:
    position = pl.DataFrame(
        {"name": names, "code": np.arange(len(names), dtype=np.int64)}, schema_overrides={"name": pl.String}
    )
    joined = values.cast(pl.String).to_frame("name").join(position, on="name", how="left", maintain_order="left")
    return joined["code"].to_numpy()
