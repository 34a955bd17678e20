"""The figures of the score report as SVG text, drawn with matplotlib's object interface (no global state).

Colours are placeholders that `Drawing` turns into CSS variables, so that one drawing suits a light and a dark page.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from steval.evaluator.reference.bootstrap import GLOBAL_METRICS
from steval.evaluator.reference.members import unclipped_members
from steval.evaluator.report.changes import SIGNIFICANT_FDR
from steval.evaluator.report.report import PREDICTION, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": ("#010101", "#1b1f24"),
    "muted": ("#020202", "#6b7480"),
    "grid": ("#030303", "#d9dee4"),
    "prediction": ("#040404", "#1f5fbf"),
    "mean": ("#050505", "#8a929c"),
    "control": ("#060606", "#b9a36b"),
    "additive": ("#070707", "#d9822b"),
    "ridge": ("#080808", "#7a56b0"),
    "ceiling": ("#090909", "#2a8a57"),
}
"""Name → placeholder in the drawing, colour on a light page."""
WIDTH = 7.2
MOST_MEMBERS = 30
MOST_PANELS = 9
MOST_POINTS = 250
MOST_TICKS = 5
"""Steps of an axis; ticks take more time to draw than anything else."""
SHOWN_FIRST = (
    "mae", "discrimination_score_l1", "overlap_at_N", "pearson_delta", "precision_at_N", "de_direction_match",
    "de_spearman_lfc_sig", "pr_auc", "mse",
)  # fmt: skip
"""Metrics that get a panel before others where there are many."""
FEW_GENES = 30
"""Up to so many significant genes an axis is linear."""
LEFT_LIMIT = -1.0
"""Members further below the baseline are drawn at the edge, with their value."""
_JITTER_SEED = 7
_LONG_NUMBER = re.compile(r"(?<![\d.])([1-9]\d*\.\d\d)\d+")
"""Coordinates to a hundredth of a point are enough; scale factors below 1 keep their digits."""


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG text with placeholder colours."""

    svg: str

    def themed(self) -> str:
        """With CSS variables, for a page that defines them."""
        return self._coloured(lambda name, light: f"var(--{name}, {light})")

    def plain(self) -> str:
        """With the colours of a light page, for use elsewhere."""
        return self._coloured(lambda _, light: light)

    def _coloured(self, choose: Callable[[str, str], str]) -> str:
        text = self.svg
        for name, (placeholder, light) in COLOURS.items():
            text = text.replace(placeholder, choose(name, light))
        return text


