"""Scoring of predicted against real cells: cell-eval's metrics exactly, baselines, ceiling, integrity, reports.

    from steval.evaluator import score, MetricsEvaluator

Names are imported when they are first used, so that `import steval.evaluator` stays quick. Never imports torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Evaluation": "metrics.evaluation",
    "MetricsEvaluator": "dropin",
    "Pair": "cells.pair",
    "ScoreReport": "report.report",
    "evaluate": "metrics.evaluation",
    "evaluate_by_cell_type": "metrics.evaluation",
    "pack": "submission",
    "score": "scoring",
    "write_score_dir": "tables",
}

__all__ = [
    "Evaluation",
    "MetricsEvaluator",
    "Pair",
    "ScoreReport",
    "evaluate",
    "evaluate_by_cell_type",
    "pack",
    "score",
    "write_score_dir",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
