"""What a run's curves tell: each symptom with its evidence and the setting to change.

The symptoms are those of the published ST-Tahoe fine-tuning: a flat validation loss, divergence, a scheduler carried
over from an old checkpoint, the best checkpoint long before the last, clipping that hides exploding gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steval.workflows.curves import Curve, Curves

Severity = Literal["problem", "warning", "note"]

FLAT = 0.01
"""A validation loss that changes by less than this share of itself over the second half is flat."""
FALLING = 0.05
"""A training loss that falls by more than this share over the second half is falling."""
DIVERGED = 1.5
"""A loss that ends above this multiple of its lowest (smoothed) value has diverged."""
EARLY = 0.5
"""A best step in this first part of the run is far before the last."""
JUMP = 1.3
"""A learning rate that rises by this factor after having fallen is a saw-tooth."""
CLIPPED = 0.9


@dataclass(frozen=True)
class Symptom:
    """One thing that deserves attention."""

    severity: Severity
    topic: str
    evidence: str
    change: str
    """Which setting to change, and to what."""


def curve_symptoms(curves: Curves, clip: float | None = None) -> list[Symptom]:
    """All symptoms in the curves; `clip` is the gradient clipping of the run, where it is known."""
    checks: list[Callable[[Curves], list[Symptom]]] = [
        _not_finite,
        _flat_validation,
        _divergence,
        _early_best,
        _saw_teeth,
    ]
    findings = [finding for check in checks for finding in check(curves)]
    return findings + (_always_clipped(curves, clip) if clip else [])


def validation_curve(curves: Curves) -> Curve | None:
    """The loss that selects checkpoints: `val/gene`, else the first other validation loss."""
    return curves.get("val/gene") or next(iter(curves.starting_with("val/")), None)


def _not_finite(curves: Curves) -> list[Symptom]:
    broken = [
        f"{name} at step {int(curve.steps[~np.isfinite(curve.values)][0])}"
        for name in curves.names
        if (curve := curves.get(name)) is not None and not np.isfinite(curve.values).all()
    ]
    if not broken:
        return []
    change = "lower phases.N.rates, keep optimiser.clip at 1.0, and use compute.precision 32 to find the cause"
    return [Symptom("problem", "not finite", "; ".join(broken[:4]), change)]


def _flat_validation(curves: Curves) -> list[Symptom]:
    train, val = curves.get("train/total"), validation_curve(curves)
    if train is None or val is None or len(val.values) < 6 or len(train.values) < 6:
        return []
    train_change, val_change = _second_half_change(train.values), _second_half_change(val.values)
    if not (train_change < -FALLING and val_change > -FLAT):
        return []
    evidence = (
        f"over the second half of the run {train.name} changes by {100 * train_change:+.1f} %, {val.name} by "
        f"{100 * val_change:+.1f} %"
    )
    if val_change > FLAT:
        topic, change = (
            "over-fitting",
            "use best-val.safetensors; raise network.dropout or optimiser.weight_decay (to 5e-3)",
        )
    else:
        topic, change = "validation flat while training falls", (
            "check that validation cells come from the same space and scale (steval finetune prints the preflight "
            "table), unfreeze more (phases.N.trains), and look at every head: one number hid a six-fold better MAE"
        )  # fmt: skip
    return [Symptom("problem", topic, evidence, change)]


def _divergence(curves: Curves) -> list[Symptom]:
    findings = []
    for curve in (curves.get("train/total"), validation_curve(curves)):
        if curve is None or len(curve.values) < 6 or not np.isfinite(curve.values).all():
            continue
        smooth = _smooth(curve.values)
        lowest = int(np.argmin(smooth))
        if lowest < len(smooth) - 1 and smooth[lowest] > 0 and smooth[-1] > DIVERGED * smooth[lowest]:
            ratio = smooth[-1] / smooth[lowest]
            evidence = f"{curve.name} ends at {smooth[-1]:.4g}, {ratio:.1f} times its lowest value at step {curve.steps[lowest]}"
            change = "lower phases.N.rates (halve them), lengthen warmup_fraction, keep optimiser.clip at 1.0"
            findings.append(Symptom("problem", "divergence", evidence, change))
    return findings


def _early_best(curves: Curves) -> list[Symptom]:
    val = validation_curve(curves)
    if val is None or len(val.values) < 6 or not np.isfinite(val.values).any():
        return []
    best = int(np.nanargmin(val.values))
    last_step = val.steps[-1]
    if val.steps[best] > EARLY * last_step or val.values[-1] <= val.values[best] * (1 + FLAT):
        return []
    where = f"{val.name} is best at step {val.steps[best]} of {last_step}"
    evidence = f"{where} ({val.values[best]:.4g}, at the end {val.values[-1]:.4g})"
    change = (
        "use best-val.safetensors, and start later phases from it (phases.N.start: best), not from the last weights"
    )
    return [Symptom("warning", "best checkpoint far before the last", evidence, change)]


def _saw_teeth(curves: Curves) -> list[Symptom]:
    findings = []
    rates = [*curves.starting_with("lr/"), *curves.starting_with("lr-")]
    for curve in rates:
        jumps = [step for phase in _phases_of(curves, curve) for step in _jumps(*phase)]
        if jumps:
            shown = ", ".join(str(step) for step in jumps[:5])
            evidence = f"{curve.name} rises again after having fallen, at step {shown} ({len(jumps)} times)"
            change = (
                "the scheduler's state came from another run: start from weights alone (--init-from), resume only the same run "
                "(--resume); each phase has a schedule of its own"
            )
            findings.append(Symptom("problem", "learning-rate saw-teeth", evidence, change))
    return findings[:1]


def _always_clipped(curves: Curves, clip: float) -> list[Symptom]:
    norm = curves.get("grad_norm/total")
    if norm is None or len(norm.values) < 6:
        return []
    share = float((norm.values > clip).mean())
    if share < CLIPPED:
        return []
    evidence = (
        f"grad_norm/total is above the clip of {clip:g} in {100 * share:.0f} % of the rows "
        f"(median {np.median(norm.values):.3g})"
    )
    return [
        Symptom(
            "note", "gradients always clipped", evidence, "the clip sets the step size; lower phases.N.rates instead"
        )
    ]


def _phases_of(curves: Curves, curve: Curve) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps and values of the curve for each phase; a rate may rise again where a phase begins."""
    if "phase" not in curves.frame.columns:
        return [(curve.steps, curve.values)]
    kept = curves.frame.select("phase", "step", curve.name).drop_nulls()
    return [
        (part["step"].to_numpy(), part[curve.name].to_numpy())
        for part in kept.partition_by("phase", maintain_order=True)
    ]


def _jumps(steps: np.ndarray, values: np.ndarray) -> list[int]:
    """Steps at which a rate that had fallen by a tenth from its peak rises by `JUMP`."""
    found, peak, fallen = [], -np.inf, False
    for step, before, now in zip(steps[1:], values[:-1], values[1:], strict=True):
        peak = max(peak, before)
        fallen = fallen or before < 0.9 * peak
        if fallen and before > 0 and now > JUMP * before:
            found.append(int(step))
            peak, fallen = now, False
    return found


def _second_half_change(values: np.ndarray) -> float:
    """Relative change from the middle to the end, smoothed."""
    smooth = _smooth(values)
    middle = smooth[len(smooth) // 2]
    return float((smooth[-1] - middle) / abs(middle)) if middle else 0.0


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running median over about a tenth of the curve, at least three values."""
    width = max(3, len(values) // 10) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
