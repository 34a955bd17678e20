"""The score report: one self-contained HTML file, light and dark, with nothing to fetch."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import polars as pl

from steval.evaluator.attempt import attempt
from steval.evaluator.integrity.verdict import REMARKS, Status
from steval.evaluator.metrics.catalog import BY_COLUMN, with_arrow
from steval.evaluator.metrics.changes import SIGNIFICANT_FDR
from steval.evaluator.metrics.metric import GOOD
from steval.evaluator.report.drawing import COLOURS, draw
from steval.evaluator.report.figures import draw_changes, draw_distributions, draw_members, draw_overlap
from steval.evaluator.report.report import PREDICTION, ScoreReport, of_type
from steval.evaluator.report.standing import ADVICE, ADVICE_PAGE, Standing, standing
from steval.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
PICKED_GENES = 100
"""Genes of a perturbation that the page draws when it is picked."""
MOST_ROWS = 500
"""Perturbations listed in the report; `results.csv` has all."""


@dataclass(frozen=True)
class FigureView:
    """A drawn figure with its caption."""

    svg: str
    download: str
    caption: str
    name: str


@dataclass(frozen=True)
class Section:
    """All that is shown of one cell type, or of all cells together (cell type None)."""

    cell_type: str | None
    headline: dict[str, Any] | None
    baselines: list[dict[str, Any]]
    breakdown: list[dict[str, Any]]
    figures: dict[str, FigureView]
    changes: dict[str, list[Any]]
    """Perturbation → its genes as `[name, real change, predicted change, significant]`, for the page's picker."""
    integrity: list[dict[str, Any]]
    results: list[dict[str, Any]]
    metrics: list[str]
    num_perturbations: int


def render_report(report: ScoreReport, notes: list[str] | None = None) -> str:
    """HTML text of `report`; what could not be drawn is left out, with a sentence in `notes` and on the page."""
    told: list[str] = []
    failed = (
        "<!doctype html><title>Score report</title><p>The page could not be made. The tables beside it hold everything."
    )
    page = attempt("the page of the score report", lambda: _page(report, told), failed, told)
    if notes is not None:
        notes += told
    return page


