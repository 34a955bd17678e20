"""Fine-tuning with several seeds: a run for each in a directory of its own, whose best checkpoints predict together.

`RUN/seed-7`, `RUN/seed-8` … are runs like any other; `RUN/seeds.json` says which there are to be and how they start, so that one
command continues them all.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from steval.checkpoints.location import SEEDS_NAME, holds_seeds, is_hub, local, shown
from steval.data.files import atomic_path
from steval.data.locks import LOCK_NAME, DirectoryLock
from steval.data.outputs import require_output_directory
from steval.errors import ConfigError
from steval.limits import Seed
from steval.settings import Settings
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.devices import num_processes
from steval.trainer.progress.notices import Notice, Tell
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.run import RunResult
from steval.workflows.finetune import finetune_with_evaluation


class SeedPlan(Settings):
    """The runs that there are to be, and how each of them starts."""

    first: Seed
    """Seed of the first run; the others count on from it."""
    number: Annotated[int, Field(ge=1, le=10**6)]
    """How many runs."""
    config: dict[str, Any]
    """The resolved configuration, whose own seed is the first."""
    init_from: str | None = None
    allow_mismatch: bool = False
    from_nothing: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each run."""
        return tuple(range(self.first, self.first + self.number))

    def configuration(self, seed: int) -> FinetuneConfig:
        """Of the run with `seed`."""
        return FinetuneConfig.parse({**self.config, "seed": seed}, source=SEEDS_NAME)


@dataclass(frozen=True)
class SeedRuns:
    """What the runs left behind, in order; after one that was asked to stop there are no more."""

    path: Path
    results: tuple[RunResult, ...]
    finished: bool
    """Whether every run is."""

    @property
    def run_dirs(self) -> tuple[Path, ...]:
        """What `steval predict` takes together."""
        return tuple(result.run_dir for result in self.results)


def finetune_seeds(
    config: FinetuneConfig,
    path: Path,
    number: int,
    *,
    init_from: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    allow_mismatch: bool = False,
    from_nothing: bool = False,
    report: Tell | None = None,
) -> SeedRuns:
    """`number` runs, one after the other, with the configuration's seed and those after it; see `finetune_with_evaluation`.

    Raises as it does, and `ConfigError` where `path` holds something else, or runs and no `overwrite`.
    """
    _require_one_process(config, device)
    absolute = config.with_absolute_paths()
    values = {
        "first": config.seed,
        "number": number,
        "config": absolute.as_dict(),
        "init_from": None if init_from is None else _start(init_from),
        "allow_mismatch": allow_mismatch,
        "from_nothing": from_nothing,
    }
    plan = SeedPlan.parse(values, source="--seeds")
    _require_startable(path, overwrite)
    require_output_directory(path, {"--init-from": init_from})
    with DirectoryLock(path):
        _clear(path)
        with atomic_path(path / SEEDS_NAME) as partial:
            partial.write_text(json.dumps(plan.as_dict(), indent=1) + "\n", encoding="utf-8")
        return _run_all(plan, path, device, (), report)


def _start(init_from: Path) -> str:
    """What every run starts from; of a branch at a hub, which may move, the commit that it means now."""
    return shown(local(init_from)) if is_hub(init_from) else str(Path.cwd() / init_from)


def resume_seeds(
    path: Path, *, device: str = "auto", data_dirs: Sequence[Path] = (), report: Tell | None = None
) -> SeedRuns:
    """Continue what `finetune_seeds` began in `path`: a run that was stopped goes on, one that had not begun begins."""
    try:
        plan = SeedPlan.model_validate_json((path / SEEDS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path / SEEDS_NAME} cannot be read: {error}") from error
    with DirectoryLock(path):
        return _run_all(plan, path, device, data_dirs, report)


def _run_all(plan: SeedPlan, path: Path, device: str, data_dirs: Sequence[Path], report: Tell | None) -> SeedRuns:
    results: list[RunResult] = []
    for place, seed in enumerate(plan.seeds, 1):
        directory = path / f"seed-{seed}"
        if report is not None:
            report(Notice(f"run {place} of {plan.number}", ("seed", "run"), ((seed, str(directory)),)))
        begun = RunDirectory(directory).record_path.is_file()
        results.append(
            finetune_with_evaluation(
                None if begun else plan.configuration(seed),
                directory,
                init_from=Path(plan.init_from) if plan.init_from and not begun else None,
                resume=begun,
                device=device,
                allow_mismatch=plan.allow_mismatch,
                from_nothing=plan.from_nothing,
                data_dirs=data_dirs,
                report=report,
            )
        )
        if not results[-1].finished:
            break
    whole = len(results) == plan.number and results[-1].finished
    return SeedRuns(path, tuple(results), whole)


def _require_one_process(config: FinetuneConfig, device: str) -> None:
    if num_processes(config.compute, device) > 1:
        raise ConfigError(
            "--seeds trains one run after the other in this process, and this run asks for several processes: set "
            "compute.devices=1, or start a run for each seed with --set seed=N and give all of them to steval predict"
        )


def _require_startable(path: Path, overwrite: bool) -> None:
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if holds_seeds(path) and not overwrite:
        raise ConfigError(
            f"{path} already holds runs of several seeds ({SEEDS_NAME} is there). Continue them with --resume, replace them "
            "with --overwrite, or choose another directory"
        )
    foreign = sorted(names - {LOCK_NAME, SEEDS_NAME})
    if foreign and not holds_seeds(path):
        raise ConfigError(
            f"{path} is not empty and holds no runs of several seeds (it holds {', '.join(foreign[:5])}); choose another"
        )


def _clear(path: Path) -> None:
    """Remove the runs of earlier seeds; what is not theirs stays."""
    for directory in path.glob("seed-*"):
        if RunDirectory(directory).record_path.is_file():
            RunDirectory(directory).clear()
            (directory / LOCK_NAME).unlink(missing_ok=True)
            if not any(directory.iterdir()):
                shutil.rmtree(directory)
    (path / SEEDS_NAME).unlink(missing_ok=True)
