"""Settings of the service, read from the environment: the one place where that happens.

Field `max_cells` is the variable `STEVAL_MAX_CELLS`, and so on. `steval serve` sets the variables from its options.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints

from steval.checkpoints.location import is_hub, locate_checkpoint, shown
from steval.data.outputs import real_path
from steval.errors import ConfigError
from steval.limits import Count, NumBytes, Processes, Seconds, Width
from steval.service.forms import LONGEST_NAME
from steval.settings import Settings

PREFIX = "STEVAL_"
_BETWEEN = re.compile(f"{os.pathsep}(?=[^={os.pathsep}]+=)")
"""Between two NAME=PATH; a reference to a hub has a colon inside."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME)]
_PATH_LISTS = frozenset({"data_dir"})
_NAME_LISTS = frozenset({"cors_origins"})
_NAMED_PATHS = frozenset({"adapters"})


class ServiceSettings(Settings):
    """What is served, by what, to whom, and the limits."""

    checkpoint: Path | None = None
    """The `.safetensors` checkpoint, and the default where there are others; this or `models` is needed to serve, not to build
    a bento."""
    models: Path | None = None
    """A directory: every checkpoint below it is served by its name, loaded on first use, and replaced when its file is."""
    adapters: dict[Name, Path] = Field(default={})
    """Adapters to `checkpoint` by the names that requests give as `adapter`; they share its memory. As a variable: NAME=PATH,
    several separated by colons."""
    max_model_bytes: Annotated[NumBytes, Field(ge=1)] = 8 * 2**30
    """Memory for models where there is a directory of them; the least recently used one goes, never one in use."""
    model_poll_seconds: Seconds = 2.0
    """How often that directory is looked at; a change is taken when it is the same at two looks."""
    controls: Path | None = None
    """h5ad with control cells that `checkpoint` starts from; none: those that it carries."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["float32", "bf16"] = "float32"
    """Weights and activations: `float32` or `bf16`."""
    threads: Processes | None = None
    """CPU threads of a worker; none: all cores divided by the workers."""
    workers: Processes = 1
    """Processes; each holds the checkpoint in memory."""
    data_dir: tuple[Path, ...] = ()
    """Directories whose files `POST /score` may name, and where recorded data files are looked for."""
    job_dir: Path | None = None
    """Where jobs are kept; none: a temporary directory that goes with the service."""
    api_key_file: Path | None = None
    """Hashed keys, one a line (see docs/service.md); none: no key, and only this machine is answered."""
    no_auth: bool = False
    """Answer anybody without a key (behind a proxy that checks)."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the service; empty: none but its own page."""
    max_cache_bytes: NumBytes = 64 * 2**20
    """Answers that a worker keeps; 0: none."""
    max_body_bytes: Annotated[NumBytes, Field(ge=1)] = 2 * 2**20
    """Of a request other than an upload."""
    max_upload_bytes: Annotated[NumBytes, Field(ge=1)] = 2 * 2**30
    """Largest upload of `POST /score`."""
    max_cells: Count = 4096
    """Cells of one prediction request."""
    max_json_values: Count = 2_000_000
    """Numbers of one JSON answer; larger ones are to be asked for as Arrow or h5ad."""
    max_queued_cells: Count = 16384
    """Cells accepted and not yet answered, over all requests of a worker; one key alone may have half of them."""
    max_requests: Count = 256
    """Requests in progress in a worker; one key may have half of them."""
    max_connections: Count = 1024
    """Open connections of a worker; the one that has been idle for longest makes room for another."""
    header_timeout: Seconds = 10.0
    """Seconds that a connection may be without a whole request header."""
    batch_cells: Width = 512
    """Cells that pass the network together."""
    linger_ms: float = Field(default=3.0, ge=0, le=1000)
    """How long a batch may wait for company, while requests come from several clients."""
    queue_timeout: Seconds = 10.0
    """Seconds that a prediction may wait for room in the queue before it is asked to come back."""
    request_timeout: Seconds = 120.0
    """Seconds until a prediction is given up."""
    body_timeout: Seconds = 30.0
    """Seconds for a request's body to arrive."""
    upload_timeout: Seconds = 300.0
    """Seconds for an upload to arrive."""
    send_timeout: Seconds = 60.0
    """Seconds that a client may take no byte of its answer."""
    max_jobs: Count = 16
    """Scoring jobs that wait, and likewise predictions in the background."""
    job_timeout: Seconds = 3600.0
    """Seconds until a job is stopped."""
    job_ttl: Seconds = 24 * 3600.0
    """Seconds that a finished job is kept."""
    max_job_bytes: Annotated[NumBytes, Field(ge=1)] = 32 * 2**30
    """Address space of a scoring job."""
    max_prediction_cells: Count = 1_000_000
    """Cells of one prediction in the background."""
    max_prediction_bytes: Annotated[NumBytes, Field(ge=1)] = 64 * 2**30
    """Of the file that it writes."""
    max_score_values: Count = 1_000_000_000
    """Cells × genes of an uploaded matrix: what a scoring job may unfold in memory."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read every `STEVAL_*` variable that names a field; raises `ConfigError` that names the variables."""
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for name in cls.model_fields:
            text = environment.get(PREFIX + name.upper())
            if text is None or text == "":
                continue
            if name in _PATH_LISTS:
                values[name] = [part for part in text.split(os.pathsep) if part]
            elif name in _NAME_LISTS:
                values[name] = [part.strip() for part in text.split(",") if part.strip()]
            elif name in _NAMED_PATHS:
                values[name] = named_paths([part for part in _BETWEEN.split(text) if part], PREFIX + name.upper())
            else:
                values[name] = text
        settings = cls.parse(values, source=f"the environment ({PREFIX}* variables)")
        settings.require_paths()
        return settings

    def to_environment(self) -> dict[str, str]:
        """Variables that `from_environment` reads back; fields at their default are left out."""
        variables = {}
        for name, value in self:
            if value == type(self).model_fields[name].default:
                continue
            if name in _PATH_LISTS:
                text = os.pathsep.join(str(real_path(part)) for part in value)
            elif name in _NAME_LISTS:
                text = ",".join(value)
            elif name in _NAMED_PATHS:
                text = os.pathsep.join(f"{one}={_text_of(path)}" for one, path in value.items())
            else:
                text = _text_of(value) if isinstance(value, Path) else str(value)
            variables[PREFIX + name.upper()] = text
        return variables

    def require_paths(self) -> None:
        """A `ConfigError` that lists every directory or key file which is not there."""
        problems = [f"data_dir: no such directory: {path}" for path in self.data_dir if not path.is_dir()]
        absent = [path for path in self.adapters.values() if not is_hub(path) and not path.is_file()]
        problems += [f"adapters: no such file: {path}" for path in absent]
        if self.adapters and self.checkpoint is None:
            problems.append("adapters belong to a checkpoint: name it; those below models find theirs by themselves")
        if self.job_dir is not None:
            jobs = real_path(self.job_dir)
            problems += [
                f"job_dir: {self.job_dir} lies in the data directory {path}, whose files every key may name: choose another"
                for path in self.data_dir
                if jobs.is_relative_to(real_path(path))
            ]
        if self.models is not None and not self.models.is_dir():
            problems.append(f"models: no such directory: {self.models}")
        if self.api_key_file is not None and not self.api_key_file.is_file():
            problems.append(f"api_key_file: no such file: {self.api_key_file}")
        if self.no_auth and self.api_key_file is not None:
            problems.append("no_auth and api_key_file exclude each other; give one")
        if problems:
            raise ConfigError("the service's settings are not valid", problems)


def _text_of(path: Path) -> str:
    """A path for another process; what came from a hub keeps its commit."""
    return str(path) if is_hub(path) else shown(path)


def named_paths(texts: Sequence[str], what: str) -> dict[str, Path]:
    """`NAME=PATH` of each, by name; a `ConfigError` that lists what is not so, and names given twice."""
    found: dict[str, Path] = {}
    problems = []
    for text in texts:
        name, separator, path = text.partition("=")
        if not (name.strip() and separator and path):
            problems.append(f"{text!r} is not NAME=PATH")
        elif name in found:
            problems.append(f"{name!r} is given twice")
        else:
            found[name] = Path(path)
    if problems:
        raise ConfigError(f"{what} takes NAME=PATH", problems)
    return found


def require_checkpoint(settings: ServiceSettings) -> Path:
    """The checkpoint's path, or a `ConfigError` that says how to give one."""
    if settings.checkpoint is None:
        raise ConfigError(
            "no checkpoint to serve: start with steval serve CKPT.safetensors or steval serve --models DIR, or set "
            "STEVAL_CHECKPOINT or STEVAL_MODELS for bentoml serve"
        )
    return locate_checkpoint(settings.checkpoint)
