"""Scoring of predicted against real cells: cell-eval's metrics exactly, baselines, ceiling, integrity, reports.

    from steval.evaluator import score, MetricsEvaluator

Names are imported when they are first used, so that `import steval.evaluator` stays quick. Never imports torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    "Evaluation": "evaluate",
    "MetricsEvaluator": "dropin",
    "Pair": "pair",
    "Report": "report",
    "evaluate": "evaluate",
    "evaluate_by_cell_type": "evaluate",
    "pack": "pack",
    "score": "score",
    "write_score_dir": "tables",
}

__all__ = [
    "Evaluation",
    "MetricsEvaluator",
    "Pair",
    "Report",
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


class _Room(ModuleType):
    """Keeps `steval.evaluator.score` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room
