"""Columns of the evaluator's frames and of the files they become, with their types; docs/scoring.md says what they mean."""

from typing import Any

import polars as pl

Schema = dict[str, Any]


def _text(*names: str) -> Schema:
    return dict.fromkeys(names, pl.String)


def _numbers(*names: str) -> Schema:
    return dict.fromkeys(names, pl.Float64)


def _counts(*names: str) -> Schema:
    return dict.fromkeys(names, pl.Int64)


def _bounds(*names: str) -> Schema:
    return _numbers(*(f"{name}_{end}" for name in names for end in ("low", "high")))


# Of one pair; without the cell type, which assembly puts before.
MEMBER_SCHEMA = _text("metric") | _numbers("value", "baseline", "normalised", "unclipped")
INTERVAL_SCHEMA = _text("quantity", "metric") | _numbers("low", "high") | _counts("num_perturbations")
FAILURE_SCHEMA = _text("perturbation", "metric", "reason")
CHANGE_SCHEMA = _text("perturbation", "gene") | _numbers("real_change", "pred_change", "real_fdr", "pred_fdr")
DE_COUNT_SCHEMA = _text("perturbation") | _counts("num_real", "num_pred", "num_shared")

_OF_TYPE = _text("cell_type")
BREAKDOWN_SCHEMA = (
    _OF_TYPE
    | _text("metric", "family")
    | _numbers("value", "baseline", "ceiling", "replicate", "normalised", "unclipped")
    | _text("best")
    | _bounds("value", "normalised", "unclipped")
    | _counts("num_perturbations", "num_without_value")
    | _text("note")
)
BASELINES_SCHEMA = _OF_TYPE | _text("metric", "baseline") | _numbers("value", "normalised", "unclipped")
OVERALL_SCHEMA = (
    _OF_TYPE | _text("predictor") | _numbers("overall", "leaderboard", "unclipped") | _bounds("overall", "unclipped")
)
INTEGRITY_SCHEMA = _OF_TYPE | _text("check", "status") | _numbers("measurement", "limit") | _text("sentence")
INTERVALS_SCHEMA = _OF_TYPE | INTERVAL_SCHEMA
FAILURES_SCHEMA = _OF_TYPE | FAILURE_SCHEMA
CHANGES_SCHEMA = _OF_TYPE | CHANGE_SCHEMA
DE_COUNTS_SCHEMA = _OF_TYPE | DE_COUNT_SCHEMA
COMPARISON_SCHEMA = (
    _OF_TYPE
    | _text("quantity", "metric")
    | _numbers("a", "b", "difference", "low", "high", "p_value")
    | {"exceeds_noise": pl.Boolean}
    | _text("better", "sentence")
)
"""Of `comparison.compare_scores`."""
