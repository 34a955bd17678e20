"""What keeps cells from being a submission of 2026: everything that `vcc prep` (vcc-cli 0.3.0) refuses, found in one reading.

The scoring service refuses the same. Where `vcc prep` stops at the first problem, all are told here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from steval.data.challenge.panel import Panel
from steval.wording import counted, listed

MOST_CELLS = 400_000
MOST_VALUES = 4_750_000_000
"""Stored values: what scoring can hold in memory."""
LARGEST_TOTAL = 1_000_000
"""Counts of one cell."""
WHOLE = 1e-6
"""Largest distance from the whole number below."""
_GUIDE = re.compile(r"-\d$")
_MOST_WRONG = 8


def gene_problems(found: Sequence[str], panel: Panel) -> list[str]:
    """Genes that are missing, not asked for or there twice; another order is none."""
    repeated = sorted(name for name, times in Counter(found).items() if times > 1)
    missing, extra = sorted(set(panel.genes) - set(found)), sorted(set(found) - set(panel.genes))
    named = (
        (repeated, "more than once"),
        (missing, "of the list missing"),
        (extra, "not in the list"),
    )
    return [f"{counted(len(names), 'gene')} {what}: {listed(names)}" for names, what in named if names]


def label_problems(perturbations: np.ndarray, contexts: np.ndarray | None, panel: Panel, control: str) -> list[str]:
    """What is wrong with the labels `[n]` of the cells: controls among them, contexts, perturbations, numbers of cells.

    Without `contexts` (the column is not there) perturbations cannot be told apart by context and are left unchecked.
    """
    problems = []
    if len(perturbations) > MOST_CELLS:
        problems.append(f"{counted(len(perturbations), 'cell')}; a submission holds at most {MOST_CELLS:,}")
    num_controls = int((perturbations == control).sum())
    if num_controls:
        problems.append(
            f"{counted(num_controls, 'control cell')} ({control!r}) among them: the measured ones are used for scoring, so leave "
            "them out (steval predict --no-include-controls)"
        )
    if contexts is None:
        return problems
    present = set(contexts.tolist())
    if unknown := sorted(present - set(panel.contexts)):
        problems.append(f"unknown contexts {listed(unknown)}; the contexts are {', '.join(panel.contexts)}")
    for context in panel.contexts:
        if context not in present:
            problems.append(f"context {context} has no cells")
            continue
        wanted = panel.perturbations.get(context)
        if wanted is None:
            problems.append(f"the perturbation list has no line for context {context}")
            continue
        problems += _context_problems(context, Counter(perturbations[contexts == context].tolist()), wanted, control)
    return problems


def _context_problems(context: str, found: Counter[str], wanted: Mapping[str, int | None], control: str) -> list[str]:
    found.pop(control, None)
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    problems = []
    if missing:
        problems.append(f"context {context}: {counted(len(missing), 'perturbation')} missing: {listed(missing)}")
    if extra:
        guides = " (names of guides? the gene's name is wanted)" if any(_GUIDE.search(name) for name in extra) else ""
        problems.append(f"context {context}: {counted(len(extra), 'unknown perturbation')}{guides}: {listed(extra)}")
    wrong = [(name, found[name], number) for name, number in sorted(wanted.items()) if found[name] and number]
    wrong = [line for line in wrong if line[1] != line[2]]
    if wrong:
        shown = ", ".join(f"{name} {cells} (wanted {number})" for name, cells, number in wrong[:_MOST_WRONG])
        more = f", … ({len(wrong) - _MOST_WRONG} more)" if len(wrong) > _MOST_WRONG else ""
        problems.append(f"context {context}: wrong numbers of cells: {shown}{more}")
    return problems


@dataclass
class _Found:
    """How many values or cells break a rule, and the first cell that does."""

    number: int = 0
    first: int = 0

    def add(self, number: int, first: int) -> None:
        if number and not self.number:
            self.first = first
        self.number += number


class ValueCheck:
    """Reads all values once: what is wrong with them, and how many each cell stores."""

    def __init__(self, perturbations: np.ndarray):
        self._perturbations = perturbations
        self.row_sizes = np.zeros(len(perturbations), dtype=np.int64)
        """Stored values of each cell `[n]`."""
        self._totals = np.zeros(len(perturbations))
        self._broken = {"not_finite": _Found(), "negative": _Found(), "fractional": _Found()}

    def read(self, blocks: Iterable[tuple[np.ndarray, sp.csr_matrix]]) -> None:
        """All cells, as row numbers and canonical CSR."""
        for rows, block in blocks:
            self.row_sizes[rows] = np.diff(block.indptr)
            self._totals[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
            self._look(int(rows[0]), block)

    def _look(self, first: int, block: sp.csr_matrix) -> None:
        values = block.data
        if not len(values) or (values.dtype.kind in "iu" and values.min() >= 0):
            return
        with np.errstate(invalid="ignore"):
            is_finite = np.isfinite(values)
            broken = {
                "not_finite": ~is_finite, "negative": is_finite & (values < 0),
                "fractional": is_finite & (np.abs(values - np.trunc(values)) > WHOLE),
            }  # fmt: skip
        for kind, places in broken.items():
            if places.any():
                row = int(np.searchsorted(block.indptr, int(places.argmax()), side="right")) - 1
                self._broken[kind].add(int(places.sum()), first + row)

    def problems(self) -> list[str]:
        """What is wrong."""
        said = {
            "not_finite": "NaN or infinite", "negative": "below 0",
            "fractional": "no whole number: a submission holds raw counts (steval predict --scale counts)",
        }  # fmt: skip
        problems = [
            f"{counted(found.number, 'value')} ({'' if found.number == 1 else 'the first '}in cell {found.first}) {said[kind]}"
            for kind, found in self._broken.items()
            if found.number
        ]
        if self.row_sizes.sum() > MOST_VALUES:
            problems.append(f"{counted(self.row_sizes.sum(), 'stored value')}; scoring takes at most {MOST_VALUES:,}")
        too_large = np.flatnonzero(self._totals > LARGEST_TOTAL)
        if len(too_large):
            problems.append(
                f"{counted(len(too_large), 'cell')} with more than {LARGEST_TOTAL:,} counts in all, the first cell {too_large[0]} "
                f"({self._totals[too_large[0]]:,.0f})"
            )
        filled = set(self._perturbations[self._totals != 0].tolist())
        if empty := sorted(set(self._perturbations.tolist()) - filled):
            problems.append(f"{counted(len(empty), 'perturbation')} without a single count: {listed(empty)}")
        return problems
