"""A report in a few lines: what a notebook shows of it."""

from html import escape

import polars as pl

from steval.evaluator.metrics.catalog import with_arrow
from steval.evaluator.report.html import number
from steval.evaluator.report.report import ScoreReport
from steval.evaluator.report.standing import standing
from steval.wording import counted

COLUMNS = ("value", "baseline", "ceiling", "normalised", "unclipped")


def short_text(report: ScoreReport) -> str:
    """The verdict and a line for each metric."""
    types = report.breakdown["cell_type"]
    lines = [
        f"{_named(row)}: {number(row['value'], 4)}" + _beside(row) for row in report.breakdown.iter_rows(named=True)
    ]
    scored = f" in {counted(types.n_unique(), 'cell type')}" if types.n_unique() > 1 else ""
    head = f"Score of {counted(report.results['perturbation'].n_unique(), 'perturbation')}{scored}"
    return "\n".join([head, standing(report).sentence, *(f"  {line}" for line in lines)])


def short_html(report: ScoreReport) -> str:
    """The verdict, what to do, a table of metrics, and the integrity checks that found something."""
    stands = standing(report)
    shown = [name for name in COLUMNS if not report.breakdown[name].is_null().all()]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("metric", *shown))
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(_named(row))}</td>"
        + "".join(f"<td>{escape(number(row[name], 4))}</td>" for name in shown)
        + "</tr>"
        for row in report.breakdown.iter_rows(named=True)
    )
    found = "".join(
        f"<li><b>{escape(row['check'])}</b> ({row['status']}): {escape(row['sentence'])}</li>"
        for row in report.findings.select(pl.col("check", "status", "sentence")).iter_rows(named=True)
    )
    advice = f"<p>{escape(stands.advice)}</p>" if stands.advice else ""
    title = f"Integrity: {counted(report.findings.height, 'finding')}"
    integrity = f"<details><summary>{title}</summary><ul>{found}</ul></details>" if found else ""
    return f"<div><p><b>{escape(stands.sentence)}</b></p>{advice}<table><tr>{head}</tr>{rows}</table>{integrity}</div>"


def _named(row: dict[str, object]) -> str:
    name = with_arrow(str(row["metric"]))
    return name if row["cell_type"] is None else f"{row['cell_type']}, {name}"


def _beside(row: dict[str, object]) -> str:
    return "" if row["baseline"] is None else f" (mean baseline {number(row['baseline'], 4)})"
