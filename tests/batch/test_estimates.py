"""Estimates stay near what was measured, and follow the options that cost time."""

from pathlib import Path

import pytest

from steval.batch.run import outline
from steval.batch.settings import BatchManifest
from steval.batch.work.estimates import FIRST_GUESS, DataSize, Sizes, estimate_seconds
from steval.evaluator.settings import ScoreSettings
from support.batch_cases import write_manifest

SMALL = DataSize(num_perturbed=1600, num_controls=800, num_genes=6000, has_training=True)
MEDIUM = DataSize(num_perturbed=10_000, num_controls=2000, num_genes=18_080, has_training=True)


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        pytest.param({"metrics_only": True}, 0.36, id="vcc-alone"),
        pytest.param({}, 2.14, id="vcc"),
        pytest.param({"bootstrap": 10_000}, 1.91, id="bootstrap"),
        pytest.param({"ceiling": True}, 2.69, id="ceiling"),
        pytest.param({"integrity": "full"}, 3.04, id="integrity"),
        pytest.param({"profile": "full", "metrics_only": True}, 1.32, id="full-alone"),
        pytest.param({"profile": "full"}, 5.09, id="full"),
        pytest.param({"profile": "full", "ceiling": True, "integrity": "full"}, 9.77, id="everything"),
    ],
)
def test_scoring_is_near_what_one_core_took(options: dict, measured: float):
    units = Sizes(0, 1600, SMALL, ScoreSettings(**options)).units("score")
    assert measured / 1.5 < FIRST_GUESS["score"] * units < measured * 1.5


@pytest.mark.parametrize(("profile", "seconds"), [("vcc", 8.0), ("full", 40.0)])
def test_a_medium_pair_is_near_what_two_cores_took(profile: str, seconds: float):
    sizes = Sizes(0, 10_000, MEDIUM, ScoreSettings(profile=profile, metrics_only=True))
    work = [("de", sizes.units("de"))] * 2 + [("score", sizes.units("score"))]
    assert seconds / 2 < sum(FIRST_GUESS[kind] * size for kind, size in work) / 2 < seconds * 2


def test_measured_tasks_of_one_profile_tell_of_another():
    vcc, full = (Sizes(0, 10_000, MEDIUM, ScoreSettings(profile=profile)).units("score") for profile in ("vcc", "full"))
    rates = {"score": (10.0 / vcc, 1)}
    assert estimate_seconds([("score", vcc)], rates, 1) == pytest.approx(10.0)
    assert estimate_seconds([("score", full)], rates, 1) == pytest.approx(10.0 * full / vcc)
    assert estimate_seconds([("score", vcc)] * 4, rates, 2) == pytest.approx(20.0)


def test_the_plan_of_more_work_takes_longer(case: Path):
    def seconds(**score) -> float:
        path = write_manifest(case, "estimate", score=score, checkpoints=["models/a.safetensors"])
        return outline(path, BatchManifest.load(path)).seconds

    few, many, most = seconds(), seconds(profile="full"), seconds(profile="full", ceiling=True, integrity="full")
    assert few < many < most
    assert seconds(metrics_only=True) < few
