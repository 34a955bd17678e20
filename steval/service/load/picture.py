"""Latencies and throughput against concurrency, as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steval.evaluator.report.drawing import colour, new_figure, plot
from steval.evaluator.report.report import PREDICTION
from steval.service.load.measure import Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = {
    "p50_ms": ("median", PREDICTION, "-"),
    "p95_ms": ("95 %", "ceiling", "--"),
    "p99_ms": ("99 %", "additive", ":"),
}
"""Field → name, colour, line."""
HEIGHT = 4.4


def write_picture(levels: Sequence[Level], path: Path) -> Path:
    """Write the figure as the suffix of `path` says (svg, png, pdf)."""
    return plot(lambda: _draw(levels), "no request was answered, so there is nothing to draw").save(path)


def _draw(levels: Sequence[Level]) -> "Figure | None":
    shown = sorted((one for one in levels if one.answers), key=lambda one: one.concurrency)
    if not shown:
        return None
    clients = [one.concurrency for one in shown]
    figure, (latency, rate) = new_figure(HEIGHT, 2, left=0.75)
    for name, (label, shade, line) in PERCENTILES.items():
        values = [getattr(one, name) for one in shown]
        latency.plot(clients, values, label=label, color=colour(shade), ls=line, marker="o", ms=3.5, lw=1.5)
    latency.set_ylabel("latency (ms)")
    latency.legend(frameon=False, fontsize=7.5, labelcolor=colour("ink"))
    rate.plot(clients, [one.requests_per_second for one in shown], color=colour(PREDICTION), marker="o", ms=3.5, lw=1.5)
    rate.set_ylabel("requests a second")
    rate.set_xlabel("clients at once, each waiting for its answer")
    for panel in (latency, rate):
        panel.set_xscale("log", base=2)
        panel.set_xticks(clients, [str(one) for one in clients])
        panel.minorticks_off()
        panel.set_ylim(0, 1.08 * panel.dataLim.ymax)
        panel.grid(axis="y", color=colour("grid"), lw=0.6)
    return figure
