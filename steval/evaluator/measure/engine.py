"""The seam between what is measured of a side and what it is computed on: the processors (here), or a device.

The evaluator never imports torch; whoever has a device hands `scan` an engine of its own (`steval.workflows.device_measures`).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from steval.evaluator.measure.de import SortedControls, rank_group, sort_controls
from steval.evaluator.measure.distances import ControlDistances, Matrix
from steval.evaluator.measure.groups import Group


class Ranks(Protocol):
    """One side's controls, ready to be ranked against; `rank` may be called from several threads."""

    def rank(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Mann–Whitney U and two-sided p of one perturbation against the controls, each `[G]` float64."""
        ...


class Distances(Protocol):
    """One side's controls, ready to be measured against; `energy` may be called from several threads."""

    def energy(self, cells: Matrix) -> float:
        """Energy distance of `cells [n, G]` to the controls (`ControlDistances`)."""
        ...


class Engine(Protocol):
    """What ranks and distances are computed on."""

    name: str
    """Part of the key of what the cache keeps: last digits may differ between engines."""

    def ranks(self, control: Group, pool: ThreadPoolExecutor) -> Ranks:
        """Sort the controls; `control.values` may be reordered within each gene."""
        ...

    def distances(self, control: Matrix) -> Distances:
        """Take up the controls `[n, G]`."""
        ...


class HostEngine:
    """The processors, with the values of cell-eval and pdex."""

    name = "processors"

    def ranks(self, control: Group, pool: ThreadPoolExecutor) -> Ranks:
        """Sorted once for all perturbations."""
        return _HostRanks(sort_controls(control, pool))

    def distances(self, control: Matrix) -> Distances:
        """Norms and float64 products."""
        return ControlDistances(control)


class _HostRanks:
    def __init__(self, controls: SortedControls):
        self._controls = controls

    def rank(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        return rank_group(group, self._controls)


HOST = HostEngine()
