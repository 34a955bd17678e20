"""Integrity checks: is the score a gain in prediction, or the work of something broken or gamed?

Each check gives a measurement, the limit it was held against, a status (ok, warn, fail, skipped) and one plain sentence;
`docs/scoring.md` says what each one looks for. Checks that score again are made under the full level only.
"""

from dataclasses import dataclass

import numpy as np

from steval.evaluator.cells.digests import sketch_genes
from steval.evaluator.cells.pair import Pair
from steval.evaluator.evaluation import Evaluation
from steval.evaluator.integrity.cell_checks import (
    check_copies,
    check_numbers_leak,
    check_pasted_controls,
    check_scale,
    check_scatter,
    check_totals_leak,
    check_variance,
)
from steval.evaluator.integrity.effect_checks import (
    check_control_variance,
    check_controls,
    check_effect_size,
    check_low_genes,
    check_low_significant,
    check_one_profile,
    check_target_spike,
    effect_size,
)
from steval.evaluator.integrity.evidence import SideEvidence, gather_evidence
from steval.evaluator.integrity.findings import Finding, skipped
from steval.evaluator.integrity.score_checks import (
    Rescore,
    check_control_gain,
    check_hidden_error,
    check_impossible_error,
    check_scaling,
)
from steval.evaluator.reference.members import Overall
from steval.evaluator.reference.training import TrainingCells
from steval.evaluator.report.changes import de_counts


@dataclass(frozen=True)
class Scored:
    """What the checks look at."""

    pair: Pair
    evaluation: Evaluation
    overall: Overall | None
    """None without a baseline."""
    training: TrainingCells | None
    full: bool
    rescore: Rescore
    """Scores a changed prediction."""
    seed: int = 0
    threads: int = 1


def check_integrity(scored: Scored) -> list[Finding]:
    """All checks, in the order of the table."""
    pair = scored.pair
    training = scored.training
    sketched = _control_sketch(pair) if training is None else training.sketched
    pred, real = (gather_evidence(side, pair.control, sketched, scored.threads) for side in (pair.pred, pair.real))
    profile = None if training is None else training.mean_profile
    controls, control_variance = check_controls(pred, real), check_control_variance(pred, real)
    return [
        _check_contract(pair),
        check_scale(pred, real),
        controls,
        control_variance,
        check_hidden_error(pred, real, profile),
        check_impossible_error(pred, real),
        check_one_profile(pred, real),
        check_effect_size(pred, real),
        check_target_spike(pred, real, pair.genes),
        check_low_genes(pred, real),
        _check_low_significant(scored, real),
        check_variance(pred, real),
        check_scatter(pred, real),
        *check_copies(pred, real, training),
        check_pasted_controls(pred, real, training),
        check_totals_leak(pred, real),
        _check_numbers(scored, pred, real),
        *(_score_again(scored, pred, real) if scored.full else []),
    ]


def _control_sketch(pair: Pair) -> np.ndarray:
    """Sketch genes by the real control cells."""
    total = np.zeros(len(pair.genes))
    for piece in pair.real.pieces(pair.control):
        total += np.bincount(piece.indices, piece.data, len(total))
    return sketch_genes(total)


def _check_contract(pair: Pair) -> Finding:
    """Genes and perturbations; a pair that lacks some, or has others, is refused before any check."""
    reordered = " (genes in another order, matched by name)" if pair.pred.alignment.reordered else ""
    return Finding(
        "genes and perturbations",
        "ok",
        0.0,
        0.0,
        f"Both sides hold the same {len(pair.genes)} genes{reordered} and {len(pair.perturbations)} perturbations.",
    )


def _check_low_significant(scored: Scored, real: SideEvidence) -> Finding:
    evaluation = scored.evaluation
    if evaluation.de_pred is None or evaluation.de_real is None:
        return skipped("low genes significant", "no metric needed differential expression")
    return check_low_significant(evaluation.de_pred, evaluation.de_real, real, scored.pair.genes)


def _check_numbers(scored: Scored, pred: SideEvidence, real: SideEvidence) -> Finding:
    counts = de_counts(scored.evaluation)
    if counts.is_empty():
        return skipped("cell numbers", "no metric needed differential expression")
    found = dict(counts.select("perturbation", "num_real").iter_rows())
    return check_numbers_leak(pred, real, np.array([found.get(name, 0) for name in real.perturbations]), scored.seed)


def _score_again(scored: Scored, pred: SideEvidence, real: SideEvidence) -> list[Finding]:
    if scored.overall is None:
        why = "no training cells were given, so there is no overall score to compare"
        return [skipped(name, why) for name in ("score by predicted controls", "effects × 0.5", "effects × 2")]
    size = effect_size(pred, real)
    ours, theirs = pred.groups[pred.control], real.groups[real.control]
    same = np.array_equal(np.sort(ours.digests), np.sort(theirs.digests))
    return [
        check_control_gain(scored.pair, scored.overall, same, scored.rescore),
        *(check_scaling(scored.pair, pred, scored.overall, size, factor, scored.rescore) for factor in (0.5, 2.0)),
    ]
