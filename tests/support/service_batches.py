"""A batch's directory as `steval batch` leaves it, for the service that shows it."""

from pathlib import Path

import polars as pl

from steval.batch.leaderboard import SCHEMA
from steval.evaluator.spreadsheet import write_csv

REPORT = "<!doctype html><title>Report of a</title><p>nothing to see</p>"


def write_batch(directory: Path) -> Path:
    """A batch of two jobs, one scored and one failed, as `steval batch` leaves it."""
    (directory / "jobs" / "a__cells__all-1" / "score").mkdir(parents=True)
    (directory / "jobs" / "a__cells__all-1" / "score" / "report.html").write_text(REPORT)
    (directory / "manifest.yaml").write_text("checkpoints: []\n")
    scored = {
        "rank": 1, "checkpoint": "a", "data": "cells", "request": "all", "state": "scored", "overall": 0.5, "overall_low": 0.4,
        "overall_high": 0.6, "above_simple": -1.25, "above_simple_low": -2.0, "above_simple_high": 0.5, "flags": "shift (warn)",
        "directory": "jobs/a__cells__all-1",
    }  # fmt: skip
    failed = {
        "checkpoint": "=b",
        "data": "cells",
        "request": "all",
        "state": "failed",
        "error": "no genes",
        "directory": "jobs/b",
    }
    rows = [dict.fromkeys(SCHEMA) | one for one in (scored, failed)]
    write_csv(pl.DataFrame(rows, schema=SCHEMA), directory / "leaderboard.csv")
    return directory