def draw(figure: "Figure", number: int, title: str) -> Drawing:
    """SVG of a figure without XML head; identifiers start with the figure's number, so that several fit on one page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = StringIO()
    FigureCanvasSVG(figure)
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    identifiers = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    renamed = {name: f"f{number}-{index}" for index, name in enumerate(identifiers)}
    text = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{renamed[m[1]]}"', text)
    text = re.sub(r'(url\(#|href="#)([^")]+)', lambda m: m[1] + renamed.get(m[2], m[2]), text)
    text = _LONG_NUMBER.sub(r"\1", text)
    text = re.sub(r"<svg ", f'<svg role="img" aria-label="{escape(title)}" ', text, count=1)
    return Drawing(text.strip())


def colour(name: str) -> str:
    """Placeholder colour of a predictor or part."""
    return COLOURS[name][0]


def draw_members(report: Report, cell_type: str | None) -> "Figure | None":
    """Every member between its baseline (0) and its best value (1), with interval, other baselines and ceiling."""
    rows = report.members.filter(pl.col("cell_type").eq_missing(pl.lit(cell_type, dtype=pl.String)))
    rows = rows.filter(pl.col("unclipped").is_not_null()).head(MOST_MEMBERS)
    if rows.is_empty():
        return None
    longest = max(len(metric) for metric in rows["metric"])
    figure, (axes,) = _figure(0.9 + 0.34 * rows.height, left=0.25 + 0.062 * longest, top=0.32)
    others = report.baselines.filter(pl.col("baseline") != "mean")
    others = others.filter(pl.col("cell_type").eq_missing(pl.lit(cell_type, dtype=pl.String)))
    axes.axvline(0, color=colour("mean"), lw=1.4, zorder=1)
    axes.axvline(1, color=colour("ink"), lw=0.8, zorder=1)
    for height, row in enumerate(rows.iter_rows(named=True)):
        _draw_member(axes, height, row)
        for other in others.filter(pl.col("metric") == row["metric"]).iter_rows(named=True):
            if other["unclipped"] is not None and np.isfinite(other["unclipped"]):
                spot = max(other["unclipped"], LEFT_LIMIT)
                axes.plot(spot, height, marker="|", ms=11, mew=2.2, color=colour(other["baseline"]), zorder=3)
    axes.set_yticks(range(rows.height), rows["metric"].to_list())
    axes.set_ylim(rows.height - 0.5, -0.5)
    axes.set_xlim(LEFT_LIMIT - 0.05, 1.12)
    axes.set_xlabel("normalised: 0 = mean baseline, 1 = best possible value")
    _legend(axes, [PREDICTION, "mean", *others["baseline"].unique(maintain_order=True).to_list()], _has_ceiling(rows))
    return figure


def draw_distributions(report: Report, cell_type: str | None) -> "Figure | None":
    """Values over perturbations of each metric: the prediction above the baselines."""
    results = _of_type(report.results, cell_type)
    present = [m for m in report.members["metric"].unique(maintain_order=True) if m in results.columns]
    telling = [m for m in present if m not in GLOBAL_METRICS and _finite(results[m]).size]
    metrics = sorted(telling, key=lambda m: SHOWN_FIRST.index(m) if m in SHOWN_FIRST else len(SHOWN_FIRST))[
        :MOST_PANELS
    ]
    if not metrics:
        return None
    baselines = _of_type(report.baseline_results, cell_type)
    groups = {PREDICTION: results}
    for (kind,), frame in baselines.group_by("baseline", maintain_order=True):
        groups[str(kind)] = frame
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    longest = max(len(name) for name in groups)
    figure, grid = _figure(
        (0.75 + 0.3 * len(groups)) * lines, lines, columns, left=0.2 + 0.062 * longest, bottom=0.25, gap=0.25
    )
    for axes, metric in zip(grid, metrics, strict=False):
        _draw_strip(axes, metric, {name: _finite(frame[metric]) for name, frame in groups.items()})
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    for position, axes in enumerate(grid):
        axes.set_yticks(range(len(groups)), list(groups) if position % columns == 0 else [""] * len(groups))
        axes.set_ylim(len(groups) - 0.5, -0.5)
    return figure


def draw_overlap(report: Report, cell_type: str | None) -> "Figure | None":
    """DE overlap against the number of significant genes, and predicted against real numbers."""
    counts, results = _of_type(report.de_counts, cell_type), _of_type(report.results, cell_type)
    if counts.is_empty() or "overlap_at_N" not in results.columns:
        return None
    joined = counts.join(results.select("perturbation", "overlap_at_N"), on="perturbation")
    figure, grid = _figure(2.8, 1, 2, gap=0.65, top=0.28)
    baselines = _of_type(report.baseline_results, cell_type).filter(pl.col("baseline") == "mean")
    if not baselines.is_empty():
        both = counts.join(baselines.select("perturbation", "overlap_at_N"), on="perturbation")
        grid[0].scatter(both["num_real"], both["overlap_at_N"], s=14, color=colour("mean"), lw=0, label="mean baseline")
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


def draw_changes(report: Report, cell_type: str | None) -> "Figure | None":
    """Predicted against real change of mean expression, a panel per shown perturbation."""
    changes = _of_type(report.changes, cell_type)
    names = changes["perturbation"].unique(maintain_order=True).to_list()
    if not names:
        return None
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, grid = _figure(2.4 * lines, lines, columns)
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


def _figure(
    height: float,
    lines: int = 1,
    columns: int = 1,
    *,
    left: float = 0.55,
    top: float = 0.25,
    bottom: float = 0.45,
    gap: float = 0.35,
) -> "tuple[Figure, list[Axes]]":
    """A figure of `lines` × `columns` axes; height and margins in inches, `gap` between columns.

    Margins are set by hand: matplotlib's layout engine would draw everything twice.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    width_each = (WIDTH - left - 0.1 - gap * (columns - 1)) / columns
    height_each = (height - top - bottom - 0.5 * (lines - 1)) / lines
    figure.subplots_adjust(
        left=left / WIDTH,
        right=1 - 0.1 / WIDTH,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=gap / width_each,
        hspace=0.5 / height_each,
    )
    axes = [figure.add_subplot(lines, columns, index + 1) for index in range(lines * columns)]
    for each in axes:
        each.set_facecolor("none")
        each.locator_params(nbins=MOST_TICKS)
        each.tick_params(colors=colour("ink"), labelsize=7.5, length=2.5, width=0.6)
        each.xaxis.label.set(color=colour("ink"), fontsize=8)
        each.yaxis.label.set(color=colour("ink"), fontsize=8)
        each.title.set(color=colour("ink"), fontsize=8.5)
        each.grid(axis="x", color=colour("grid"), lw=0.6)
        each.set_axisbelow(True)
        for name, spine in each.spines.items():
            spine.set(visible=name in ("left", "bottom"), color=colour("muted"), lw=0.7)
    return figure, axes


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
        if row[field] is not None and row["baseline"] is not None:
            spot = unclipped_members(np.array([row[field]]), np.array([row["baseline"]]), [row["best"]])[0]
            if np.isfinite(spot) and spot >= LEFT_LIMIT:
                axes.plot(spot, height, marker=marker, ms=5.5, mfc="none", mew=1.2, color=colour("ceiling"), zorder=3)


