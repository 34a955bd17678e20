"""The figures of the score report."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from steval.evaluator.metrics.catalog import BY_COLUMN
from steval.evaluator.metrics.changes import SIGNIFICANT_FDR, spread
from steval.evaluator.reference.baselines import BASELINES, REFERENCE
from steval.evaluator.reference.members import unclipped_members
from steval.evaluator.report.drawing import colour, new_figure, plain
from steval.evaluator.report.report import PREDICTION, ScoreReport, of_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MEMBERS = 30
MOST_PANELS = 9
MOST_POINTS = 250
SHOWN_CHANGES = 6
FEW_GENES = 30
"""Up to so many significant genes an axis is linear."""
LEFT_LIMIT = -1.0
"""Members further below the baseline are drawn at the edge, with their value."""
_JITTER_SEED = 7


def draw_members(report: ScoreReport, cell_type: str | None) -> "Figure | None":
    """Every member between its baseline (0) and its best value (1), with interval, other baselines and ceiling."""
    rows = of_type(report.members, cell_type)
    rows = rows.filter(pl.col("unclipped").is_not_null()).head(MOST_MEMBERS)
    if rows.is_empty():
        return None
    longest = max(len(metric) for metric in rows["metric"])
    figure, (axes,) = new_figure(0.9 + 0.34 * rows.height, left=0.25 + 0.062 * longest, top=0.32)
    others = of_type(report.baselines, cell_type)
    others = others if report.on_counts else others.filter(pl.col("baseline") != REFERENCE)
    axes.axvline(0, color=colour(REFERENCE), lw=1.4, zorder=1)
    axes.axvline(1, color=colour("ink"), lw=0.8, zorder=1)
    for height, row in enumerate(rows.iter_rows(named=True)):
        _draw_member(axes, height, row)
        for other in others.filter(pl.col("metric") == row["metric"]).iter_rows(named=True):
            if other["unclipped"] is not None and np.isfinite(other["unclipped"]):
                spot = max(other["unclipped"], LEFT_LIMIT)
                axes.plot(spot, height, marker="|", ms=11, mew=2.2, color=colour(other["baseline"]), zorder=3)
    axes.set_yticks(range(rows.height), [plain(metric) for metric in rows["metric"]])
    axes.set_ylim(rows.height - 0.5, -0.5)
    axes.set_xlim(LEFT_LIMIT - 0.05, 1.12)
    axes.set_xlabel("normalised: 0 = {}, 1 = {}".format(*report.ends))
    named = others["baseline"].unique(maintain_order=True).to_list()
    predictors = [PREDICTION, *named] if report.on_counts else [PREDICTION, REFERENCE, *named]
    _legend(axes, predictors, _has_ceiling(rows) and not report.on_counts)
    return figure


def draw_distributions(report: ScoreReport, cell_type: str | None) -> "Figure | None":
    """Values over perturbations of each metric: the prediction above the baselines."""
    results = of_type(report.results, cell_type)
    present = [m for m in report.members["metric"].unique(maintain_order=True) if m in results.columns]
    telling = [m for m in present if not _is_over_all(m) and _finite_values(results[m]).size]
    metrics = sorted(telling, key=_panel_order)[:MOST_PANELS]
    if not metrics:
        return None
    baselines = of_type(report.baseline_results, cell_type)
    groups = {PREDICTION: results}
    for (kind,), frame in baselines.group_by("baseline", maintain_order=True):
        groups[str(kind)] = frame
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    longest = max(len(name) for name in groups)
    figure, grid = new_figure(
        (0.75 + 0.3 * len(groups)) * lines, lines, columns, left=0.2 + 0.062 * longest, bottom=0.25, gap=0.25
    )
    for axes, metric in zip(grid, metrics, strict=False):
        _draw_strip(axes, metric, {name: _finite_values(frame[metric]) for name, frame in groups.items()})
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    for position, axes in enumerate(grid):
        axes.set_yticks(
            range(len(groups)), [plain(name) for name in groups] if position % columns == 0 else [""] * len(groups)
        )
        axes.set_ylim(len(groups) - 0.5, -0.5)
    return figure


def draw_overlap(report: ScoreReport, cell_type: str | None) -> "Figure | None":
    """DE overlap against the number of significant genes, and predicted against real numbers."""
    counts, results = of_type(report.de_counts, cell_type), of_type(report.results, cell_type)
    if counts.is_empty() or "overlap_at_N" not in results.columns:
        return None
    joined = counts.join(results.select("perturbation", "overlap_at_N"), on="perturbation")
    figure, grid = new_figure(2.8, 1, 2, gap=0.65, top=0.28)
    baselines = of_type(report.baseline_results, cell_type).filter(pl.col("baseline") == REFERENCE)
    if not baselines.is_empty():
        both = counts.join(baselines.select("perturbation", "overlap_at_N"), on="perturbation")
        grid[0].scatter(
            both["num_real"],
            both["overlap_at_N"],
            s=14,
            color=colour(REFERENCE),
            lw=0,
            label=BASELINES[REFERENCE].label,
        )
    grid[0].scatter(joined["num_real"], joined["overlap_at_N"], s=20, color=colour(PREDICTION), lw=0, label=PREDICTION)
    grid[0].set_ylim(-0.04, 1.04)
    grid[0].set_ylabel("overlap_at_N")
    grid[1].scatter(joined["num_real"], joined["num_pred"], s=20, color=colour(PREDICTION), lw=0)
    largest = float(max([1, *joined["num_real"], *joined["num_pred"]]))
    grid[1].plot([0, largest], [0, largest], color=colour("muted"), lw=0.8, ls=(0, (4, 3)))
    grid[1].set_ylabel("significant genes, predicted")
    if largest > FEW_GENES:
        grid[1].set_yscale("symlog", linthresh=10)
    lowest = -0.5 if largest > FEW_GENES else -0.03 * largest
    grid[1].set_ylim(lowest, largest * 1.15)
    for axes in grid:
        if largest > FEW_GENES:
            axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(lowest, largest * 1.15)
        axes.set_xlabel("significant genes, real (FDR < 0.05)")
    if not baselines.is_empty():
        grid[0].legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, frameon=False, fontsize=7.5,
                       labelcolor=colour("ink"), handletextpad=0.2)  # fmt: skip
    return figure


def draw_changes(report: ScoreReport, cell_type: str | None, chosen: Sequence[str] = ()) -> "Figure | None":
    """Predicted against real change of mean expression, a panel per perturbation of `chosen`; else of a few, spread over
    the size of the real effect."""
    changes = of_type(report.changes, cell_type)
    kept = changes["perturbation"].unique(maintain_order=True).to_list()
    if not kept:
        return None
    names = [name for name in kept if name in chosen] or [kept[place] for place in spread(len(kept), SHOWN_CHANGES)]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, grid = new_figure(2.4 * lines, lines, columns)
    for axes, name in zip(grid, names, strict=False):
        _draw_change(axes, name, changes.filter(pl.col("perturbation") == name))
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for position, axes in enumerate(grid[: len(names)]):
        if position % columns == 0:
            axes.set_ylabel("predicted change")
        if position >= len(names) - columns:
            axes.set_xlabel("real change")
    return figure


def _draw_member(axes: "Axes", height: int, row: Mapping[str, Any]) -> None:
    value = float(row["unclipped"])
    low, high = row["unclipped_low"], row["unclipped_high"]
    if low is not None and high is not None:
        ends = np.clip([float(low), float(high)], LEFT_LIMIT, None)
        axes.plot(ends, [height, height], color=colour(PREDICTION), lw=2, solid_capstyle="butt", zorder=4, alpha=0.45)
    if np.isnan(value):
        axes.annotate("undefined, counts as 0", (LEFT_LIMIT, height), va="center", fontsize=7, color=colour("muted"))
        return
    axes.plot(
        max(value, LEFT_LIMIT),
        height,
        marker="o" if value >= LEFT_LIMIT else "<",
        ms=6.5,
        color=colour(PREDICTION),
        zorder=5,
    )
    if value < LEFT_LIMIT:
        axes.annotate(f"{value:.3g}", (LEFT_LIMIT, height), (7, 0), textcoords="offset points", va="center", fontsize=7,
                      color=colour("ink"))  # fmt: skip
    for field, marker in (("ceiling", "D"), ("replicate", "d")):
        if row[field] is not None and row["baseline"] is not None and BY_COLUMN[row["metric"]].scale != "counts":
            spot = unclipped_members(np.array([row[field]]), np.array([row["baseline"]]), [row["best"]])[0]
            if np.isfinite(spot) and spot >= LEFT_LIMIT:
                axes.plot(spot, height, marker=marker, ms=5.5, mfc="none", mew=1.2, color=colour("ceiling"), zorder=3)


def _legend(axes: "Axes", predictors: Sequence[str], ceiling: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name in predictors:
        marker, size = ("o", 6) if name == PREDICTION else ("|", 9)
        handles.append(Line2D([], [], ls="", marker=marker, ms=size, mew=2, color=colour(name), label=plain(name)))
    for marker, label in (("D", "ceiling"), ("d", "replicate")) if ceiling else ():
        handles.append(Line2D([], [], ls="", marker=marker, mfc="none", ms=5.5, color=colour("ceiling"), label=label))
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=len(handles), frameon=False,
                fontsize=7.5, labelcolor=colour("ink"), handletextpad=0.2, columnspacing=1.2)  # fmt: skip


def _has_ceiling(rows: pl.DataFrame) -> bool:
    return bool(rows["ceiling"].is_not_null().any() or rows["replicate"].is_not_null().any())


def _draw_strip(axes: "Axes", metric: str, groups: Mapping[str, np.ndarray]) -> None:
    generator = np.random.default_rng(_JITTER_SEED)
    for height, (name, values) in enumerate(groups.items()):
        if not values.size:
            continue
        shown = values if values.size <= MOST_POINTS else generator.choice(values, MOST_POINTS, replace=False)
        jitter = generator.uniform(-0.22, 0.22, shown.size)
        axes.scatter(shown, height + jitter, s=9, color=colour(name), alpha=0.55, lw=0)
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        axes.plot(quartiles[[0, 2]], [height, height], color=colour("ink"), lw=1.1)
        axes.plot(quartiles[1], height, marker="|", ms=11, mew=1.6, color=colour("ink"))
    axes.set_title(plain(metric), fontsize=8.5)


def _draw_change(axes: "Axes", name: str, rows: pl.DataFrame) -> None:
    real, pred = rows["real_change"].to_numpy(), rows["pred_change"].to_numpy()
    significant = (rows["real_fdr"].fill_null(1.0) < SIGNIFICANT_FDR).to_numpy()
    limit = float(max(np.abs(real).max(), np.abs(pred).max(), 1e-3)) * 1.12
    axes.axline((0, 0), slope=1, color=colour("muted"), lw=0.7, ls=(0, (4, 3)))
    axes.scatter(real[~significant], pred[~significant], s=5, color=colour(REFERENCE), alpha=0.6, lw=0)
    axes.scatter(real[significant], pred[significant], s=8, color=colour(PREDICTION), alpha=0.8, lw=0)
    _label_genes(axes, name, rows["gene"].to_list(), real, pred, limit)
    constant = real.std() == 0 or pred.std() == 0
    correlation = "" if constant or len(real) < 3 else f"   r = {np.corrcoef(real, pred)[0, 1]:.2f}"
    axes.set_title(f"{plain(name)}{correlation}", fontsize=8.5)
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.grid(axis="both", color=colour("grid"), lw=0.6)


def _label_genes(
    axes: "Axes", name: str, genes: Sequence[str], real: np.ndarray, pred: np.ndarray, limit: float
) -> None:
    """Names of the target and of the most changed genes, as far as they do not lie on each other."""
    placed: list[tuple[float, float]] = []
    wanted = [genes.index(name)] if name in genes else []
    for index in [*wanted, *np.argsort(-np.abs(real))[:6].tolist()]:
        x, y = float(real[index]), float(pred[index])
        if len(placed) == 3 or any(abs(x - a) < 0.9 * limit and abs(y - b) < 0.14 * limit for a, b in placed):
            continue
        placed.append((x, y))
        right = x <= 0
        axes.annotate(plain(genes[index]), (x, y), (4 if right else -4, 2), textcoords="offset points", fontsize=6,
                      ha="left" if right else "right", color=colour("ink"))  # fmt: skip


def _is_over_all(column: str) -> bool:
    return column in BY_COLUMN and BY_COLUMN[column].over_all


def _panel_order(column: str) -> float:
    """Metrics that get a panel before others where there are many, then the rest."""
    place = BY_COLUMN[column].shown if column in BY_COLUMN else None
    return inf if place is None else place


def _finite_values(series: pl.Series) -> np.ndarray:
    values = series.cast(pl.Float64).drop_nulls().to_numpy()
    return values[np.isfinite(values)]
