"""Integrity checks: is the score a gain in prediction, or the work of something broken or gamed?

Each check gives a measurement, the limit it was held against, a status (ok, warn, fail, skipped) and one plain sentence.
`CHECKS` is the table of them; a new check is a function and an entry there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from steval.evaluator.attempt import attempt
from steval.evaluator.cells.digests import sketch_genes
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import Cells, StoredCells
from steval.evaluator.cells.views import seen_as_lognorm
from steval.evaluator.integrity import cell_checks as cells
from steval.evaluator.integrity import count_checks
from steval.evaluator.integrity import effect_checks as effects
from steval.evaluator.integrity import score_checks as scores
from steval.evaluator.integrity.evidence import SideEvidence, gather_evidence
from steval.evaluator.integrity.verdict import Verdict, skipped
from steval.evaluator.metrics.changes import de_counts
from steval.evaluator.metrics.evaluation import Evaluation
from steval.evaluator.reference.members import Overall
from steval.evaluator.reference.training import TrainingSummary
from steval.wording import counted

if TYPE_CHECKING:
    from steval.evaluator.metrics.count_inputs import CountInputs

NO_TRAINING = "no training cells were given"
NO_DE = "no metric needed differential expression"


@dataclass(frozen=True)
class Scored:
    """What was scored, and how."""

    pair: Pair
    evaluation: Evaluation
    overall: Overall | None
    """None without a baseline."""
    training: TrainingSummary | None
    full: bool
    rescore: scores.Rescore
    """Scores a changed prediction."""
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Facts:
    """What the checks look at."""

    scored: Scored
    pred: SideEvidence
    real: SideEvidence

    @property
    def training(self) -> TrainingSummary | None:
        return self.scored.training

    @cached_property
    def neighbour_distance(self) -> float:
        """Typical distance of a real cell to the nearest other one of its perturbation."""
        return cells.neighbour_distance(self.real)

    @cached_property
    def num_significant(self) -> np.ndarray | None:
        """Significant genes of each perturbation in sorted order, real and predicted `[P, 2]`; None without DE."""
        counts = de_counts(self.scored.evaluation)
        if counts.is_empty():
            return None
        found = {name: numbers for name, *numbers in counts.select("perturbation", "num_real", "num_pred").iter_rows()}
        return np.array([found.get(name, (0, 0)) for name in self.real.perturbations])


@dataclass(frozen=True)
class Check:
    """All that is known of a check."""

    name: str
    sentence: str
    """For readers: what it looks for."""
    measure: Callable[[Facts], Verdict]
    full: bool = False
    """Made under the full level only, because it scores again."""
    counts: bool = False
    """Made of cells on counts only."""


def check_integrity(scored: Scored, warnings: list[str] | None = None) -> dict[str, Verdict]:
    """What each check found, by name, in the order of the table; one that breaks is a note, with a sentence in `warnings`."""
    pair, training = scored.pair, scored.training
    sides = seen_as_lognorm(pair)
    sketched = _control_sketch(sides[1], pair.control) if training is None else training.sketched
    pred, real = (gather_evidence(side, pair.control, sketched, scored.threads) for side in sides)
    facts = Facts(scored, pred, real)
    told = [] if warnings is None else warnings
    on_counts = scored.evaluation.counts is not None
    chosen = [check for check in CHECKS if (scored.full or not check.full) and (on_counts or not check.counts)]
    return {check.name: _made(check, facts, told) for check in chosen}


def _made(check: Check, facts: Facts, warnings: list[str]) -> Verdict:
    before = len(warnings)
    found = attempt(f"the integrity check '{check.name}'", lambda: check.measure(facts), None, warnings)
    return found or Verdict("note", None, None, f"Not checked: {warnings[before]}.")


def _control_sketch(real: Cells, control: str) -> np.ndarray:
    """Sketch genes by the real control cells."""
    total = np.zeros(real.num_genes)
    for piece in real.pieces(control):
        total += np.bincount(piece.indices, piece.data, len(total))
    return sketch_genes(total)


def _contract(facts: Facts) -> Verdict:
    """Genes and perturbations; a pair that lacks some, or has others, is refused before any check."""
    pair = facts.scored.pair
    is_reordered = isinstance(pair.pred, StoredCells) and pair.pred.alignment.reordered
    reordered = " (genes in another order, matched by name)" if is_reordered else ""
    return Verdict(
        "ok",
        0.0,
        0.0,
        f"Both sides hold the same {counted(len(pair.genes), 'gene')}{reordered} and "
        f"{counted(len(pair.perturbations), 'perturbation')}.",
    )


def _hidden_error(facts: Facts) -> Verdict:
    if facts.scored.evaluation.counts is not None:
        return skipped("on counts an error no better than the generic response counts 0; `unclipped` says by how much")
    profile = None if facts.training is None else facts.training.mean_profile
    return scores.check_hidden_error(facts.pred, facts.real, profile)


def _low_significant(facts: Facts) -> Verdict:
    evaluation = facts.scored.evaluation
    if evaluation.de_pred is None or evaluation.de_real is None:
        return skipped(NO_DE)
    return effects.check_low_significant(evaluation.de_pred, evaluation.de_real, facts.real, facts.scored.pair.genes)


def _significant(facts: Facts) -> Verdict:
    if facts.num_significant is None:
        return skipped(NO_DE)
    return effects.check_significant(*facts.num_significant.T)


def _training_copies(facts: Facts) -> Verdict:
    if facts.training is None:
        return skipped(NO_TRAINING)
    return cells.check_training_copies(facts.pred, facts.training, facts.neighbour_distance)


def _numbers(facts: Facts) -> Verdict:
    if facts.num_significant is None:
        return skipped(NO_DE)
    return cells.check_numbers_leak(facts.pred, facts.real, facts.num_significant[:, 0], facts.scored.seed)


def _control_gain(facts: Facts) -> Verdict:
    scored = facts.scored
    if scored.overall is None:
        return skipped(scores.NO_OVERALL)
    ours, theirs = (np.sort(side.groups[side.control].digests) for side in (facts.pred, facts.real))
    return scores.check_control_gain(scored.pair, scored.overall, np.array_equal(ours, theirs), scored.rescore)


def _of_counts(measure: Callable[["CountInputs"], Verdict]) -> Callable[[Facts], Verdict]:
    def made(facts: Facts) -> Verdict:
        assert facts.scored.evaluation.counts is not None
        return measure(facts.scored.evaluation.counts)

    return made


def _scaling(factor: float) -> Callable[[Facts], Verdict]:
    def measure(facts: Facts) -> Verdict:
        scored = facts.scored
        if scored.overall is None:
            return skipped(scores.NO_OVERALL)
        size = effects.effect_size(facts.pred, facts.real)
        inputs = scored.evaluation.counts
        if inputs is None:
            change = scores.scaled_effects(scored.pair, facts.pred, factor)
        else:
            change = scores.scaled_fold_changes(inputs, factor, scored.seed)
        return scores.check_scaling(scored.pair, change, scored.overall, size, factor, scored.rescore)

    return measure


CHECKS = (
    Check(
        "genes and perturbations",
        "genes or perturbations missing or added (such a pair is refused before it is scored)",
        _contract,
    ),
    Check(
        "scale",
        "cells normalised to another total than the real ones, or of another number of counts",
        lambda f: cells.check_scale(f.pred, f.real, f.scored.evaluation.counts is not None),
    ),
    Check(
        "predicted controls",
        "control cells that are not the measured ones, from which every effect is measured",
        lambda f: effects.check_controls(f.pred, f.real),
    ),
    Check(
        "variance of controls",
        "control cells that vary far less or more than the measured ones",
        lambda f: effects.check_control_variance(f.pred, f.real),
    ),
    Check(
        "error hidden by clipping",
        "a mean absolute error worse than the baseline's, which clipping counts as 0",
        _hidden_error,
    ),
    Check(
        "error below noise",
        "an error smaller than the sampling noise of the real cells: only knowledge of these very cells explains it",
        lambda f: scores.check_impossible_error(f.pred, f.real),
    ),
    Check(
        "one profile for all",
        "perturbations that hardly differ from each other where the real ones do",
        lambda f: effects.check_one_profile(f.pred, f.real),
    ),
    Check(
        "effect size",
        "effects much larger or smaller than the real ones",
        lambda f: effects.check_effect_size(f.pred, f.real),
    ),
    Check(
        "target gene spiked",
        "the perturbed gene itself pushed far beyond its real change, or far the other way",
        lambda f: effects.check_target_spike(f.pred, f.real, f.scored.pair.genes),
    ),
    Check("low genes boosted", "weakly expressed genes raised", lambda f: effects.check_low_genes(f.pred, f.real)),
    Check("low genes significant", "weakly expressed genes made to look significant", _low_significant),
    Check(
        "significant genes",
        "many more significant genes than the real data has: cells of a perturbation that are too alike",
        _significant,
    ),
    Check(
        "variance over cells",
        "cells that vary far more than real ones, or not at all",
        lambda f: cells.check_variance(f.pred, f.real),
    ),
    Check(
        "scattered cells",
        "cells far from their mean whose errors cancel in it",
        lambda f: cells.check_scatter(f.pred, f.real),
    ),
    Check(
        "copies of real cells",
        "predicted cells that are evaluated cells, exactly or with little noise",
        lambda f: cells.check_real_copies(f.pred, f.real, f.neighbour_distance),
    ),
    Check(
        "copies of training cells",
        "predicted cells that are training cells, exactly or with little noise",
        _training_copies,
    ),
    Check(
        "evaluated cells in training",
        "real cells that are also among the training cells",
        lambda f: skipped(NO_TRAINING) if f.training is None else cells.check_shared_cells(f.real, f.training),
    ),
    Check(
        "control cells pasted",
        "perturbed cells that are control cells, unchanged or moved by next to nothing",
        lambda f: cells.check_pasted_controls(f.pred, f.real, f.training, f.neighbour_distance),
    ),
    Check(
        "total counts",
        "totals that differ between perturbations where real ones do not",
        lambda f: cells.check_totals_leak(f.pred, f.real),
    ),
    Check("cell numbers", "numbers of cells that follow the number of significant genes", _numbers),
    Check(
        "untested genes boosted",
        "genes whose control mean is at or under the 5 CPM from which genes are tested, raised",
        _of_counts(count_checks.check_untested_genes),
        counts=True,
    ),
    Check(
        "scatter that cancels",
        "cells that scatter as a sample does while the profiles of perturbations hardly do",
        _of_counts(count_checks.check_cancelling_scatter),
        counts=True,
    ),
    Check(
        "counts put on few genes",
        "a share of a cell's counts put on single genes, which thins out all others",
        _of_counts(count_checks.check_injected_mass),
        counts=True,
    ),
    Check(
        "score by predicted controls",
        "both scores: with the prediction's own controls and with the measured ones",
        _control_gain,
        full=True,
    ),
    *(
        Check(f"effects × {factor:g}", "a score that rises when all effects are scaled", _scaling(factor), full=True)
        for factor in (0.5, 2.0)
    ),
)
"""Every check, in the order of tables and reports."""
