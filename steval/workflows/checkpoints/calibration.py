"""Choosing how a prediction is decoded, on pairs of perturbation and context whose real cells are known and held out.

Every candidate predicts the same pairs from the same drawn control cells, and each pair's part in the leaderboard score is
kept. A setting is left only for one that is better by more than one standard error of the paired difference, and by more than
half a point (the network has a share only for two standard errors and a whole point): settings that the evidence cannot tell
apart stay at their defaults, which docs/decisions/006 supports.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.data.effects.anchors import Anchors
from steval.data.effects.carry import mean_of_cells
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.record import TrainingEffects
from steval.evaluator.heldout import HeldOut, HeldOutScores, leaderboard_parts

FEW_UNITS = 10
"""Pairs below which only the two settings of the first step of `ALTERNATIVES` are chosen."""
ALTERNATIVES: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple(
        {"similarity": similarity, "floor": floor}
        for similarity in (10.0, 0.0, 20.0)
        for floor in (0.1, 0.05, 0.3, None)
    ),
    ({"scale": 1.25},),
    ({"shrink": 0.0}, {"shrink": 1.5}),
    ({"shift": False},),
)
"""Changes of the simple model's settings, step after step: which contexts a base comes from and how it is moved together, then
one by one how far effects are spread and shrunk, and whether the context's shift is added."""
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the network that are tried besides none."""
LEAST_GAIN = 0.5
"""Points of 100 for which a default is left at least: below, a choice among some twenty candidates mostly chases noise."""
LEAST_NETWORK_GAIN = 1.0
"""The same for the network's share: it is chosen on validation pairs alone, few as a rule, and costs the network's time."""
NETWORK_ERRORS = 2.0
"""Standard errors of the paired difference by which a share of the network must be better; one for everything else."""
DRAWS = 2
"""Draws of control cells that each candidate is scored with."""

Effects = Callable[["HeldOutPairs"], np.ndarray]
"""Gives the effects `[n, G]` of a set of pairs, in the order of its names."""


@dataclass(frozen=True)
class HeldOutPairs:
    """Perturbations of one context that are predicted together: real cells, control cells, mean baseline."""

    context: str
    real: HeldOut
    controls: sp.csr_matrix
    baseline: np.ndarray
    """Members of the mean baseline `[3]`."""
    target_sum: float | None
    hidden: tuple[str, ...] = ()
    """Perturbations whose own training effects in the context must not be used: those that are predicted, where these are the
    training cells themselves."""
    control_mean: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "control_mean", mean_of_cells(self.controls))

    @property
    def names(self) -> tuple[str, ...]:
        """The perturbations."""
        return self.real.names

    def score(self, effects: np.ndarray, decoding: DecodingSettings, seed: int) -> HeldOutScores:
        """Scores of cells that carry `effects [n, G]`, as many as the real ones; controls and switches are drawn by `seed`."""
        cells = {}
        for row, name in enumerate(self.names):
            generator = np.random.default_rng([seed, row])
            drawn = self.controls[_drawn(generator, self.controls.shape[0], self.real.num_cells[name])]
            cells[name] = decoding.carried(drawn, self.control_mean, effects[row], generator, self.target_sum).cells
        return self.real.scores(cells)


@dataclass(frozen=True)
class Trial:
    """One candidate, compared with what was chosen when it was tried."""

    change: dict[str, Any]
    """Settings in which it differs."""
    score: float
    """Mean over the pairs of their part in the leaderboard score."""
    difference: float
    """From the choice until then."""
    standard_error: float
    """Of the difference, paired."""
    chosen: bool


@dataclass(frozen=True)
class Choice:
    """A decoding and how it was found."""

    decoding: DecodingSettings
    trials: tuple[Trial, ...]
    num_pairs: int


def choose_anchor(
    record: TrainingEffects,
    features: Mapping[str, np.ndarray] | None,
    pairs: Sequence[HeldOutPairs],
    start: DecodingSettings,
    seed: int = 0,
) -> Choice:
    """The simple model's settings, one after the other; the pairs are predicted as if never measured."""
    decoding = start.model_copy(update={"network_weight": 0.0})
    if not pairs:
        return Choice(decoding, (), 0)

    def parts(candidate: DecodingSettings) -> np.ndarray:
        assert candidate.anchor is not None
        anchors = Anchors(record, candidate.anchor, features)
        return parts_of(pairs, candidate, lambda one: simple_effects(anchors, one), seed)

    best = parts(decoding)
    trials: list[Trial] = []
    for changes in ALTERNATIVES if len(best) >= FEW_UNITS else ALTERNATIVES[:1]:
        assert decoding.anchor is not None
        tried = [
            (change, decoding.model_copy(update={"anchor": decoding.anchor.model_copy(update=change)}))
            for change in changes
            if any(getattr(decoding.anchor, name) != value for name, value in change.items())
        ]
        found = [parts(candidate) for _, candidate in tried]
        winner = _clearly_better(best, found, LEAST_GAIN)
        trials += [
            _trial(change, one, best, number == winner)
            for number, ((change, _), one) in enumerate(zip(tried, found, strict=True))
        ]
        if winner is not None:
            decoding, best = tried[winner][1], found[winner]
    return Choice(decoding, tuple(trials), len(best))