def _legend(axes: "Axes", predictors: Sequence[str], ceiling: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name in predictors:
        marker, size = ("o", 6) if name == PREDICTION else ("|", 9)
        handles.append(Line2D([], [], ls="", marker=marker, ms=size, mew=2, color=colour(name), label=name))
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
    axes.set_title(metric, fontsize=8.5)


def _draw_change(axes: "Axes", name: str, rows: pl.DataFrame) -> None:
    real, pred = rows["real_change"].to_numpy(), rows["pred_change"].to_numpy()
    significant = (rows["real_fdr"].fill_null(1.0) < SIGNIFICANT_FDR).to_numpy()
    limit = float(max(np.abs(real).max(), np.abs(pred).max(), 1e-3)) * 1.12
    axes.axline((0, 0), slope=1, color=colour("muted"), lw=0.7, ls=(0, (4, 3)))
    axes.scatter(real[~significant], pred[~significant], s=5, color=colour("mean"), alpha=0.6, lw=0)
    axes.scatter(real[significant], pred[significant], s=8, color=colour(PREDICTION), alpha=0.8, lw=0)
    _label_genes(axes, name, rows["gene"].to_list(), real, pred, limit)
    constant = real.std() == 0 or pred.std() == 0
    correlation = "" if constant or len(real) < 3 else f"   r = {np.corrcoef(real, pred)[0, 1]:.2f}"
    axes.set_title(f"{name}{correlation}", fontsize=8.5)
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
        axes.annotate(genes[index], (x, y), (4 if right else -4, 2), textcoords="offset points", fontsize=6,
                      ha="left" if right else "right", color=colour("ink"))  # fmt: skip


def _of_type(frame: pl.DataFrame, cell_type: str | None) -> pl.DataFrame:
    return frame.filter(pl.col("cell_type").eq_missing(pl.lit(cell_type, dtype=pl.String)))


def _finite(series: pl.Series) -> np.ndarray:
    values = series.cast(pl.Float64).drop_nulls().to_numpy()
    return values[np.isfinite(values)]