def _page(report: ScoreReport, notes: list[str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["signed"] = partial(number, sign=True)
    environment.filters["fixed"] = fixed
    environment.filters["json"] = lambda value: json.dumps(value, indent=1)
    environment.filters["data"] = _as_data
    environment.filters["arrow"] = with_arrow
    environment.filters["counted"] = counted
    types = report.breakdown["cell_type"].unique(maintain_order=True).to_list()
    sections = [_section(report, cell_type, position, notes) for position, cell_type in enumerate(types)]
    mean = report.overall.filter(pl.col("cell_type").is_null() & (pl.col("predictor") == PREDICTION))
    return environment.get_template("report.html.j2").render(
        record=report.record,
        colours=COLOURS,
        warnings=[*report.record["warnings"], *notes],
        inputs=report.record["inputs"],
        sections=sections,
        headline=None if mean.is_empty() else mean.row(0, named=True),
        baselines=_baseline_rows(report, None),
        standing=attempt("the comparison with simple models", lambda: standing(report), Standing("unknown"), notes),
        advice=ADVICE,
        advice_page=ADVICE_PAGE,
        glossary=_glossary(report),
        ends=report.ends,
        on_counts=report.on_counts,
        counts={s: report.integrity["status"].to_list().count(s) for s in get_args(Status)},
        most_rows=MOST_ROWS,
    )


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number for people: `digits` significant figures, an en dash where there is none."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:{'+' if sign else ''}.{digits}g}" if abs(value) < 1000 else f"{value:{'+' if sign else ''},.0f}"
    return text.replace("-", "−")


def fixed(value: float | None, decimals: int, factor: float = 1.0) -> str:
    """`value` × `factor` with `decimals` places, an en dash where there is none."""
    return "–" if value is None else f"{factor * value:.{decimals}f}".replace("-", "−")


def _section(report: ScoreReport, cell_type: str | None, position: int, notes: list[str]) -> Section:
    frames = {
        name: of_type(getattr(report, name), cell_type) for name in ("breakdown", "results", "integrity", "overall")
    }
    breakdown = [_with_description(row) for row in frames["breakdown"].iter_rows(named=True)]
    headline = frames["overall"].filter(pl.col("predictor") == PREDICTION)
    results = frames["results"].drop("cell_type")
    return Section(
        cell_type=cell_type,
        headline=None if headline.is_empty() else headline.row(0, named=True),
        baselines=_baseline_rows(report, cell_type),
        breakdown=breakdown,
        figures=_figures(report, cell_type, position, notes),
        changes=_changes(report, cell_type),
        integrity=sorted(frames["integrity"].to_dicts(), key=lambda row: _rank(row["status"])),
        results=results.head(MOST_ROWS).to_dicts(),
        metrics=[column for column in results.columns if column != "perturbation"],
        num_perturbations=results.height,
    )


def _changes(report: ScoreReport, cell_type: str | None) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    rows = of_type(report.changes, cell_type).select("perturbation", "gene", "real_change", "pred_change", "real_fdr")
    for name, gene, real, pred, fdr in rows.iter_rows():
        significant = int(fdr is not None and fdr < SIGNIFICANT_FDR)
        found.setdefault(name, []).append([gene, float(f"{real:.3g}"), float(f"{pred:.3g}"), significant])
    return {
        name: sorted(genes, key=lambda one: -max(abs(one[1]), abs(one[2])))[:PICKED_GENES]
        for name, genes in found.items()
    }


def _rank(status: str) -> int:
    """The worst first, then all others in the order of the table."""
    return REMARKS.index(status) if status in REMARKS else len(REMARKS)


FIGURES: Mapping[str, tuple[Callable[[ScoreReport, str | None], "Figure | None"], str]] = MappingProxyType(
    {
        "members": (
            draw_members,
            "Members of the score, unclipped; the axis says what 0 and 1 are. Bars: 95\u00a0% bootstrap interval over "
            "perturbations. Ticks: the simple models.",
        ),
        "distributions": (draw_distributions, "Values by perturbation; bar and tick: quartiles and median."),
        "overlap": (
            draw_overlap,
            "Left: overlap of differentially expressed genes against their number in the real data. Right: numbers of "
            "significant genes; dashed: equal.",
        ),
        "changes": (
            draw_changes,
            "Change of mean log-normalised expression from control, predicted against real, for perturbations spread over "
            "the size of the real effect; the most changed genes of each, r over these. Blue: significant in the real data.",
        ),
    }
)
"""What draws each figure, and its caption."""


def _figures(report: ScoreReport, cell_type: str | None, position: int, notes: list[str]) -> dict[str, FigureView]:
    views = {}
    for index, name in enumerate(FIGURES):
        number = 10 * position + index
        views[name] = attempt(
            f"the figure '{name}'", lambda name=name, number=number: _view(report, cell_type, name, number), None, notes
        )
    return {name: view for name, view in views.items() if view is not None}


def _view(report: ScoreReport, cell_type: str | None, name: str, number: int) -> FigureView | None:
    function, caption = FIGURES[name]
    drawing = draw(lambda: function(report, cell_type), number, caption.split(".")[0])
    if drawing is None:
        return None
    return FigureView(
        svg=drawing.themed(),
        download=base64.b64encode(drawing.plain().encode()).decode(),
        caption=caption,
        name=name,
    )


def _with_description(row: dict[str, Any]) -> dict[str, Any]:
    metric = BY_COLUMN.get(row["metric"])
    return {**row, "description": metric.sentence if metric else ""}


def _glossary(report: ScoreReport) -> list[dict[str, str]]:
    """What each metric of the report is, from the catalog."""
    metrics = {metric.name: metric for column in report.breakdown["metric"] if (metric := BY_COLUMN.get(column))}
    return [
        {"name": with_arrow(one.name), "is": one.description, "values": one.limits, "good": GOOD[one.best]}
        for one in metrics.values()
    ]


def _as_data(value: Any) -> str:
    """JSON that cannot end the element it stands in: names in it come from users' files."""
    import markupsafe

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return markupsafe.Markup(text)


def _baseline_rows(report: ScoreReport, cell_type: str | None) -> list[dict[str, Any]]:
    rows = of_type(report.overall, cell_type).filter(pl.col("predictor") != PREDICTION)
    return rows.to_dicts()
