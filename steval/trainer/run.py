"""`finetune`: one run from its configuration to its best checkpoint, or on from where it stopped."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steval.data.files import matching
from steval.data.locks import DirectoryLock
from steval.errors import ConfigError
from steval.limits import require_processes
from steval.model.hardware import lowered_by
from steval.trainer.config import FinetuneConfig
from steval.trainer.estimates import memory_notices
from steval.trainer.fit.devices import is_first_process, training_device
from steval.trainer.progress.keeper import QuickEval, Warmup
from steval.trainer.progress.notices import OnStep, Tell
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.sinks import require_loggers
from steval.trainer.progress.stopping import RunInterrupted, StoppedAtOnceError, StopSignal
from steval.trainer.progress.weights_and_biases import keep_artifacts
from steval.trainer.session import Session
from steval.trainer.settings.network import plan_network
from steval.trainer.sources import open_cells
from steval.trainer.start import Start, recorded_start


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
    stopped_by: int | None = None
    """The signal that asked it to stop."""


def finetune(
    config: FinetuneConfig | None,
    run_dir: Path,
    *,
    init_from: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    allow_mismatch: bool = False,
    from_nothing: bool = False,
    data_dirs: Sequence[Path] = (),
    quick_eval: QuickEval | None = None,
    warmup: Warmup | None = None,
    report: Tell | None = None,
    on_step: OnStep | None = None,
    finish: Callable[[RunResult], None] | None = None,
) -> RunResult:
    """Fine-tune phase after phase into `run_dir` (docs/finetuning.md).

    `init_from`: weights to start from, a steval checkpoint or arc-state's. `resume`: continue the run in `run_dir`, with its
    own configuration; `config` may be None, or differ in where files lie and how they are read. `data_dirs`: where the files of a
    resumed run are looked for that are no longer where they were. `device`: auto, cpu, cuda, cuda:N. `quick_eval` scores
    checkpoints in memory when `checks.quick_eval_every` says so; `warmup` makes the service's record; `report` is told the
    preflight table and each phase; `on_step` is called after each step, `finish` at the end of a finished
    run, while its directory is still this process's. `from_nothing`: go on where phases freeze a backbone of
    random weights.

    Ctrl-C and SIGTERM end it after the step (`finished` is False), a second Ctrl-C at once with `RunInterrupted`. Raises
    `ConfigError` (also where another process is at work in `run_dir`), `DataError`, `CheckpointError`, and `DivergenceError`
    for a loss that is not finite.
    """
    directory = RunDirectory(Path(run_dir))
    leader = is_first_process()
    with ExitStack() as held:
        try:
            with StopSignal() as stop:
                if resume:
                    directory.require_resumable()
                    if leader:
                        held.enter_context(DirectoryLock(directory.path))
                    start = recorded_start(directory, config, init_from, allow_mismatch, data_dirs)
                else:
                    start = _given_start(config, init_from, allow_mismatch, from_nothing)
                    directory.require_kept({"--init-from": init_from, **_files_of(start.config)})
                    if leader:
                        directory.require_startable(overwrite=overwrite)
                _require_able(start.config, quick_eval)
                run = Session.open(start, directory, report, on_gpu=_on_gpu(start.config, device))
                if leader and not resume:  # nothing is made or cleared before everything was read and found good
                    held.enter_context(DirectoryLock(directory.path))
                    directory.require_startable(overwrite=overwrite)
                    directory.clear()
                result = _fit(run, leader, device, stop, quick_eval, warmup, on_step)
        except StoppedAtOnceError as stopped:
            raise RunInterrupted(_interruption(directory, stopped), stopped.number) from None
        if finish is not None and leader and result.finished:
            finish(result)
        if "wandb" in run.config.loggers and leader and result.finished:
            keep_artifacts(directory, run.config.wandb_project)
        return result


def rehearse(
    config: FinetuneConfig,
    *,
    init_from: Path | None = None,
    device: str = "auto",
    allow_mismatch: bool = False,
    from_nothing: bool = False,
    quick_eval: QuickEval | None = None,
    report: Tell | None = None,
) -> None:
    """Everything of `finetune` up to its first step, told and not written: preflight, phases, and what it will take.

    A few steps are computed and thrown away to estimate the time. Raises as `finetune`.
    """
    start = _given_start(config, init_from, allow_mismatch, from_nothing)
    _require_able(start.config, quick_eval)
    run = Session.open(start, RunDirectory(Path()), report, on_gpu=_on_gpu(start.config, device))
    with lowered_by(lambda: _less_memory(run.config)):
        run.rehearse(device)


def estimate(
    config: FinetuneConfig, *, init_from: Path | None = None, device: str = "auto", report: Tell | None = None
) -> None:
    """Tell what the run would take of each device's memory, for every way to share and to spare it.

    Labels are read and the network is planned; no expression is read, nothing is computed or written. Raises as `finetune`.
    """
    start = _given_start(config, init_from, True, True)
    base = start.read_base()
    cells = open_cells(start.reading.data, base, needs_batch=False, audited=False)
    model = plan_network(config.network, cells, config.sets.size, base.source.config if base else None)
    on_gpu = _on_gpu(config, device)
    for notice in memory_notices(start.config, model, on_gpu=on_gpu):
        if report is not None:
            report(notice)


def _on_gpu(config: FinetuneConfig, device: str) -> bool:
    return training_device(config.compute, device).type == "cuda"


def _fit(
    run: Session, leader: bool, device: str, stop: StopSignal, quick_eval: QuickEval | None, warmup: Warmup | None,
    on_step: OnStep | None,
) -> RunResult:  # fmt: skip
    if leader:
        run.start(warmup)
    stop.waits = True
    try:
        with lowered_by(lambda: _less_memory(run.config)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            finished = run.fit_phases(device, stop, quick_eval, on_step)
    finally:
        stop.close()
        run.finish()
    if leader:
        run.keep_adapter()
    directory, progress = run.directory, run.progress
    return RunResult(
        directory.path, directory.best_path, progress.best, finished, progress.step, progress.seconds,
        stopped_by=None if finished else stop.number,
    )  # fmt: skip


def _given_start(
    config: FinetuneConfig | None, init_from: Path | None, allow_mismatch: bool, from_nothing: bool
) -> Start:
    if config is None:
        raise ConfigError("a run needs a configuration; only --resume can do without")
    config = config.with_absolute_paths()
    return Start(config, config, init_from=init_from, allow_mismatch=allow_mismatch, from_nothing=from_nothing)


def _require_able(config: FinetuneConfig, quick_eval: QuickEval | None) -> None:
    """What the configuration needs beside itself."""
    if config.checks.quick_eval_every and quick_eval is None:
        raise ConfigError(
            "checks.quick_eval_every is set, but this call brings no evaluation; use `steval finetune`, or set it to 0"
        )
    require_loggers(config.loggers)
    require_processes(config.compute.workers, "compute.workers")


def _interruption(directory: RunDirectory, stopped: StoppedAtOnceError) -> str:
    if not directory.state_path.exists():
        return f"stopped at once by {stopped}, before any state was saved; nothing half-written was left"
    return (
        f"stopped at once by {stopped}; steps since the last saved state are lost. Continue from it with: "
        f"steval finetune --resume {directory.path}"
    )


def _files_of(config: FinetuneConfig) -> dict[str, Path]:
    """Every file that a configuration names, by what it is."""
    data = config.data
    named = {
        "data.features": data.features, "data.gene_list": data.gene_list, "data.input_gene_list": data.input_gene_list,
        "data.evaluation_file": data.evaluation_file, "data.split": getattr(data.split, "path", None),
    }  # fmt: skip
    files = {f"data.files: {path}": path for pattern in data.files for path in matching(pattern)}
    return files | {what: Path(path) for what, path in named.items() if path is not None}


def _less_memory(config: FinetuneConfig) -> str:
    sets = config.sets
    return (
        "Lower, in this order of harmlessness: "
        f"sets.per_batch (now {sets.per_batch}; raise sets.accumulation, now {sets.accumulation}, by the same factor), "
        f"compute.precision to bf16-mixed (now {config.compute.precision}), "
        f"compute.activation_checkpointing to true (now {str(config.compute.activation_checkpointing).lower()}), "
        f"sets.size (now {sets.size}; this changes what is learned). `steval finetune CONFIG --estimate` tells what each choice "
        "takes. Then start again with --overwrite"
    )
