"""Every error that steval raises on purpose; the docstring is the map.

    StevalError                exit 1, HTTP 500
    ├── ConfigError            exit 2, HTTP 400   a bad option, configuration or request
    │   └── DeviceMemoryError           HTTP 503  more of a device's memory was asked for than there is
    ├── CheckpointError        exit 3, HTTP 503   a checkpoint that cannot be trusted or read
    ├── DataError              exit 4, HTTP 422   data that breaks its contract
    │   ├── UnknownPerturbationError    HTTP 404  a name that the vocabulary lacks
    │   ├── MissingReferenceError       HTTP 422  a recorded data file that is nowhere to be found
    │   ├── OutputError                 HTTP 503  a file that cannot be written (a full disk)
    │   ├── NotFiniteError              HTTP 422  NaN or infinite values that were to be written
    │   └── EvaluationError    exit 4, HTTP 422   predictions and real data that cannot be scored together
    ├── BatchError             exit 5             some jobs of a batch failed
    └── ServiceError           exit 2, its status an HTTP answer that is no 200 (exit 1 for a 500: a bug in the service)

The command line maps `exit_code`, the service `http_status`. Libraries raise; only the edges print or exit.
A message says what broke, what was received, what is allowed and what to do next; `problems` holds the single findings
where one input has several.
"""

from collections.abc import Sequence

from steval.nearest import Names
from steval.nearest import nearest_names as nearest_names
from steval.wording import counted, listed

MOST_SUGGESTED = 10
"""Unknown names that get suggestions."""
LONGEST_SHOWN = 100


class StevalError(Exception):
    """Base of all errors with a meaning for the user."""

    exit_code = 1
    http_status = 500
    code = "error"

    def __init__(self, message: str, problems: Sequence[str] = ()):
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


class ConfigError(StevalError):
    """A bad option, configuration file or request."""

    exit_code = 2
    http_status = 400
    code = "bad_configuration"


class DeviceMemoryError(ConfigError):
    """What was asked for takes more memory than the device has; the message says what to lower."""

    http_status = 503
    code = "out_of_memory"


class CheckpointError(StevalError):
    """A checkpoint that cannot be trusted or read."""

    exit_code = 3
    http_status = 503
    code = "bad_checkpoint"


class DataError(StevalError):
    """Data that breaks its contract: columns, genes, scale, cells."""

    exit_code = 4
    http_status = 422
    code = "bad_data"


class UnknownPerturbationError(DataError):
    """A perturbation that the checkpoint has no features for; the message lists the nearest names."""

    http_status = 404
    code = "unknown_perturbation"

    def __init__(self, unknown: Sequence[str], known: Sequence[str]):
        self.unknown = tuple(unknown)
        names = Names(known)
        self.nearest = {name: names.nearest(name) for name in self.unknown[:MOST_SUGGESTED]}
        """Of the first unknown names: suggestions cost time, and nobody reads thousands."""
        problems = [
            f"{_short(name)}: nearest known {listed(near) if near else 'none'}" for name, near in self.nearest.items()
        ]
        if len(self.unknown) > MOST_SUGGESTED:
            problems.append(f"and {counted(len(self.unknown) - MOST_SUGGESTED, 'more unknown name')}")
        super().__init__(
            f"unknown perturbation{'s' if len(self.unknown) > 1 else ''}; the checkpoint knows {counted(len(known), 'name')}",
            problems,
        )


class MissingReferenceError(DataError):
    """A data file that a checkpoint records and that is nowhere to be found (a changed one is a plain `DataError`)."""

    code = "missing_reference"


class OutputError(DataError):
    """A file that cannot be written where it was asked for; nothing is under its name."""

    http_status = 503
    code = "cannot_write"


class NotFiniteError(DataError):
    """Values that were to be written and are NaN or infinite; nothing is under the file's name."""

    code = "not_finite"


class EvaluationError(DataError):
    """Predicted and real cells that cannot be scored together."""

    code = "bad_evaluation"


class BatchError(StevalError):
    """Some jobs of a batch failed; the ledger says which and why."""

    exit_code = 5
    code = "batch_failed"


class ServiceError(StevalError):
    """An HTTP answer other than success, with its own status and code; for a client also a service that cannot be reached."""

    def __init__(self, message: str, *, status: int, code: str, retry_after: float | None = None):
        self.exit_code = 1 if status == 500 else 2
        self.http_status = status
        self.code = code
        self.retry_after = retry_after
        super().__init__(message)


def _short(name: str) -> str:
    return repr(name if len(name) <= LONGEST_SHOWN else name[:LONGEST_SHOWN] + "…")
