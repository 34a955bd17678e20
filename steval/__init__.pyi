from steval.evaluator.tables import read_score_dir as read_score
from steval.evaluator.tables import write_score_dir as write_score
from steval.notebook.cells import example as example
from steval.notebook.cells import hold_out as hold_out
from steval.notebook.cells import prepare as prepare
from steval.notebook.model import Model as Model
from steval.notebook.model import load as load
from steval.notebook.remote import RemoteModel as RemoteModel
from steval.notebook.remote import connect as connect
from steval.notebook.runs import Run as Run
from steval.notebook.runs import finetune as finetune
from steval.notebook.runs import open_run as open_run
from steval.notebook.scoring import score as score

__version__: str
__all__ = [
    "Model",
    "RemoteModel",
    "Run",
    "__version__",
    "connect",
    "example",
    "finetune",
    "hold_out",
    "load",
    "open_run",
    "prepare",
    "read_score",
    "score",
    "write_score",
]
