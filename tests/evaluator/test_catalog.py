"""The tables of metrics, profiles, baselines and checks: whole, frozen, and the ones that the docs describe."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import get_args

import pytest

from steval.errors import ConfigError
from steval.evaluator.integrity.checks import CHECKS
from steval.evaluator.metrics.catalog import BY_COLUMN, CATALOG
from steval.evaluator.metrics.metric import Kind
from steval.evaluator.metrics.profiles import PROFILES, profile_metrics, resolve, scored_scale
from steval.evaluator.reference.baselines import BASELINES, REFERENCE
from steval.evaluator.settings import ScoreChoice, ScoreSettings
from steval.service.schemas import ScoreBody

PAGE = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", CATALOG.values(), ids=CATALOG)
def test_every_metric_says_what_it_is(metric):
    assert callable(metric.function)
    assert metric.kind in get_args(Kind)
    assert metric.sentence.startswith(metric.description)
    assert metric.sentence.endswith((" is good.", "good in itself."))
    assert metric.undefined
    assert all(BY_COLUMN[column] is metric for column in metric.columns)
    assert metric.bounds[0] == 0 or metric.bounds in ((-1, 1), (None, None))
    with pytest.raises(FrozenInstanceError):
        metric.best = "none"
    with pytest.raises(TypeError):
        metric.options["k"] = 1


def test_a_sentence_reads_well():
    assert CATALOG["mae"].sentence == "Mean absolute error of the mean expression, over genes; from 0 up, low is good."
    assert CATALOG["pr_auc"].sentence.endswith("; from 0 to 1, high is good.")


def test_metrics_with_a_panel_first_stand_in_order():
    places = sorted(metric.shown for metric in CATALOG.values() if metric.shown is not None)
    assert places == list(range(len(places)))


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_names_metrics_on_one_scale(name):
    assert {metric.name for metric in resolve(name)} == set(profile_metrics(name))
    assert scored_scale(name) == PROFILES[name].scale
    assert PROFILES[name].sentence.endswith(".")


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_every_baseline_is_described(baseline):
    assert f"| {baseline.kind} |" in PAGE
    assert baseline.sentence.endswith(".")
    assert all(len(colour) == 7 and colour.startswith("#") for colour in baseline.colours)
    assert REFERENCE in BASELINES


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_every_check_is_described(check):
    row = next(line for line in PAGE.splitlines() if line.startswith("| ") and check.name in line.split("|")[1])
    assert ("--integrity full" in row) is check.full


def test_a_service_lets_its_clients_choose_what_is_scored():
    fields = {"perturbation_column", "control", "cell_type_column", "scale", "drop_unlabelled", "model", "adapter"}
    files = {"predictions", "real", "train"}
    assert set(ScoreChoice.model_fields) <= set(ScoreBody.model_fields)
    assert set(ScoreBody.model_fields) - set(ScoreChoice.model_fields) - files <= fields
    assert ScoreBody.model_json_schema()["properties"]["profile"]["enum"] == list(PROFILES)


def test_every_wrong_option_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        ScoreSettings.parse({"by": "batch", "integrity": "some", "bootstrap": -1, "splits": 0, "ceilling": True})
    assert len(caught.value.problems) == 5
    assert "did you mean 'ceiling'" in str(caught.value)
