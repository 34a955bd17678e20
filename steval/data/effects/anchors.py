"""Simple models of a perturbation's effect in a context, from training effects: what a network is measured against and adds to.

For a perturbation p in context t, with E the training effects and m the mean expression of control cells:

1. base: the mean of E[p, c] over the other contexts c, those with control cells like t's counting more
   (weight exp(similarity × correlation of m_c and m_t)), each moved to t by how much the controls let a fold change show,
   E[p, c] × (s(m_t) + floor) / (s(m_c) + floor). A fold change moves the logarithm of a well expressed gene by as much
   everywhere, that of a rare one in proportion to its expression: s(m) = 1 − exp(−m), the derivative of log(1 + x) by log x.
   Without a floor nothing is moved: the additive model.
2. shrunk: × z² / (z² + shrink²), z being the base over its sampling noise. Genes within the noise go to 0.
3. spread: its difference from the mean base × scale.
4. context shift: plus what the perturbations that were seen in t differ there from their own base, on average, itself shrunk
   by its noise (s² / (s² + variance of s)). It holds what all effects of t share, the noise of t's controls among it.
5. own: a pair that was itself measured is drawn towards its measured effect, by how far the context's effects lie from what
   the steps before say, beyond sampling noise.

A perturbation that no other context has gets its base from features (`unseen`), else the mean base.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from steval.data.effects.carry import sensitivity
from steval.data.effects.record import TrainingEffects
from steval.data.effects.unseen import fit_features
from steval.data.splits.assignment import SINGLE_CELL_TYPE
from steval.errors import DataError
from steval.settings import Settings
from steval.wording import listed

LEAST_FOR_SPREAD = 10
"""Perturbations seen in a context from which the spread of its effects can be told: fewer say next to nothing of a gene's."""
_TINY = 1e-12


class AnchorSettings(Settings):
    """A simple model of effects; see the module for what each setting does."""

    floor: PositiveFloat | None = 0.1
    """Added to both controls' sensitivities before their ratio is taken; none: effects are not moved."""
    similarity: NonNegativeFloat = 10.0
    """How much more contexts with similar control cells count; 0: all equally."""
    shrink: NonNegativeFloat = 1.0
    """Effects under so many standard errors are shrunk to less than half; 0: none is."""
    scale: NonNegativeFloat = 1.0
    """Factor on what distinguishes an effect from the mean effect; 0: every perturbation has the mean effect."""
    shift: bool = True
    """Whether what the effects of a context have in common is added."""


_ADDITIVE = {"floor": None, "similarity": 0.0, "shrink": 0.0, "shift": False}
SIMPLE_MODELS: Mapping[str, AnchorSettings] = MappingProxyType(
    {
        "mean": AnchorSettings.model_validate({**_ADDITIVE, "scale": 0.0}),
        "additive": AnchorSettings.model_validate(_ADDITIVE),
        "additive, shrunk": AnchorSettings.model_validate({**_ADDITIVE, "shrink": 1.0}),
        "additive + shift": AnchorSettings.model_validate({**_ADDITIVE, "shift": True}),
        "transport": AnchorSettings.model_validate({**_ADDITIVE, "floor": 0.1}),
        "transport + shift": AnchorSettings.model_validate({**_ADDITIVE, "floor": 0.1, "shift": True}),
        "similar contexts": AnchorSettings.model_validate({**_ADDITIVE, "similarity": 20.0}),
        "anchor": AnchorSettings(),
    }
)
"""Simple models by name, from the simplest; the last is the default."""


class Anchors:
    """A simple model fitted to training effects. Everything it returns is float32 `[n, G]`, changes of mean lognorm expression."""

    def __init__(
        self, record: TrainingEffects, settings: AnchorSettings, features: Mapping[str, np.ndarray] | None = None
    ):
        self.record = record
        self.settings = settings
        self._features = features or {}
        self._views: dict[str, _View] = {}

    def effects(
        self,
        perturbations: Sequence[str],
        context: str,
        control_mean: np.ndarray | None = None,
        hidden: Collection[str] = (),
    ) -> np.ndarray:
        """Effects of `perturbations` in `context`, as well as they can be told; `hidden` ones as if never measured there.

        `control_mean [G]` is the mean of the control cells that predictions start from (default: the training controls of the
        context, which a context that training did not have lacks: a `DataError`).
        """
        return self._view(context, control_mean).effects(perturbations, frozenset(hidden))

    def left_out(
        self, perturbations: Sequence[str], context: str, control_mean: np.ndarray | None = None
    ) -> np.ndarray:
        """As `effects`, each perturbation as if it alone had not been measured in `context`: what a residual is taken from."""
        return self._view(context, control_mean).left_out(perturbations)

    def training(self) -> np.ndarray:
        """The anchor of every training pair, told from the other pairs, `[K, G]` in the record's order."""
        result = np.empty_like(self.record.effects)
        for code, context in enumerate(self.record.contexts):
            rows = np.flatnonzero(self.record.context_codes == code)
            names = [self.record.perturbations[p] for p in self.record.perturbation_codes[rows]]
            if len(rows):
                result[rows] = self.left_out(names, context)
        return result

    def _view(self, context: str, control_mean: np.ndarray | None) -> "_View":
        if control_mean is not None:
            return _View(self.record, self.settings, self._features, context, control_mean)
        if context not in self._views:
            self._views[context] = _View(self.record, self.settings, self._features, context, None)
        return self._views[context]


