"""What a scoring run found, as frozen Polars frames; `tables` writes it to a directory, `html_report` shows it."""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import polars as pl

from steval.evaluator.integrity.verdict import FLAGS, REMARKS
from steval.evaluator.metrics.catalog import BY_COLUMN

if TYPE_CHECKING:
    from steval.evaluator.report.plots import ScorePlots

PREDICTION = "prediction"
"""Name of the scored cells in the column `predictor`; the others are baselines."""


def of_type(frame: pl.DataFrame, cell_type: str | None) -> pl.DataFrame:
    """The rows of one cell type; None: of all cells together."""
    return frame.filter(pl.col("cell_type").eq_missing(pl.lit(cell_type, dtype=pl.String)))


def finite_or_none(value: float | None) -> float | None:
    """None where a table has no number to show."""
    return None if value is None or not isfinite(value) else float(value)


@dataclass(frozen=True, repr=False)
class ScoreReport:
    """Everything a scoring run found. `cell_type` is null in every frame unless the run was made by cell type."""

    results: pl.DataFrame
    """Perturbation × metric: `cell_type`, `perturbation`, one column per metric; null: no value, NaN: undefined."""
    breakdown: pl.DataFrame
    """One row per metric (`schemas.BREAKDOWN_SCHEMA`)."""
    overall: pl.DataFrame
    """Overall scores of the prediction and of each baseline (`schemas.OVERALL_SCHEMA`); by cell type, their mean comes first."""
    baselines: pl.DataFrame
    """Metric × baseline kind (`schemas.BASELINES_SCHEMA`)."""
    baseline_results: pl.DataFrame
    """As `results`, for each baseline (`baseline` holds its kind)."""
    integrity: pl.DataFrame
    """Checks (`schemas.INTEGRITY_SCHEMA`); status is ok, warn, fail or skipped."""
    intervals: pl.DataFrame
    """95 % bootstrap intervals over perturbations (`schemas.INTERVALS_SCHEMA`)."""
    failures: pl.DataFrame
    """Why a value is null or NaN (`schemas.FAILURES_SCHEMA`)."""
    changes: pl.DataFrame
    """Predicted and real fold changes of the perturbations that the report shows (`schemas.CHANGES_SCHEMA`)."""
    de_counts: pl.DataFrame
    """Numbers of significant genes (`schemas.DE_COUNTS_SCHEMA`); empty where no metric needs DE."""
    record: dict[str, Any]
    """Versions, digests, options, seed, timings, warnings, notes: plain JSON types."""

    @property
    def on_counts(self) -> bool:
        """Whether the metrics are on counts, whose members lie on the replicate scale."""
        found = [BY_COLUMN[name] for name in self.breakdown["metric"] if name in BY_COLUMN]
        return bool(found) and found[0].scale == "counts"

    @property
    def ends(self) -> tuple[str, str]:
        """For readers: what stands at 0 and at 1 of a normalised member."""
        return ("generic response", "replicates") if self.on_counts else ("mean baseline", "best possible value")

    @property
    def members(self) -> pl.DataFrame:
        """The rows of `breakdown` that count towards the overall score."""
        return self.breakdown.filter(pl.col("best") != "none")

    @property
    def score(self) -> float | None:
        """Overall score as cell-eval gives it (clipped members, best 1); None without a baseline."""
        return self._headline("overall")

    @property
    def leaderboard(self) -> float | None:
        """The same ×100, as on the challenge's leaderboard."""
        return self._headline("leaderboard")

    @property
    def unclipped(self) -> float | None:
        """Overall score of the unclipped members."""
        return self._headline("unclipped")

    @property
    def findings(self) -> pl.DataFrame:
        """Integrity checks that did not pass."""
        return self.integrity.filter(pl.col("status").is_in(FLAGS))

    @property
    def remarks(self) -> pl.DataFrame:
        """The findings and the notes, the worst first."""
        told = self.integrity.filter(pl.col("status").is_in(REMARKS))
        return told.sort(
            pl.col("status").replace_strict({name: rank for rank, name in enumerate(REMARKS)}), maintain_order=True
        )

    @property
    def plot(self) -> "ScorePlots":
        """Its figures one by one: `report.plot.members()`, `.changes("STAT1")`."""
        from steval.evaluator.report.plots import ScorePlots

        return ScorePlots(self)

    @property
    def verdict(self) -> str:
        """Where the prediction stands beside the best simple model, as a sentence."""
        from steval.evaluator.report.standing import standing

        return standing(self).sentence

    def __repr__(self) -> str:
        from steval.evaluator.report.short import short_text

        return short_text(self)

    def _repr_html_(self) -> str:
        from steval.evaluator.report.short import short_html

        return short_html(self)

    def _headline(self, column: str) -> float | None:
        rows = self.overall.filter(pl.col("predictor") == PREDICTION)
        return None if rows.is_empty() else rows[column][0]
