"""Curves of one or several runs as a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steval.errors import ConfigError
from steval.evaluator.report.drawing import colour, new_figure, plain
from steval.evaluator.report.report import PREDICTION
from steval.workflows.curves import Curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTTED = ("train/total", "val/gene", "val/embedding", "eval/mae", "eval/overlap_at_N", "eval/discrimination_score_l1")
SERIES = (PREDICTION, "additive", "ceiling", "ridge", "control", "mean")
"""Colours of runs, by their place; then they come again, dashed."""
PANEL = 1.9
"""Height of a panel in inches."""


def draw_curves(names: Sequence[str], curves: Sequence[Curves]) -> "Figure":
    """The curves of all runs overlaid, one panel per metric; a `ConfigError` where no run has any."""
    shown = [name for name in PLOTTED if any(run.get(name) is not None for run in curves)]
    if not shown:
        raise ConfigError(f"no run has any of the curves {', '.join(PLOTTED)}")
    figure, panels = new_figure(PANEL * len(shown) + 0.4, len(shown), left=0.8, top=0.4)
    for panel, metric in zip(panels, shown, strict=True):
        for number, (name, run) in enumerate(zip(names, curves, strict=True)):
            curve = run.get(metric)
            if curve is not None:
                style = "-" if number < len(SERIES) else "--"
                shade = colour(SERIES[number % len(SERIES)])
                marker = "o" if len(curve.steps) < 30 else ""
                panel.plot(
                    curve.steps, curve.values, label=plain(name), color=shade, lw=1.5, ls=style, marker=marker, ms=3
                )
        panel.set_ylabel(metric)
        panel.grid(axis="y", color=colour("grid"), lw=0.6)
    if len(names) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        panels[0].legend(handles, labels, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, frameon=False,
                         fontsize=7.5, labelcolor=colour("ink"))  # fmt: skip
    panels[-1].set_xlabel("optimiser step")
    return figure