def choose_weight(
    pairs: Sequence[HeldOutPairs], decoding: DecodingSettings, simple: Effects, network: Effects, seed: int = 0
) -> Choice:
    """The network's share in the effect: none, unless a share is better by more than two standard errors."""
    told = {id(one): (network(one), simple(one)) for one in pairs}
    best = parts_of(pairs, decoding, lambda one: told[id(one)][1], seed)
    candidates = [decoding.model_copy(update={"network_weight": weight}) for weight in WEIGHTS]
    found = [
        parts_of(pairs, candidate, lambda one, c=candidate: c.combined(*told[id(one)]), seed)
        for candidate in candidates
    ]
    winner = _clearly_better(best, found, LEAST_NETWORK_GAIN, NETWORK_ERRORS)
    trials = tuple(
        _trial({"network_weight": weight}, one, best, number == winner)
        for number, (weight, one) in enumerate(zip(WEIGHTS, found, strict=True))
    )
    return Choice(decoding if winner is None else candidates[winner], trials, len(best))


def parts_of(
    pairs: Sequence[HeldOutPairs], decoding: DecodingSettings, effects: Effects, seed: int, draws: int = DRAWS
) -> np.ndarray:
    """Each pair's part in the leaderboard score `[units]`, mean over draws of control cells."""
    found = []
    for one in pairs:
        told = effects(one)
        scored = [one.score(told, decoding, seed + draw).members for draw in range(draws)]
        found.append(leaderboard_parts(np.mean(scored, axis=0), one.baseline))
    return np.concatenate(found)


def simple_effects(anchors: Anchors, pairs: HeldOutPairs) -> np.ndarray:
    """What a simple model says of `pairs`, `[n, G]`."""
    return anchors.effects(pairs.names, pairs.context, pairs.control_mean, pairs.hidden)


def _clearly_better(
    best: np.ndarray, found: Sequence[np.ndarray], least_gain: float, errors: float = 1.0
) -> int | None:
    """Number of the candidate with the highest mean, if above `best` by `errors` standard errors and by `least_gain`; else None."""
    means = [one.mean() for one in found]
    if not means or len(best) < 2:
        return None
    winner = int(np.argmax(means))
    difference = found[winner] - best
    least = max(errors * difference.std(ddof=1) / np.sqrt(len(best)), least_gain)
    return winner if difference.mean() > least else None


def _trial(change: dict[str, Any], parts: np.ndarray, best: np.ndarray, chosen: bool) -> Trial:
    difference = parts - best
    error = difference.std(ddof=1) / np.sqrt(len(best)) if len(best) > 1 else float("nan")
    return Trial(change, float(parts.mean()), float(difference.mean()), float(error), chosen)


def _drawn(generator: np.random.Generator, num_controls: int, num_cells: int) -> np.ndarray:
    """Rows of control cells, each used equally often as far as can be."""
    rounds = -(-num_cells // num_controls)
    return np.concatenate([generator.permutation(num_controls) for _ in range(rounds)])[:num_cells]
