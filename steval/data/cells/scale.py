"""The scale contract: counts, lognorm or embedding is declared, or measured by a stated rule, or refused.

Rule of measurement (on at most 2,000 cells, evenly spaced): no negative and no non-finite value; all values whole → `counts`;
otherwise, where the largest value is under 15 (log1p of 3.3 million) and the cells' plain totals differ → `lognorm`, whose
`target_sum` is the cells' common total of expm1 if they have one. Anything else is ambiguous.

lognorm is the natural logarithm. Where a file records another base (scanpy's `uns["log1p"]["base"]`), or its cells have a common
total under base 2 or 10 and none under e, it is refused by everything but `steval prepare`, which turns it into natural ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.record import KEY
from steval.errors import DataError

Scale = Literal["counts", "lognorm", "embedding"]

LARGEST_LOGNORM = 15.0
SAMPLE_CELLS = 2000
SAME_TOTAL = 1e-3
UNLIKE_TOTALS = 1e-2
"""Cells whose plain totals differ by more are not copies of one profile; a recorded and a measured total that do are no match."""


@dataclass(frozen=True)
class ScaleRecord:
    """The scale of one matrix and where the knowledge comes from."""

    scale: Scale
    target_sum: float | None
    declared: bool
    rule: str

    def describe(self) -> str:
        """One line for people."""
        total = f", target_sum {self.target_sum:.9g}" if self.target_sum else ""
        return f"{self.scale}{total} ({'declared: ' if self.declared else 'measured: '}{self.rule})"


def resolve_scale(cells: CellFile, option: Scale | None = None) -> ScaleRecord:
    """Scale of `cells.X`: `option`, else the file's own declaration, else measured; a contradiction is a `DataError`."""
    sample = cells.rows(sample_indices(cells.num_cells))
    declared = option or cells.record.get("scale")
    if declared is not None and declared not in get_args(Scale):
        raise DataError(f"{cells.name} declares the scale {declared!r}; it is one of {', '.join(get_args(Scale))}")
    if declared is None:
        found = measure(sample, str(cells.name))
    elif declared == "embedding":
        return ScaleRecord("embedding", None, True, "as declared")
    else:
        _refuse_contradiction(sample, declared, cells.name)
        found = _as_declared(sample, declared, cells, "by option" if option else "in the file")
    if found.scale == "lognorm":
        base = log_base(cells, sample)
        if base is not None:
            raise DataError(
                f"{cells.name} holds logarithms to base {base:g}, and lognorm here is the natural logarithm; turn them into "
                f"it with: steval prepare {cells.origin} -o OUT.h5ad"
            )
    return found


def _as_declared(sample: sp.csr_matrix, declared: Scale, cells: CellFile, where: str) -> ScaleRecord:
    recorded = _number(cells.record.get("target_sum"))
    measured = _common_total(sample) if declared == "lognorm" else None
    # cells that are all alike (mean profiles) have a common total without having been scaled to it
    differ = _spread(np.asarray(sample.sum(axis=1)).ravel()) >= UNLIKE_TOTALS
    if recorded and measured and differ and abs(recorded - measured) > UNLIKE_TOTALS * recorded:
        raise DataError(
            f"{cells.name} declares target_sum {recorded:g}, but its cells have {measured:g} in common; make it anew from the "
            "counts with steval prepare"
        )
    return ScaleRecord(declared, recorded if recorded is not None else measured, True, where)


def log_base(cells: CellFile, sample: sp.csr_matrix | None = None) -> float | None:
    """The base of the logarithms of lognorm `cells` where it is not e: as the file records it, else as its cells tell.

    A record that the cells contradict is a `DataError`.
    """
    sample = cells.rows(sample_indices(cells.num_cells)) if sample is None else sample
    recorded = _recorded_base(cells)
    natural = _common_total(sample)
    if recorded is not None:
        if recorded <= 0 or recorded == 1:
            raise DataError(f"{cells.name} records {recorded:g} as the base of its logarithms; there is none such")
        if math.isclose(recorded, math.e, rel_tol=1e-6):
            return None
        if natural is not None and _common_total(_natural(sample, recorded)) is None:
            raise DataError(
                f"{cells.name} records logarithms to base {recorded:g}, but its cells have a common total ({natural:g}) under the "
                "natural one; correct or remove uns['log1p']['base']"
            )
        return recorded
    if natural is not None:
        return None
    return next((base for base in (2.0, 10.0) if _common_total(_natural(sample, base)) is not None), None)


def as_natural(cells: CellFile, base: float) -> CellFile:
    """`cells` of logarithms to `base` as natural ones."""
    uns = {key: value for key, value in cells.uns.items() if key != "log1p"}
    name = f"{cells.name} (logarithms to base {base:g} read as natural ones)"
    return cells.transformed(lambda block: _natural(block, base), cells.genes, uns, name)


def _natural(block: sp.csr_matrix, base: float) -> sp.csr_matrix:
    return sp.csr_matrix((block.data * np.float32(math.log(base)), block.indices, block.indptr), shape=block.shape)


def _recorded_base(cells: CellFile) -> float | None:
    made = cells.uns.get("log1p")
    return _number(made.get("base")) if isinstance(made, Mapping) else None


def _number(value: Any) -> float | None:
    """A number that a file records, as a scalar or an array of one; none where there is no number."""
    values = np.asarray(value).ravel() if value is not None else np.empty(0)
    try:
        return float(values[0]) if values.size == 1 else None
    except (TypeError, ValueError):
        return None


