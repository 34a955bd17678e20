"""What the training cells say of each perturbation in each context: mean effects, numbers of cells, sampling noise.

A context is a cell type. An effect is the mean lognorm expression of the perturbed cells less that of the control cells of the
same context. The record is small enough for a checkpoint: K pairs × G genes in half precision (2 bytes a value; 240 pairs of
4,707 genes are 2.3 MB, 150 of 18,080 genes 5.4 MB), and two rows for each context. Half precision rounds an effect to
0.05 % of itself, far under its sampling noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steval.errors import DataError
from steval.wording import counted

MOST_VALUES = 2**27
"""Pairs × genes that a record holds at most: 268 MB in half precision."""


@dataclass(frozen=True)
class TrainingEffects:
    """K pairs of a perturbation and a context, C contexts, G genes in the order of the gene contract; lognorm."""

    perturbations: tuple[str, ...]
    """Names of the perturbations that have cells, sorted; the control is not among them."""
    contexts: tuple[str, ...]
    """Names of the contexts that have control cells, sorted."""
    perturbation_codes: np.ndarray
    """int32 `[K]`, positions in `perturbations`."""
    context_codes: np.ndarray
    """int32 `[K]`, positions in `contexts`."""
    num_cells: np.ndarray
    """Perturbed cells of each pair, int32 `[K]`."""
    effects: np.ndarray
    """Mean effects, float32 `[K, G]`."""
    control_means: np.ndarray
    """Mean expression of the control cells, float32 `[C, G]`."""
    num_controls: np.ndarray
    """int32 `[C]`."""
    cell_variance: np.ndarray
    """Variance between cells of one context and perturbation, pooled within the context, float32 `[C, G]`."""

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise DataError("the training effects contradict themselves", problems)

    @property
    def num_pairs(self) -> int:
        """K."""
        return len(self.perturbation_codes)

    @property
    def num_genes(self) -> int:
        """G."""
        return int(self.effects.shape[1])

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs (perturbation, context) in the order of the rows."""
        return [
            (self.perturbations[p], self.contexts[c])
            for p, c in zip(self.perturbation_codes.tolist(), self.context_codes.tolist(), strict=True)
        ]

    def noise(self, rows: np.ndarray) -> np.ndarray:
        """Sampling variance of the effects of `rows`, float32 `[len(rows), G]`: of both means, perturbed and control."""
        context = self.context_codes[rows]
        share = 1.0 / self.num_cells[rows] + 1.0 / self.num_controls[context]
        return self.cell_variance[context] * share[:, None].astype(np.float32)

    def select(self, rows: np.ndarray) -> "TrainingEffects":
        """The record of some pairs alone; contexts and controls stay."""
        used, codes = np.unique(self.perturbation_codes[rows], return_inverse=True)
        return TrainingEffects(
            perturbations=tuple(self.perturbations[code] for code in used),
            contexts=self.contexts,
            perturbation_codes=codes.astype(np.int32),
            context_codes=self.context_codes[rows],
            num_cells=self.num_cells[rows],
            effects=self.effects[rows],
            control_means=self.control_means,
            num_controls=self.num_controls,
            cell_variance=self.cell_variance,
        )

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (half precision where it is enough) and JSON facts, from which `from_arrays` makes the record again."""
        arrays = {
            "perturbation": self.perturbation_codes.astype(np.int32),
            "context": self.context_codes.astype(np.int32),
            "num_cells": self.num_cells.astype(np.int32),
            "effects": self.effects.astype(np.float16),
            "control_means": self.control_means.astype(np.float32),
            "num_controls": self.num_controls.astype(np.int32),
            "cell_variance": self.cell_variance.astype(np.float16),
        }
        return arrays, {"perturbations": list(self.perturbations), "contexts": list(self.contexts)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> "TrainingEffects":
        """The record that `to_arrays` gave; a `DataError` where parts are missing or do not fit together."""
        expected = {
            "perturbation": 1, "context": 1, "num_cells": 1, "effects": 2, "control_means": 2, "num_controls": 1,
            "cell_variance": 2,
        }  # fmt: skip
        problems = [f"missing {name}" for name in sorted(expected.keys() - arrays.keys())]
        problems += [f"unexpected {name}" for name in sorted(arrays.keys() - expected.keys())]
        problems += [
            f"{name} has {counted(arrays[name].ndim, 'dimension')} instead of {dimensions}"
            for name, dimensions in expected.items()
            if name in arrays and arrays[name].ndim != dimensions
        ]
        names = {key: facts.get(key) for key in ("perturbations", "contexts")}
        problems += [
            f"{key} is no list of names"
            for key, value in names.items()
            if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value)
        ]
        if problems:
            raise DataError("the training effects cannot be read", problems)
        whole = {name: np.asarray(arrays[name]).astype(np.int32) for name, width in expected.items() if width == 1}
        single = {name: np.asarray(arrays[name]).astype(np.float32) for name, width in expected.items() if width == 2}
        return cls(
            perturbations=tuple(facts["perturbations"]),
            contexts=tuple(facts["contexts"]),
            perturbation_codes=whole["perturbation"],
            context_codes=whole["context"],
            num_cells=whole["num_cells"],
            effects=single["effects"],
            control_means=single["control_means"],
            num_controls=whole["num_controls"],
            cell_variance=single["cell_variance"],
        )

    def _problems(self) -> list[str]:
        pairs, contexts, genes = len(self.perturbation_codes), len(self.contexts), self.effects.shape[-1]
        shapes = {
            "context_codes": (pairs,), "num_cells": (pairs,), "effects": (pairs, genes), "num_controls": (contexts,),
            "control_means": (contexts, genes), "cell_variance": (contexts, genes),
        }  # fmt: skip
        problems = [
            f"{name} has shape {list(getattr(self, name).shape)}, expected {list(shape)}"
            for name, shape in shapes.items()
            if getattr(self, name).shape != shape
        ]
        if problems:
            return problems
        for codes, names in (("perturbation_codes", self.perturbations), ("context_codes", self.contexts)):
            values = getattr(self, codes)
            if pairs and (values.min() < 0 or values.max() >= len(names)):
                problems.append(f"{codes} lie outside the {counted(len(names), 'name')}")
        for name in ("num_cells", "num_controls"):
            if (getattr(self, name) < 1).any():
                problems.append(f"{name} must be at least 1")
        for name in ("effects", "control_means", "cell_variance"):
            if not np.isfinite(getattr(self, name)).all():
                problems.append(f"{name} holds NaN or infinite values")
        keys = self.perturbation_codes.astype(np.int64) * max(contexts, 1) + self.context_codes
        if len(np.unique(keys)) != pairs:
            problems.append("a perturbation is twice in a context")
        return problems
