"""A comparison as a file: one HTML page, light or dark, or its figure as PNG or SVG."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steval.data.files import atomic_path
from steval.data.outputs import require_output
from steval.evaluator.report.drawing import COLOURS, FORMATS, draw, plot
from steval.workflows.compare import Comparison
from steval.workflows.figures.curves import draw_curves
from steval.workflows.figures.scores import draw_against, draw_side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write `.html` (figures and tables in one file) or the first figure alone (`.png`, `.svg`, `.pdf`), atomically; never over a
    file that was compared."""
    compared = {f"the report of {place}": place / "report.html" for place in comparison.scored}
    require_output(path, compared, suffixes=(".html", *(f".{kind}" for kind in FORMATS)))
    if path.suffix != ".html":
        return plot(_figures(comparison)[0][1], "there is nothing to draw").save(path)
    with atomic_path(path) as partial:
        partial.write_text(_html(comparison), encoding="utf-8", errors="backslashreplace")
    return path


def _figures(comparison: Comparison) -> "list[tuple[str, Callable[[], Figure | None]]]":
    """Caption and what draws it."""
    names, reports = comparison.names, comparison.reports
    if not reports:
        return [("Losses and quick scores over optimiser steps.", lambda: draw_curves(names, comparison.curves))]
    caption = "Members of the score, unclipped; bars: 95\u00a0% bootstrap interval over perturbations."
    figures: list[tuple[str, Callable[[], Figure | None]]] = [(caption, lambda: draw_side_by_side(names, reports))]
    if len(reports) == 2:
        caption = "Each point is a perturbation; dashed: equal."
        figures.append((caption, lambda: draw_against(names, reports)))
    return figures


def _html(comparison: Comparison) -> str:
    from jinja2 import Environment

    frames = [
        (title, frame.select([name for name in frame.columns if not frame[name].is_null().all()]))
        for title, frame in (
            ("Best checkpoints", comparison.best), ("Metrics", comparison.metrics), ("Paired tests", comparison.tests),
            ("Settings that differ", comparison.settings),
        )
        if frame.height
    ]  # fmt: skip
    drawn = [
        (caption, drawing.themed())
        for number, (caption, make) in enumerate(_figures(comparison))
        if (drawing := draw(make, number, caption)) is not None
    ]
    environment = Environment(autoescape=True)
    environment.filters["shown"] = _shown
    return environment.from_string(_TEMPLATE).render(
        names=comparison.names, frames=frames, figures=drawn, colours=COLOURS
    )


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_TEMPLATE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>steval compare</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; --paper: #fff;
  {% for name, shades in colours.items() %}--{{ name }}: {{ shades[0] }}; {% endfor %} }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171b;
  {% for name, shades in colours.items() %}--{{ name }}: {{ shades[1] }}; {% endfor %} } }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper); color: var(--ink); }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } figure { margin: 1rem 0; max-width: 52rem; }
figure svg { width: 100%; height: auto; } figcaption { color: var(--muted); font-size: .9rem; }
@media (max-width: 44rem) { figure svg { min-width: 36rem; } }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 2rem; font-size: .92rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; } td { overflow-wrap: break-word; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
th { border-bottom: 2px solid; } td { border-bottom: 1px solid var(--grid); }
</style>
<h1>{{ names | join(" · ") }}</h1>
{% for caption, svg in figures %}
<figure><div class="scroll">{{ svg | safe }}</div><figcaption>{{ caption }}</figcaption></figure>{% endfor %}
{% for title, frame in frames %}<h2>{{ title }}</h2><div class="scroll"><table><thead><tr>
{% for name in frame.columns %}<th>{{ name.replace("_", " ") }}</th>{% endfor %}</tr></thead><tbody>
{% for row in frame.rows() %}<tr>{% for value in row -%}
<td{% if value is number %} class="n"{% endif %}>{{ value | shown }}</td>
{%- endfor %}</tr>{% endfor %}</tbody></table></div>{% endfor %}
</html>
"""
