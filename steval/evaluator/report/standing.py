"""Is the prediction any good? Its score beside the best simple model's, as a sentence for the top of every page and screen.

Perturbations are resampled in pairs: each draw takes the same ones of the prediction, of every simple model and of the mean
baseline, so what all find hard cancels in the difference. By cell type, each type is resampled on its own and the means over
types are compared, as the headline is.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl

from steval.evaluator.reference.baselines import REFERENCE
from steval.evaluator.reference.bootstrap import (
    FEWEST_PERTURBATIONS,
    aligned,
    draw_weights,
    drawn_scores,
    held_means,
    interval,
    recorded_scale,
)
from steval.evaluator.reference.members import LEADERBOARD_FACTOR, overall_scores, unclipped_members
from steval.evaluator.report.report import PREDICTION, ScoreReport, of_type
from steval.wording import counted

Outcome = Literal["better", "worse", "undecided", "unknown"]

ADVICE_PAGE = "docs/scoring.md, “When a simple model scores as high”"
ADVICE = (
    "Let held-out cells decide how predictions become cells: steval calibrate CKPT (a finished steval finetune has done so) takes "
    "a simple model's effect where the network adds nothing.",
    "Look at the run: steval doctor RUN finds one that stopped early, overfitted, or trained around frozen random weights.",
    "Start from a pre-trained checkpoint: steval finetune CONFIG --init-from CKPT.",
    "Ask what the test asks: for perturbations that no training cell has, only informative perturbation features can say more "
    "than a mean.",
    "Score more perturbations: the interval narrows with their number.",
)
"""What to do when a simple model scores as high, for readers."""


@dataclass(frozen=True)
class Standing:
    """Where the prediction stands; scores and their difference are ×100, as on the leaderboard."""

    outcome: Outcome
    score: float | None = None
    simple_model: str | None = None
    """The simple model with the highest score."""
    simple_score: float | None = None
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval of the difference; None: too few perturbations, or none asked for."""
    num_failed: int = 0
    """Integrity checks that failed."""
    incomplete: bool = False
    """No score though it was asked for: a member has no value, or no scale to lie on."""

    @property
    def difference(self) -> float | None:
        """The prediction's score less the simple model's."""
        return None if self.score is None or self.simple_score is None else self.score - self.simple_score

    @cached_property
    def sentence(self) -> str:
        """One sentence, and a second one where integrity checks failed."""
        text = self._comparison()
        if self.num_failed:
            which = "it" if self.num_failed == 1 else "them"
            text += f" {counted(self.num_failed, 'integrity check')} failed: read {which} before trusting the score."
        return text

    @property
    def advice(self) -> str | None:
        """What to do next; None where there is nothing to do."""
        if self.outcome == "unknown":
            if self.score is not None or self.incomplete:
                return None
            return "Give the training cells with --train, or score with the checkpoint that records them."
        if self.outcome == "better":
            return None
        doubt = (
            "Nothing shows that this model adds to a simple one"
            if self.outcome == "undecided"
            else "Use the simple one"
        )
        return f"{doubt}; what to do: {ADVICE_PAGE}."

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "outcome": self.outcome,
            "score": self.score,
            "simple_model": self.simple_model,
            "simple_score": self.simple_score,
            "difference": self.difference,
            "interval": [self.low, self.high],
            "sentence": self.sentence,
        }

    def _comparison(self) -> str:
        if self.score is None and self.incomplete:
            return "No overall score: a member of it has no value or no scale to lie on; the notes say which and why."
        if self.score is None:
            return "No overall score: without training cells there is no simple model to compare with."
        score = f"Overall score {_number(self.score)} of 100"
        difference = self.difference
        if self.simple_model is None or difference is None:
            return f"{score}; there is no simple model to compare with."
        beside = f"the best simple model, {self.simple_model} ({_number(self.simple_score or 0.0)})"
        apart = f"{_number(abs(difference))} {'below' if difference < 0 else 'above'} {beside}"
        if self.low is None or self.high is None:
            return f"{score}, {apart}; without an interval nothing says whether that is more than chance."
        bounds = f"95\u00a0% interval of the difference {_number(self.low)} to {_number(self.high)}"
        ending = {"better": "", "worse": "", "undecided": ", so neither is shown to be better", "unknown": ""}
        return f"{score}, {apart}; {bounds}{ending[self.outcome]}."


def standing(report: ScoreReport) -> Standing:
    """Where the scored cells stand beside the best simple model; `unknown` where there is none or no interval."""
    failed = int((report.integrity["status"] == "fail").sum())
    score, simple = report.leaderboard, _best_simple(report)
    if score is None or simple is None:
        return Standing("unknown", score=score, num_failed=failed, incomplete=report.overall.height > 0)
    kind, simple_score = simple
    low, high = _difference(report, kind)
    outcome: Outcome = "unknown"
    if low is not None and high is not None:
        outcome = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Standing(outcome, score, kind, simple_score, low, high, failed)


def _best_simple(report: ScoreReport) -> tuple[str, float] | None:
    """The kind and score of the simple model with the highest headline."""
    rows = report.overall.filter((pl.col("predictor") != PREDICTION) & pl.col("leaderboard").is_not_null())
    if rows.is_empty():
        return None
    headline = rows.unique("predictor", keep="first", maintain_order=True)
    best = headline.row(int(headline["leaderboard"].arg_max() or 0), named=True)
    return best["predictor"], best["leaderboard"]


def _difference(report: ScoreReport, kind: str) -> tuple[float | None, float | None]:
    """Interval of the difference of headlines, ×100."""
    options = report.record.get("options", {})
    draws, seed = int(options.get("bootstrap") or 0), int(report.record.get("seed") or 0)
    types = report.breakdown["cell_type"].unique(maintain_order=True).to_list()
    if not draws:
        return None, None
    apart = [_drawn_difference(report, cell_type, kind, draws, seed) for cell_type in types]
    known = [one for one in apart if one is not None]
    if len(known) < len(types):
        return None, None
    low, high = interval(LEADERBOARD_FACTOR * np.mean(known, axis=0))
    return low, high


def _drawn_difference(
    report: ScoreReport, cell_type: str | None, kind: str, draws: int, seed: int
) -> np.ndarray | None:
    """Resampled difference of the overall scores of one cell type, `[draws]`; None with too few perturbations."""
    results = of_type(report.results, cell_type)
    names = results["perturbation"].cast(pl.String).to_list()
    if len(names) < FEWEST_PERTURBATIONS:
        return None
    if report.on_counts:
        scale, entries = recorded_scale(of_type(report.breakdown, cell_type))
        weights = draw_weights(len(names), draws, seed)
        made = of_type(report.baseline_results, cell_type).filter(pl.col("baseline") == kind)
        own, simple = (drawn_scores(frame, scale, entries, weights) for frame in (results, aligned(made, names)))
        return own - simple
    members = of_type(report.breakdown, cell_type).select("metric", "best")
    metrics, best = members["metric"].to_list(), members["best"].to_list()
    weights = draw_weights(len(names), draws, seed)
    made = of_type(report.baseline_results, cell_type)
    means = {
        one: held_means(aligned(made.filter(pl.col("baseline") == one), names), metrics, weights)
        for one in {kind, REFERENCE}
    }
    reference = means[REFERENCE]
    own, _ = overall_scores(unclipped_members(held_means(results, metrics, weights), reference, best), best)
    simple, _ = overall_scores(unclipped_members(means[kind], reference, best), best)
    return own - simple


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−").replace("−0.0", "0.0")
