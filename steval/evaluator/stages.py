"""The work on one pair: its metrics, those of the baselines, its ceiling; frames come later (`assembly`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from steval.evaluator.cells.pair import Pair
from steval.evaluator.clock import Clock
from steval.evaluator.evaluation import Evaluation, evaluate
from steval.evaluator.integrity.checks import Scored, check_integrity
from steval.evaluator.integrity.findings import Finding
from steval.evaluator.metrics.catalog import Best, Family
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.reference.baselines import BaselineKind, available_kinds, baseline_pair, missing_contexts
from steval.evaluator.reference.ceiling import Ceiling, estimate_ceiling
from steval.evaluator.reference.members import Overall, member_table, metric_means
from steval.evaluator.reference.training import TrainingCells
from steval.machine import num_cores

IntegrityLevel = Literal["none", "basic", "full"]
REFERENCE: BaselineKind = "mean"
"""The baseline that members are normalised by: cell-eval's."""


@dataclass(frozen=True)
class ScoreOptions:
    """How to score; `score` makes it of its arguments."""

    metrics: str | tuple[str, ...] = "vcc"
    """A profile, a metric, or several metrics."""
    metric_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ceiling: bool = False
    integrity: IntegrityLevel = "basic"
    metrics_only: bool = False
    by: str | None = None
    seed: int = 0
    bootstrap: int = 1000
    """Resamples of the perturbations; 0: no intervals."""
    splits: int = 3
    """Splits of the replicate ceiling."""
    threads: int | None = None

    @property
    def columns(self) -> dict[str, tuple[Family, Best]]:
        """Result columns of the chosen metrics with family and best value."""
        return {column: (metric.family, metric.best) for metric in resolve(self.metrics) for column in metric.columns}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types for the record."""
        return {
            "metrics": [metric.name for metric in resolve(self.metrics)],
            "profile": self.metrics if isinstance(self.metrics, str) else None,
            "metric_options": {name: dict(options) for name, options in self.metric_options.items()},
            "ceiling": self.ceiling,
            "integrity": "none" if self.metrics_only else self.integrity,
            "metrics_only": self.metrics_only,
            "by": self.by,
            "bootstrap": 0 if self.metrics_only else self.bootstrap,
            "splits": self.splits,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class PairScore:
    """What was computed of one pair."""

    pair: Pair
    evaluation: Evaluation
    baselines: dict[BaselineKind, Evaluation]
    ceiling: Ceiling | None
    findings: list[Finding]
    warnings: list[str]


@dataclass(frozen=True)
class ScoreWork:
    """All that scoring a pair needs beside the pair."""

    options: ScoreOptions
    training: TrainingCells | None
    features: Mapping[str, np.ndarray] | None
    cache: Path | None
    clock: Clock

    def run(self, pair: Pair, de_real: pl.DataFrame | None = None, de_pred: pl.DataFrame | None = None) -> PairScore:
        """Score one pair."""
        with self.clock.stage("metrics"):
            evaluation = self.evaluate(pair, de_real, de_pred)
        if self.options.metrics_only:
            return PairScore(pair, evaluation, {}, None, [], [])
        warnings: list[str] = []
        baselines: dict[BaselineKind, Evaluation] = {}
        if self.training is not None:
            with self.clock.stage("baselines"):
                baselines = self._baselines(pair, self.training, de_real)
            warnings += _context_warnings(pair, self.training)
        ceiling = None
        if self.options.ceiling:
            with self.clock.stage("ceiling"):
                ceiling = self._ceiling(pair)
            warnings += ceiling.notes
        findings: list[Finding] = []
        if self.options.integrity != "none":
            with self.clock.stage("integrity"):
                findings = self._integrity(pair, evaluation, baselines.get(REFERENCE), de_real)
        return PairScore(pair, evaluation, baselines, ceiling, findings, warnings)

    def evaluate(
        self, pair: Pair, de_real: pl.DataFrame | None = None, de_pred: pl.DataFrame | None = None
    ) -> Evaluation:
        """The chosen metrics of a pair."""
        return evaluate(
            pair,
            self.options.metrics,
            options=self.options.metric_options,
            de_real=de_real,
            de_pred=de_pred,
            cache=self.cache,
            threads=self.options.threads,
        )

    def best(self, evaluation: Evaluation) -> dict[str, Best]:
        """Best value of each result column; a metric that failed altogether is no member, as in cell-eval."""
        failed = set(evaluation.failed)
        return {column: "none" if column in failed else kind for column, (_, kind) in self.options.columns.items()}

    def overall(self, evaluation: Evaluation, baseline: Evaluation | None) -> tuple[pl.DataFrame, Overall]:
        """Members of an evaluation against a baseline's, and the overall score."""
        columns = self.options.columns
        best = self.best(evaluation)
        means = metric_means(evaluation.results, list(columns))
        base = None if baseline is None else metric_means(baseline.results, list(columns))
        return member_table(means, base, best)

    def _baselines(
        self, pair: Pair, training: TrainingCells, de_real: pl.DataFrame | None
    ) -> dict[BaselineKind, Evaluation]:
        made: dict[BaselineKind, Evaluation] = {}
        for kind in available_kinds(training, self.features):
            baseline = baseline_pair(pair, training, kind, seed=self.options.seed, features=self.features)
            made[kind] = self.evaluate(baseline, de_real)
        return made

    def _integrity(
        self, pair: Pair, evaluation: Evaluation, baseline: Evaluation | None, de_real: pl.DataFrame | None
    ) -> list[Finding]:
        def rescore(changed: Pair) -> Overall:
            return self.overall(self.evaluate(changed, de_real), baseline)[1]

        return check_integrity(
            Scored(
                pair=pair,
                evaluation=evaluation,
                overall=None if baseline is None else self.overall(evaluation, baseline)[1],
                training=self.training,
                full=self.options.integrity == "full",
                rescore=rescore,
                seed=self.options.seed,
                threads=self.options.threads or num_cores(),
            )
        )

    def _ceiling(self, pair: Pair) -> Ceiling:
        return estimate_ceiling(
            pair,
            self.options.metrics,
            list(self.options.columns),
            splits=self.options.splits,
            seed=self.options.seed,
            options=self.options.metric_options,
            threads=self.options.threads,
        )


def _context_warnings(pair: Pair, training: TrainingCells) -> list[str]:
    missing = missing_contexts(pair, training)
    if not missing:
        return []
    return [
        f"the training cells hold no control cells of {', '.join(missing)}: baselines start from other contexts' cells and "
        "are weak, so normalised members flatter"
    ]
