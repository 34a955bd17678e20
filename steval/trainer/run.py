"""`finetune`: one run from its configuration to its best checkpoint, or on from where it stopped."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steval.errors import ConfigError, StevalError
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.devices import is_first_process
from steval.trainer.progress.keeper import QuickEval, Warmup
from steval.trainer.progress.notices import OnStep, Tell
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.sinks import require_loggers
from steval.trainer.progress.stopping import StopSignal
from steval.trainer.session import Session


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    run_dir: Path
    best: Path
    """The checkpoint to use, `best-val.safetensors`."""
    best_record: dict[str, Any]
    """`metric`, `value`, `step`, `phase` of it."""
    finished: bool
    """False where the run was asked to stop; `--resume` continues it."""
    step: int
    """Optimiser steps done."""
    seconds: float
    """Seconds of training, over all resumptions."""


def finetune(
    config: FinetuneConfig | None,
    run_dir: Path,
    *,
    init_from: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    allow_mismatch: bool = False,
    quick_eval: QuickEval | None = None,
    warmup: Warmup | None = None,
    report: Tell | None = None,
    on_step: OnStep | None = None,
) -> RunResult:
    """Fine-tune phase after phase into `run_dir` (docs/finetuning.md).

    `init_from`: weights to start from, a steval checkpoint or arc-state's. `resume`: continue the run in `run_dir`, with its
    own configuration (`config` may be None; another one is an error). `device`: auto, cpu, cuda, cuda:N. `quick_eval`
    scores checkpoints in memory when `checks.quick_eval_every` says so; `warmup` makes the service's record; `report` is
    told the preflight table and each phase; `on_step` is called after each step. Raises `ConfigError`, `DataError`,
    `CheckpointError`, and `DivergenceError` for a loss that is not finite.
    """
    directory = RunDirectory(Path(run_dir))
    if resume:
        config, init_from, allow_mismatch = _recorded(directory, config, init_from, allow_mismatch)
    if config is None:
        raise ConfigError("a run needs a configuration; only --resume can do without")
    if config.checks.quick_eval_every and quick_eval is None:
        raise ConfigError(
            "checks.quick_eval_every is set, but this call brings no evaluation; use `steval finetune`, or set it to 0"
        )
    require_loggers(config.loggers)
    config = config.with_absolute_paths()
    leader = is_first_process()
    if leader and not resume:
        directory.require_startable(overwrite=overwrite)
    run = Session.open(config, directory, init_from, resume=resume, allow_mismatch=allow_mismatch, report=report)
    run.start(leader, warmup)
    stop = StopSignal()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            stop.listen()
            finished = run.fit_phases(device, stop, quick_eval, on_step)
    except torch.OutOfMemoryError as error:
        raise StevalError(_out_of_memory(config)) from error
    finally:
        stop.close()
        run.finish()
    return RunResult(
        directory.path, directory.best_path, run.progress.best, finished, run.progress.step, run.progress.seconds
    )


def _recorded(
    directory: RunDirectory, config: FinetuneConfig | None, init_from: Path | None, allow_mismatch: bool
) -> tuple[FinetuneConfig, Path | None, bool]:
    """Configuration and start of the run to resume; another configuration or start is a `ConfigError`."""
    directory.require_resumable()
    recorded, record = FinetuneConfig.load(directory.config_path), directory.read_record()
    if init_from is not None:
        raise ConfigError("--resume continues with the run's own weights; leave --init-from out")
    given = config.with_absolute_paths() if config is not None else None
    if given is not None and given.model_copy(update={"network": recorded.network}).digest() != recorded.digest():
        raise ConfigError(
            f"the configuration differs from the one that {directory.path} was started with; resume without a configuration, "
            "or start another run with --init-from"
        )
    stored = record.get("init_from")
    return recorded, Path(stored) if stored else None, allow_mismatch or bool(record.get("allow_mismatch"))


def _out_of_memory(config: FinetuneConfig) -> str:
    sets = config.sets
    return (
        "the device ran out of memory. Lower, in this order of harmlessness: "
        f"sets.per_batch (now {sets.per_batch}; raise sets.accumulation, now {sets.accumulation}, by the same factor), "
        f"compute.precision to bf16-mixed (now {config.compute.precision}), "
        f"compute.activation_checkpointing to true (now {str(config.compute.activation_checkpointing).lower()}), "
        f"sets.size (now {sets.size}; this changes what is learned). Then start again with --overwrite"
    )
