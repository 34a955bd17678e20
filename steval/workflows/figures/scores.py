"""Figures of scores side by side: members with their intervals, and each perturbation's value of one against another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from steval.evaluator.metrics.catalog import with_arrow
from steval.evaluator.report.drawing import colour, new_figure, plain
from steval.evaluator.report.report import ScoreReport
from steval.workflows.figures.curves import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_METRICS, MOST_PANELS = 20, 6
LOWEST = -1.0
"""Members further below the mean baseline are drawn at the edge."""


def draw_side_by_side(names: Sequence[str], reports: Sequence[ScoreReport]) -> "Figure | None":
    """The unclipped members of every score with their intervals, between the mean baseline (0) and the best value (1)."""
    tables = [report.members.filter(pl.col("cell_type").is_null()) for report in reports]
    tables = [table if table.height else report.members for table, report in zip(tables, reports, strict=True)]
    known = [dict(zip(table["metric"], table.iter_rows(named=True), strict=True)) for table in tables]
    metrics = [name for name in known[0] if any(one.get(name, {}).get("unclipped") is not None for one in known)]
    metrics = metrics[:MOST_METRICS]
    if not metrics:
        return None
    longest = max(len(metric) for metric in metrics) + 2
    height = 0.16 * len(reports) + 0.2
    figure, (axes,) = new_figure(0.9 + height * len(metrics), left=0.25 + 0.062 * longest, top=0.32)
    axes.axvline(0, color=colour("mean"), lw=1.2)
    axes.axvline(1, color=colour("ink"), lw=0.8)
    for number, (name, rows) in enumerate(zip(names, known, strict=True)):
        offset = 0.6 * ((number + 0.5) / len(names) - 0.5)
        shade = colour(SERIES[number % len(SERIES)])
        for place, metric in enumerate(metrics):
            _draw_member(axes, rows.get(metric, {}), place + offset, shade)
        axes.plot([], [], ls="", marker="o", color=shade, label=plain(name))
    axes.set_yticks(range(len(metrics)), [plain(with_arrow(metric)) for metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.set_xlim(LOWEST - 0.05, 1.12)
    axes.set_xlabel("normalised: 0 = mean baseline, 1 = best possible value")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, frameon=False, fontsize=7.5,
                labelcolor=colour("ink"), handletextpad=0.2)  # fmt: skip
    return figure


def draw_against(names: Sequence[str], reports: Sequence[ScoreReport]) -> "Figure | None":
    """Each perturbation's value in the second score against the first, a panel per metric."""
    keys = ["cell_type", "perturbation"]
    first, second = reports[0].results, reports[1].results
    joined = first.join(second, on=keys, how="inner", suffix=" b", nulls_equal=True)
    metrics = [name for name in first.columns if f"{name} b" in joined.columns and _varies(joined[name])][:MOST_PANELS]
    if not metrics:
        return None
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, grid = new_figure(2.5 * lines + 0.2, lines, columns, left=0.6, gap=0.55)
    for axes, metric in zip(grid, metrics, strict=False):
        both = joined.select(metric, f"{metric} b").drop_nulls().drop_nans().to_numpy()
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color=colour("muted"), lw=0.8, ls=(0, (4, 3)))
        axes.scatter(both[:, 0], both[:, 1], s=14, color=colour(SERIES[0]), alpha=0.7, lw=0)
        axes.set_title(plain(with_arrow(metric)), fontsize=8.5)
        axes.set_xlabel(plain(names[0]))
        axes.set_ylabel(plain(names[1]))
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    return figure


def _varies(values: pl.Series) -> bool:
    finite = values.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    return finite.size > 1 and bool(np.ptp(finite) > 0)


def _draw_member(axes: "Axes", row: dict[str, float | None], height: float, shade: str) -> None:
    value, low, high = row.get("unclipped"), row.get("unclipped_low"), row.get("unclipped_high")
    if value is None or not np.isfinite(value):
        return
    if low is not None and high is not None:
        axes.plot(np.clip([low, high], LOWEST, None), [height, height], color=shade, lw=2, alpha=0.45)
    axes.plot(max(value, LOWEST), height, marker="o" if value >= LOWEST else "<", ms=5, color=shade)
