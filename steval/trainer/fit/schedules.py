"""Learning-rate schedules as factors of the peak rate, pure functions of the step: nothing to carry over, nothing to save.

With w warm-up steps of N, at step s (from 0):
    warm-up      (s + 1) / (w + 1)                                   for s < w
    cosine       f + (1 - f) · (1 + cos(π · (s - w) / (N - 1 - w))) / 2    from 1 to f
    constant     1
    one-cycle    from 1/25 up to 1 over 30 % of the steps, then down to 1/250,000, both as half cosines (arXiv:1708.07120)
"""

import math

from steval.trainer.settings.phases import PhaseSettings

ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 250_000


def warmup_steps(phase: PhaseSettings) -> int:
    """Steps of the linear warm-up, rounded up."""
    return math.ceil(phase.warmup_fraction * phase.steps)


def rate_factor(phase: PhaseSettings, step: int) -> float:
    """Factor of the peak rates at optimiser step `step` (from 0) of `phase`."""
    if phase.schedule == "one-cycle":
        return _one_cycle(step, phase.steps)
    warmup = warmup_steps(phase)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if phase.schedule == "constant":
        return 1.0
    return _half_cosine(1.0, phase.final_fraction, _progress(step - warmup, phase.steps - warmup))


def _one_cycle(step: int, steps: int) -> float:
    rise = max(math.floor(ONE_CYCLE_RISE * steps), 1)
    if step < rise:
        return _half_cosine(ONE_CYCLE_START, 1.0, step / rise)
    return _half_cosine(1.0, ONE_CYCLE_END, _progress(step - rise, steps - rise))


def _progress(step: int, steps: int) -> float:
    return min(step / (steps - 1), 1.0) if steps > 1 else 0.0


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
