"""The score report: one self-contained HTML file."""

from steval.evaluator.report import Report


def render_report(report: Report) -> str:
    """HTML text of a report."""
    return f"<!doctype html><title>steval score</title><pre>{report.breakdown}</pre>"
