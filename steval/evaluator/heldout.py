"""Scores of held-out perturbations of one context, prediction after prediction against the same real cells.

For choosing between predictions: the real side is read and ranked once, and each perturbation's part in the leaderboard score
is kept, so that two predictions can be compared pair by pair. The numbers are those of `evaluate` (profile `vcc` and Pearson
delta) with the real controls on both sides.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from steval.evaluator.measure.de import DifferentialExpression, rank_group, sort_controls
from steval.evaluator.measure.de_tables import compare
from steval.evaluator.measure.groups import Group, group_of
from steval.evaluator.metrics.bulk import absolute_error, pearson
from steval.evaluator.metrics.catalog import find_metric
from steval.evaluator.metrics.de import overlap
from steval.evaluator.metrics.discrimination import discrimination_scores
from steval.evaluator.reference.members import unclipped_members

MEMBERS = ("mae", "discrimination_score_l1", "overlap_at_N")
"""Members of the leaderboard score, in the order of `HeldOutScores.members`."""


@dataclass(frozen=True)
class HeldOutScores:
    """Values of each perturbation, in the order of `HeldOut.names`."""

    members: np.ndarray
    """`[P, 3]`, columns as `MEMBERS`."""
    pearson_delta: np.ndarray
    """`[P]`; NaN where an effect is the same for all genes."""
    num_significant: np.ndarray
    """Predicted significant genes `[P]`."""


class HeldOut:
    """The real cells of the perturbations of one context, with their controls; lognorm CSR `[n, G]`."""

    def __init__(self, controls: sp.csr_matrix, real: Mapping[str, sp.csr_matrix], genes: Sequence[str]):
        self.names = tuple(sorted(real))
        self.genes = tuple(genes)
        self.num_cells = {name: real[name].shape[0] for name in self.names}
        reference = group_of("", controls)
        with ThreadPoolExecutor(1) as pool:
            self._controls = sort_controls(reference, pool)
        self.control_mean = reference.mean.astype(np.float32)
        groups = [group_of(name, real[name]) for name in self.names]
        self._real = np.stack([group.mean for group in groups]).astype(np.float32)
        self._real_de = self._ranked(groups)

    def scores(self, predicted: Mapping[str, sp.csr_matrix]) -> HeldOutScores:
        """Scores of `predicted` cells, a matrix for each of `names`."""
        groups = [group_of(name, predicted[name]) for name in self.names]
        means = np.stack([group.mean for group in groups]).astype(np.float32)
        effects, real_effects = means - self.control_mean, self._real - self.control_mean
        discrimination = discrimination_scores(real_effects, effects, self.names, self.genes, "l1")
        compared = compare(self._real_de, self._ranked(groups))
        options = find_metric("overlap_at_N").options
        shared = overlap(compared, **options)
        columns = [
            [absolute_error(p, r) for p, r in zip(means, self._real, strict=True)],
            [discrimination[name] for name in self.names],
            [shared[name] for name in self.names],
        ]
        return HeldOutScores(
            members=np.array(columns).T,
            pearson_delta=np.array([pearson(p, r) for p, r in zip(effects, real_effects, strict=True)]),
            num_significant=compared.pred.significant(options["fdr_threshold"]).sum(axis=1),
        )

    def mean_baseline(self, profile: np.ndarray) -> np.ndarray:
        """Members `[3]` of cell-eval's mean baseline, whose cells are all `profile [G]`, averaged over the perturbations."""
        row = sp.csr_matrix(profile[None, :].astype(np.float32))
        cells = {name: sp.csr_matrix(sp.vstack([row] * number)) for name, number in self.num_cells.items()}
        return self.scores(cells).members.mean(axis=0)

    def _ranked(self, groups: Sequence[Group]) -> DifferentialExpression:
        ranked = [rank_group(group, self._controls) for group in groups]
        return DifferentialExpression(
            self.names,
            self.genes,
            np.array([group.num_cells for group in groups]),
            self._controls.num_cells,
            np.stack([group.natural_mean for group in groups]),
            self._controls.natural_mean,
            np.stack([statistic for statistic, _ in ranked]),
            np.stack([p_value for _, p_value in ranked]),
        )


def leaderboard_parts(members: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Each perturbation's part `[P]` of the leaderboard score (×100), of which the mean is the score before clipping.

    A member whose baseline is already the best value counts 0, as in cell-eval.
    """
    best = [find_metric(name).best for name in MEMBERS]
    parts = unclipped_members(members, np.broadcast_to(baseline, members.shape), best)
    return np.asarray(100.0 * np.where(np.isfinite(parts), parts, 0.0).mean(axis=1))