def measure(sample: sp.csr_matrix, name: str = "the data") -> ScaleRecord:
    """Scale of a sample of cells by the rule of this module; raises `DataError` where it is ambiguous."""
    values = sample.data
    _refuse_impossible(values, name)
    if not values.any():
        raise DataError(f"{name} holds no value above zero, so its scale cannot be measured; declare it with --scale")
    if is_whole(values):
        return ScaleRecord("counts", None, False, "all values are whole numbers")
    totals = np.asarray(sample.sum(axis=1)).ravel()
    largest = float(values.max())
    if largest >= LARGEST_LOGNORM or _spread(totals) < SAME_TOTAL:
        raise DataError(
            f"{name}: the scale is ambiguous: values are not whole, the largest is {largest:.4g} and the cells' totals "
            f"{'are all equal' if _spread(totals) < SAME_TOTAL else 'differ'}; this looks like counts that were normalised but not "
            "log-transformed. Give raw counts, or lognorm as `steval prepare` makes it; or settle it with --scale"
        )
    return ScaleRecord("lognorm", _common_total(sample), False, f"fractions, largest value {largest:.3g} is under 15")


def require_scale(cells: CellFile, expected: Scale, option: Scale | None = None) -> ScaleRecord:
    """The scale of `cells`, which must be `expected`; otherwise a `DataError` with what to do."""
    record = resolve_scale(cells, option)
    if record.scale != expected:
        remedy = (
            f"steval prepare {cells.origin} -o OUT.h5ad" if record.scale == "counts" else "the data it was made from"
        )
        raise DataError(f"{cells.name} holds {record.describe()}, but {expected} is needed here; use {remedy}")
    return record


def lognorm(counts: sp.csr_matrix, target_sum: float) -> sp.csr_matrix:
    """log1p of counts `[n, G]` scaled so that each cell's total is `target_sum`; float32; empty cells stay zero."""
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    data = counts.data.astype(np.float64) * np.repeat(factors, np.diff(counts.indptr))
    return sp.csr_matrix(
        (np.log1p(data).astype(np.float32), counts.indices, counts.indptr), shape=counts.shape, copy=False
    )


def as_lognorm(cells: CellFile, target_sum: float | None, option: Scale | None = None) -> CellFile:
    """`cells` as they are where they are lognorm; counts normalised to `target_sum` as they are read."""
    found = resolve_scale(cells, option)
    if found.scale == "lognorm":
        return cells
    if found.scale != "counts" or target_sum is None:
        raise DataError(f"{cells.name} holds {found.describe()}, and lognorm is needed; make it with steval prepare")
    kept = {key: value for key, value in cells.uns.items() if key != "log1p"}
    uns = {**kept, KEY: {**cells.record, "scale": "lognorm", "target_sum": target_sum}}
    name = f"{cells.name} (counts, read as lognorm {target_sum:g})"
    return cells.transformed(lambda counts: lognorm(counts, target_sum), cells.genes, uns, name)


def is_whole(values: np.ndarray) -> bool:
    """Whether every value is a whole number."""
    with np.errstate(invalid="ignore"):  # infinite ones are none
        return bool(np.issubdtype(values.dtype, np.integer) or np.equal(np.mod(values, 1), 0).all())


def sample_indices(num_cells: int, size: int = SAMPLE_CELLS) -> np.ndarray:
    """At most `size` row numbers, evenly spaced over the file."""
    if num_cells <= size:
        return np.arange(num_cells)
    return np.linspace(0, num_cells - 1, size).astype(np.int64)


def _refuse_contradiction(sample: sp.csr_matrix, declared: str, name: str) -> None:
    values = sample.data
    _refuse_impossible(values, name)
    whole = is_whole(values)
    if declared == "counts" and not whole:
        raise DataError(
            f"{name} is declared as counts, but holds fractions such as {values[np.mod(values, 1) > 0][0]:.4g}"
        )
    if declared == "lognorm" and whole and values.any():
        raise DataError(
            f"{name} is declared as lognorm, but all its values are whole numbers (largest {values.max():g}): these are "
            f"raw counts. Make lognorm with: steval prepare {name} -o OUT.h5ad"
        )
    if declared == "lognorm" and values.size and values.max() >= LARGEST_LOGNORM:
        raise DataError(
            f"{name} is declared as lognorm, but its largest value is {values.max():.4g}; log1p of a cell's share stays under "
            f"{LARGEST_LOGNORM:g}. Has the log been left out?"
        )


def _refuse_impossible(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinite values; remove those cells or genes first")
    if (values < 0).any():
        raise DataError(
            f"{name} holds negative values (down to {values.min():.4g}): neither counts nor lognorm. Scaled or residual "
            "data cannot be used; give raw counts or lognorm"
        )


def _common_total(sample: sp.csr_matrix) -> float | None:
    linear = sample.astype(np.float64)
    with np.errstate(over="ignore"):
        linear.data = np.expm1(linear.data)
    totals = np.asarray(linear.sum(axis=1)).ravel()
    totals = totals[totals > 0]
    if not totals.size or not np.isfinite(totals).all() or _spread(totals) >= SAME_TOTAL:
        return None
    median = float(np.median(totals))
    rounded = float(f"{median:.3g}")
    return rounded if abs(rounded - median) <= SAME_TOTAL * median else median


def _spread(totals: np.ndarray) -> float:
    """Largest relative deviation of cell totals from their median; a single cell tells nothing (infinite)."""
    totals = totals[totals > 0]
    if totals.size < 2:
        return float("inf")
    median = float(np.median(totals))
    return float(np.abs(totals - median).max() / median)
