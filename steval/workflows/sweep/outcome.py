"""What a sweep leaves: a table of its trials, and a figure of parallel coordinates: a line for each, an axis for each setting."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steval.data.files import atomic_path
from steval.workflows.sweep.study import TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, FIGURE = "trials.csv", "parallel.png"
MOST_TICKS = 6
"""Values of an axis that are all written beside it; of more, the least and the greatest."""
LEAST_GAP = 0.05
"""Of an axis's height, between two values that are written."""


def write_outcome(directory: Path, metric: str, records: Sequence[TrialRecord], *, minimise: bool) -> None:
    """`trials.csv`, and `parallel.png` where any trial has a value."""
    names = list(dict.fromkeys(name for one in records for name in one.chosen))
    with atomic_path(directory / TABLE) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["trial", "state", metric, *names, "error"])
        writer.writerows([one.number, one.state, "" if one.value is None else f"{one.value:.8g}",
                          *(value_text(one.chosen.get(name)) for name in names), one.error] for one in records)  # fmt: skip
    valued = [one for one in records if one.value is not None]
    if valued and names:
        figure = draw_parallel(metric, names, valued, minimise=minimise)
        with atomic_path(directory / FIGURE) as partial:
            figure.savefig(partial, format="png", dpi=150)


def short_names(names: Sequence[str]) -> list[str]:
    """The last two parts of dotted names, as many more as tell each from every other."""

    def end(name: str, parts: int) -> str:
        return ".".join(name.split(".")[-parts:])

    def short(name: str) -> str:
        others = [other for other in names if other != name]
        lengths = range(2, name.count(".") + 1)
        return next((end(name, n) for n in lengths if end(name, n) not in {end(one, n) for one in others}), name)

    return [short(name) for name in names]


def draw_parallel(metric: str, names: Sequence[str], records: Sequence[TrialRecord], *, minimise: bool) -> "Figure":
    """A line for each of `records` (all have a value, the best first), the darker the better; axes run from the least value up to
    the greatest."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = [[one.chosen.get(name) for one in records] for name in names] + [[one.value for one in records]]
    places = [_places(column) for column in columns]
    figure = Figure(figsize=(2.0 + 1.6 * len(columns), 4.5), layout="constrained")
    axes = figure.subplots()
    values = np.array([one.value for one in records], dtype=float)
    ranks = values.argsort().argsort() / max(len(values) - 1, 1)
    goodness = 1 - ranks if minimise else ranks
    colours = colormaps["viridis_r"]
    best = next((row for row, one in enumerate(records) if one.state == "complete"), None)
    for row in np.argsort(goodness):
        style = "-" if records[row].state == "complete" else ":"
        heights = [place[row] for place, _ in places]
        colour = "black" if row == best else colours(0.15 + 0.7 * goodness[row])
        axes.plot(range(len(columns)), heights, style, color=colour, lw=2.5 if row == best else 1.2)
    for position, (_, ticks) in enumerate(places):
        axes.axvline(position, color="0.7", lw=0.8, zorder=0)
        for height, text in ticks:
            axes.annotate(
                text, (position, height), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center",
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )  # fmt: skip
    axes.set_title("black: the best trial; the darker, the better; dotted: given up", fontsize=8)
    axes.set_xticks(range(len(columns)), [name.replace(".", ".\n") for name in (*names, metric)], fontsize=7)
    axes.set_yticks([])
    axes.set_frame_on(False)
    return figure


def _places(column: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 of a column's values, and where its ticks are with their text."""
    numbers = [value for value in column if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(column):
        low, high = min(numbers), max(numbers)
        log = low > 0 and high / low > 30
        scaled = np.log(numbers) if log else np.array(numbers, dtype=float)
        span = float(np.ptp(scaled)) or 1.0
        heights = ((scaled - scaled.min()) / span).tolist()
        shown = dict(zip(heights, numbers, strict=True))
        if len(shown) > MOST_TICKS or np.diff(sorted(shown)).min(initial=1.0) < LEAST_GAP:
            shown = {0.0: low, 1.0: high}
        return heights, [(height, f"{value:.4g}") for height, value in shown.items()]
    texts = sorted({value_text(value) for value in column})
    height_of = {text: row / max(len(texts) - 1, 1) for row, text in enumerate(texts)}
    return [height_of[value_text(value)] for value in column], [(height, text) for text, height in height_of.items()]


def value_text(value: Any) -> str:
    """A setting for people: six digits of a number, JSON of what is no text."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
