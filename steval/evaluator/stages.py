"""The work on one pair: its metrics, those of the baselines, its ceiling; frames come later (`assembly`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from steval.evaluator.attempt import attempt
from steval.evaluator.cells.pair import Pair
from steval.evaluator.clock import Clock
from steval.evaluator.integrity.checks import Scored, check_integrity
from steval.evaluator.integrity.verdict import Verdict
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.metrics.evaluation import Evaluation, evaluate
from steval.evaluator.metrics.metric import Best, Metric
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.reference.baselines import BASELINES, REFERENCE, available_kinds, baseline_pair, missing_contexts
from steval.evaluator.reference.ceiling import Ceiling, estimate_ceiling
from steval.evaluator.reference.members import Overall, member_table, metric_means, replicate_table
from steval.evaluator.reference.replicates import ReplicateScale, replicate_scale
from steval.evaluator.reference.training import TrainingSummary
from steval.evaluator.settings import ScoreSettings
from steval.machine import num_cores
from steval.wording import listed

MemberReference = Evaluation | ReplicateScale | None
"""What a member is measured against: a baseline's metrics, or on counts both ends of the replicate scale."""


@dataclass(frozen=True)
class PairScore:
    """What was computed of one pair."""

    pair: Pair
    evaluation: Evaluation
    baselines: dict[str, Evaluation]
    ceiling: Ceiling | None
    checks: dict[str, Verdict]
    warnings: list[str]
    scale: ReplicateScale | None = None
    """What members lie on, on counts."""

    @property
    def reference(self) -> MemberReference:
        """What stands at 0 of a member, on counts at 1 too."""
        return self.baselines.get(REFERENCE) if self.scale is None else self.scale


@dataclass(frozen=True)
class ScoreWork:
    """All that scoring a pair needs beside the pair."""

    settings: ScoreSettings
    training: TrainingSummary | None
    features: Mapping[str, np.ndarray] | None
    cache: Path | None
    clock: Clock
    threads: int | None = None
    engine: Engine = HOST

    @cached_property
    def columns(self) -> dict[str, Metric]:
        """Result columns of the chosen metrics, and the metric of each."""
        return {column: metric for metric in resolve(self.settings.chosen) for column in metric.columns}

    @property
    def on_counts(self) -> bool:
        """Whether the chosen metrics are on counts, whose members lie on the replicate scale."""
        return next(iter(self.columns.values())).scale == "counts"

    def run(self, pair: Pair, de_real: pl.DataFrame | None = None, de_pred: pl.DataFrame | None = None) -> PairScore:
        """Score one pair."""
        scale = None
        if self.on_counts and not self.settings.metrics_only:
            with self.clock.stage("replicate scale"):
                scale = replicate_scale(pair, list(self.columns.values()), self.threads or num_cores(), self.cache)
        with self.clock.stage("metrics"):
            evaluation = self.evaluate(pair, de_real, de_pred)
        if self.settings.metrics_only:
            return PairScore(pair, evaluation, {}, None, {}, [])
        warnings: list[str] = list(scale.notes) if scale else []
        baselines: dict[str, Evaluation] = {}
        if self.training is not None:
            with self.clock.stage("baselines"):
                baselines = self._baselines(pair, self.training, de_real, warnings)
            warnings += [] if self.on_counts else _context_warnings(pair, self.training)
        ceiling = None
        if self.settings.ceiling and scale is not None:
            warnings.append(
                "--ceiling adds nothing on counts: the replicates that members are normalised by are the ceiling"
            )
        elif self.settings.ceiling:
            with self.clock.stage("ceiling"):
                ceiling = attempt("the ceiling", lambda: self._ceiling(pair), None, warnings)
            warnings += ceiling.notes if ceiling else ()
        checks: dict[str, Verdict] = {}
        if self.settings.integrity != "none":
            with self.clock.stage("integrity"):
                checks = attempt(
                    "the table of integrity checks",
                    lambda: self._integrity(pair, evaluation, scale or baselines.get(REFERENCE), de_real, warnings),
                    {},
                    warnings,
                )
        return PairScore(pair, evaluation, baselines, ceiling, checks, warnings, scale)

    def evaluate(
        self, pair: Pair, de_real: pl.DataFrame | None = None, de_pred: pl.DataFrame | None = None
    ) -> Evaluation:
        """The chosen metrics of a pair."""
        return evaluate(
            pair,
            self.settings.chosen,
            options=self.settings.metric_options,
            de_real=de_real,
            de_pred=de_pred,
            cache=self.cache,
            threads=self.threads,
            engine=self.engine,
        )

    def best(self, evaluation: Evaluation) -> dict[str, Best]:
        """Best value of each result column; a metric that failed altogether is no member, as in cell-eval."""
        failed = set(evaluation.failed)
        return {column: "none" if column in failed else metric.best for column, metric in self.columns.items()}

    def overall(self, evaluation: Evaluation, reference: MemberReference) -> tuple[pl.DataFrame, Overall]:
        """Members of an evaluation against a baseline's or on the replicate scale, and the overall score."""
        columns = list(self.columns)
        means = metric_means(evaluation.results, columns)
        if self.on_counts:
            assert not isinstance(reference, Evaluation)
            return replicate_table(means, reference, self.columns)
        assert not isinstance(reference, ReplicateScale)
        base = None if reference is None else metric_means(reference.results, columns)
        return member_table(means, base, self.best(evaluation))

    def _baselines(
        self, pair: Pair, training: TrainingSummary, de_real: pl.DataFrame | None, warnings: list[str]
    ) -> dict[str, Evaluation]:
        def make(kind: str) -> Evaluation:
            made = baseline_pair(pair, training, kind, seed=self.settings.seed, features=self.features)
            return self.evaluate(made, de_real)

        found = {
            kind: attempt(f"the {BASELINES[kind].label}", lambda kind=kind: make(kind), None, warnings)
            for kind in available_kinds(training, self.features)
        }
        if found.get(REFERENCE) is None and not self.on_counts:
            warnings.append(
                f"without the {BASELINES[REFERENCE].label} the normalised columns and the overall score are empty"
            )
        return {kind: evaluation for kind, evaluation in found.items() if evaluation is not None}

    def _integrity(
        self,
        pair: Pair,
        evaluation: Evaluation,
        reference: MemberReference,
        de_real: pl.DataFrame | None,
        warnings: list[str],
    ) -> dict[str, Verdict]:
        def rescore(changed: Pair) -> Overall:
            return self.overall(self.evaluate(changed, de_real), reference)[1]

        return check_integrity(
            Scored(
                pair=pair,
                evaluation=evaluation,
                overall=None if reference is None else self.overall(evaluation, reference)[1],
                training=self.training,
                full=self.settings.integrity == "full",
                rescore=rescore,
                seed=self.settings.seed,
                threads=self.threads or num_cores(),
            ),
            warnings,
        )

    def _ceiling(self, pair: Pair) -> Ceiling:
        return estimate_ceiling(
            pair,
            self.settings.chosen,
            list(self.columns),
            splits=self.settings.splits,
            seed=self.settings.seed,
            options=self.settings.metric_options,
            threads=self.threads,
        )


def _context_warnings(pair: Pair, training: TrainingSummary) -> list[str]:
    missing = missing_contexts(pair, training)
    if not missing:
        return []
    return [
        f"the training cells hold no control cells of {listed(missing)}: simple models start from the measured ones, as "
        "predictions do; members are still normalised by the mean baseline of other contexts, which is weak there and flatters"
    ]