@dataclass(frozen=True)
class _Shift:
    """What effects of a context share, and how far they lie from what is told without them, `[G]` each."""

    mean: np.ndarray
    spread: np.ndarray | None
    """Variance beyond sampling noise; None: too few perturbations to tell."""


class _View:
    """A model seen from one context: the base effects of all perturbations there, without their own effects there."""

    def __init__(
        self,
        record: TrainingEffects,
        settings: AnchorSettings,
        features: Mapping[str, np.ndarray],
        context: str,
        control_mean: np.ndarray | None,
    ):
        self.record, self.settings = record, settings
        self.code = context_code(record, context)
        if control_mean is None:
            if self.code is None:
                known = listed(record.contexts)
                raise DataError(
                    f"training had no control cells of {context!r} (it had {known}); give the control cells to start from"
                )
            control_mean = record.control_means[self.code]
        self.control_mean = np.asarray(control_mean, dtype=np.float32)
        self._number = {name: row for row, name in enumerate(record.perturbations)}
        self._own = np.full(len(record.perturbations), -1)
        if self.code is not None:
            rows = np.flatnonzero(record.context_codes == self.code)
            self._own[record.perturbation_codes[rows]] = rows
        self._base, self._known = self._bases()
        self._unknown = self._base[self._known].mean(axis=0) if self._known.any() else self._mean_effect()
        self._model = fit_features(
            {name: self._base[row] for name, row in self._number.items() if self._known[row]}, features
        )
        self._guesses: dict[str, np.ndarray] = {}

    def effects(self, perturbations: Sequence[str], hidden: frozenset[str]) -> np.ndarray:
        """See `Anchors.effects`."""
        seen = [name for name in self._seen if name not in hidden]
        shift = self._shift(seen)
        result = np.stack([self._told(name) for name in perturbations]) + shift.mean
        for row, name in enumerate(perturbations):
            if name in self._seen and name not in hidden:
                result[row] = self._towards_own(result[row], name, shift)
        return result.astype(np.float32)

    def left_out(self, perturbations: Sequence[str]) -> np.ndarray:
        """See `Anchors.left_out`."""
        whole = self._shift(self._seen)
        rows = []
        for name in perturbations:
            alone = self._seen_without(name) if name in self._seen else whole.mean
            rows.append(self._told(name, left_out=True) + alone)
        return np.stack(rows).astype(np.float32)

    @cached_property
    def _seen(self) -> tuple[str, ...]:
        """Perturbations measured in this context."""
        return tuple(name for name, row in self._number.items() if self._own[row] >= 0)

    def _bases(self) -> tuple[np.ndarray, np.ndarray]:
        """Shrunk base effects `[P, G]` from the other contexts, and which perturbations have one."""
        record, settings = self.record, self.settings
        others = np.flatnonzero(record.context_codes != (-1 if self.code is None else self.code))
        shape = (len(record.perturbations), record.num_genes)
        base, known = np.zeros(shape, dtype=np.float32), np.zeros(shape[0], dtype=bool)
        if not len(others):
            return base, known
        context, number = record.context_codes[others], record.perturbation_codes[others]
        weight = np.exp(settings.similarity * (self._likeness[context] - 1.0))
        total = np.bincount(number, weights=weight, minlength=shape[0])
        known = total > 0
        weight = weight / total[number]
        variance = np.zeros(shape, dtype=np.float32)
        for code in np.unique(context):
            chosen = context == code
            moved = self._ratio(int(code))
            rows = others[chosen]
            share = (weight[chosen, None] * moved).astype(np.float32)
            base[number[chosen]] += record.effects[rows] * share
            if settings.shrink:
                variance[number[chosen]] += record.noise(rows) * share**2
        if settings.shrink:
            squared = base**2
            base *= squared / np.maximum(squared + settings.shrink**2 * variance, _TINY)
        if settings.scale != 1:
            middle = base[known].mean(axis=0)
            base[known] = middle + settings.scale * (base[known] - middle)
        return base, known

    @cached_property
    def _likeness(self) -> np.ndarray:
        """Correlation of the control cells of each context with this one's `[C]`."""
        own = self.control_mean - self.control_mean.mean()
        means = self.record.control_means - self.record.control_means.mean(axis=1, keepdims=True)
        scale = np.linalg.norm(means, axis=1) * np.linalg.norm(own)
        return (means @ own) / np.maximum(scale, _TINY)

    def _ratio(self, code: int) -> np.ndarray:
        """Factor `[G]` (or 1) that moves effects from context `code` to this one."""
        floor = self.settings.floor
        if floor is None:
            return np.ones(1, dtype=np.float32)
        here, there = sensitivity(self.control_mean), sensitivity(self.record.control_means[code])
        return (here + floor) / (there + floor)

    def _mean_effect(self) -> np.ndarray:
        """Where no other context knows anything: the mean of this context's own effects."""
        rows = self._own[self._own >= 0]
        return self.record.effects[rows].mean(axis=0) if len(rows) else np.zeros(self.record.num_genes, np.float32)

    def _told(self, name: str, left_out: bool = False) -> np.ndarray:
        """The base effect `[G]` of a perturbation; without one, from features, else the mean base."""
        row = self._number.get(name)
        if row is not None and self._known[row]:
            return self._base[row]
        if name not in self._guesses:
            guess = None if self._model is None else self._model.predict(name)
            self._guesses[name] = self._unknown if guess is None else guess
        if left_out and not self._known.any() and row is not None and self._own[row] >= 0:
            return self._mean_without(row)
        return self._guesses[name]

    def _mean_without(self, row: int) -> np.ndarray:
        """The mean effect of this context, the perturbation itself left out."""
        rows = self._own[self._own >= 0]
        if len(rows) < 2:
            return np.zeros_like(self._unknown)
        return (self._unknown * len(rows) - self.record.effects[self._own[row]]) / (len(rows) - 1)

    @cached_property
    def _differences(self) -> np.ndarray:
        """Measured less told effects of the perturbations seen here `[m, G]`."""
        told = np.stack([self._told(name) for name in self._seen])
        return self.record.effects[[self._own[self._number[name]] for name in self._seen]] - told

    def _shift(self, names: Sequence[str]) -> _Shift:
        zero = np.zeros(self.record.num_genes, dtype=np.float32)
        if len(names) < 2:
            return _Shift(zero, None)
        chosen = set(names)
        keep = np.array([name in chosen for name in self._seen])
        rows = np.array([self._own[self._number[name]] for name in self._seen])[keep]
        found = self._differences[keep]
        mean, variance = found.mean(axis=0), found.var(axis=0, ddof=1)
        spread = None
        if len(found) >= LEAST_FOR_SPREAD:
            spread = np.maximum(variance - self.record.noise(rows).mean(axis=0), 0.0)
        return _Shift(_by_noise(mean, variance / len(found)) if self.settings.shift else zero, spread)

    def _seen_without(self, name: str) -> np.ndarray:
        """The shift `[G]` that the other perturbations seen here give."""
        count = len(self._seen) - 1
        if not self.settings.shift or count < 2:
            return np.zeros(self.record.num_genes, dtype=np.float32)
        own = self._differences[self._seen.index(name)]
        mean = (self._sums[0] - own) / count
        variance = np.maximum(self._sums[1] - own**2 - count * mean**2, 0.0) / (count - 1)
        return _by_noise(mean, variance / count)

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        return self._differences.sum(axis=0), (self._differences**2).sum(axis=0)

    def _towards_own(self, told: np.ndarray, name: str, shift: _Shift) -> np.ndarray:
        """`told` drawn towards the measured effect; without a known spread, by their sampling noise and the cells seen."""
        row = self._own[self._number[name]]
        noise = self.record.noise(np.array([row]))[0]
        spread = shift.spread if shift.spread is not None else (self.record.effects[row] - told) ** 2
        return told + spread / np.maximum(spread + noise, _TINY) * (self.record.effects[row] - told)


def context_code(record: TrainingEffects, context: str) -> int | None:
    """The position of a context; data without cell types has a single one, whatever it is asked by; None: a new context."""
    if context in record.contexts:
        return record.contexts.index(context)
    return 0 if record.contexts == (SINGLE_CELL_TYPE,) else None


def _by_noise(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """A mean shrunk by the variance of its own estimate."""
    squared = mean**2
    return mean * squared / np.maximum(squared + variance, _TINY)
