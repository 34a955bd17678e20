"""The real cells of a score on counts, read once for all predictions, for the splits and for the lower end of the scale."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steval.evaluator.cells.sides import StoredCells
from steval.evaluator.measure.cache import cache_content, entry_path, keep, load_entry, store_entry
from steval.evaluator.measure.count_scan import CountTable, RankedControls, rank_controls, scan_counts, scan_halves
from steval.evaluator.measure.counts import Halves

TABLE_NEEDS = {"counts": "table"}


@dataclass(frozen=True)
class RealCounts:
    """What is measured of the real cells."""

    table: CountTable
    controls: RankedControls
    halves: tuple[CountTable, ...]
    """Halves of the cells, where asked for: of split s at 2s and 2s + 1."""
    from_cache: bool = False


def real_counts(
    side: StoredCells,
    names: Sequence[str],
    column: str,
    control: str,
    threads: int,
    halves: Halves | None = None,
    cache: Path | None = None,
) -> RealCounts:
    """The real cells through what `side` has kept already and the cache; with `halves`, those are measured too."""
    kept = side.tables.get(("counts", control))
    if kept is not None and (halves is None or kept.halves):
        return kept
    found = None
    if halves is None and cache is not None:
        found = load_entry(_path(cache, side, column, control), count_table)
    controls = rank_controls(side, control, threads, halves)
    if found is not None and np.array_equal(found.columns, controls.columns) and found.names == tuple(names):
        made = RealCounts(found, controls, (), from_cache=True)
    elif halves is None:
        made = RealCounts(scan_counts(side, names, controls, threads), controls, ())
    else:
        table, parts = scan_halves(side, names, controls, threads)
        made = RealCounts(table, controls, parts)
    if cache is not None and not made.from_cache:
        kept_items = {item.name: getattr(made.table, item.name) for item in fields(CountTable)}
        arrays = {name: value for name, value in kept_items.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in kept_items.items() if name not in arrays}
        keep(partial(store_entry, _path(cache, side, column, control), rest, arrays))
    side.tables["counts", control] = made
    return made


def _path(cache: Path, side: StoredCells, column: str, control: str) -> Path:
    return entry_path(cache, cache_content(side, column, control), TABLE_NEEDS)


def count_table(described: dict[str, Any], arrays: dict[str, np.ndarray]) -> CountTable:
    """The table that an entry of the cache holds."""
    return CountTable(
        names=tuple(described["names"]),
        control_cells=described["control_cells"],
        control_correction=described["control_correction"],
        **arrays,
    )
