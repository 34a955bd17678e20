"""steval: fine-tune, serve and score State Transition (ST) models of cell responses.

    import steval as sv

    train, test = sv.hold_out(sv.prepare(sv.example(), cell_type_name="H1"), test=0.4)
    run = sv.finetune(train)
    sv.score(run.model.predict(test), test, train=train)

Names are imported when they are first used, so that `import steval` stays quick; `__init__.pyi` has them for type checkers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Model": "notebook.model.Model",
    "RemoteModel": "notebook.remote.RemoteModel",
    "Run": "notebook.runs.Run",
    "connect": "notebook.remote.connect",
    "example": "notebook.cells.example",
    "finetune": "notebook.runs.finetune",
    "hold_out": "notebook.cells.hold_out",
    "load": "notebook.model.load",
    "open_run": "notebook.runs.open_run",
    "prepare": "notebook.cells.prepare",
    "read_score": "evaluator.tables.read_score_dir",
    "score": "notebook.scoring.score",
    "write_score": "evaluator.tables.write_score_dir",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    try:
        return getattr(import_module(f"{__name__}.{module}"), attribute)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(f"{__name__}."):
            raise
        raise AttributeError(
            f"{__name__}.{name} comes with steval; installed is steval-client, which has steval.service.client.ServiceClient"
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
