"""Learning-rate factors have the values that the formulas give."""

import pytest

from steval.trainer.fit.schedules import rate_factor, warmup_steps
from steval.trainer.settings.phases import PhaseSettings


def phase(**values: object) -> PhaseSettings:
    return PhaseSettings.parse({"name": "p", "steps": 100, **values})


def test_cosine_warms_up_over_five_percent_and_ends_at_ten() -> None:
    settings = phase()
    assert warmup_steps(settings) == 5
    assert [rate_factor(settings, step) for step in range(5)] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert rate_factor(settings, 5) == 1.0
    assert rate_factor(settings, 52) == pytest.approx(0.55)  # half way from step 5 to 99
    assert rate_factor(settings, 99) == pytest.approx(0.1)
    factors = [rate_factor(settings, step) for step in range(5, 100)]
    assert factors == sorted(factors, reverse=True)


def test_constant_keeps_the_peak() -> None:
    settings = phase(schedule="constant", warmup_fraction=0)
    assert {rate_factor(settings, step) for step in range(100)} == {1.0}


def test_one_cycle_peaks_at_thirty_percent() -> None:
    settings = phase(schedule="one-cycle")
    factors = [rate_factor(settings, step) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 25)
    assert max(range(100), key=factors.__getitem__) == 30
    assert factors[30] == pytest.approx(1.0)
    assert factors[99] == pytest.approx(1 / 250_000)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_one_step_is_enough(schedule: str) -> None:
    assert rate_factor(phase(steps=1, schedule=schedule), 0) > 0
