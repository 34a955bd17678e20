"""`steval finetune`."""

import shlex
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource

from steval.cli import options
from steval.cli.memory import importing, keep_freed_memory
from steval.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from steval.trainer.config import FinetuneConfig
    from steval.trainer.progress.notices import Notice
    from steval.trainer.run import RunResult
    from steval.workflows.seeds import SeedRuns


def finetune(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="YAML file, or a recipe: raw-staged, embedding-rounds, frozen-only, full, quick-cpu."
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", "-o", help="Run directory.", show_default="runs/CONFIG")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the configuration: a.b=c (may be repeated).")
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from", help="Weights to start from: a steval checkpoint, or arc-state's file or directory."
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue the run in this directory, as if never stopped.")
    ] = None,
    from_arc_config: Annotated[
        Path | None, typer.Option("--from-arc-config", help="Translate an arc-state config.yaml instead of CONFIG.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and do nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, tell phases and estimates, write nothing.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Tell the memory of a device for each choice; no cells are read.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the directory.")] = False,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Go on where input, output and evaluation do not fit each other.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            min=2,
            help="So many runs, with the configuration's seed and those after it, to predict together.",
        ),
    ] = None,
    drop_unlabelled: options.DropUnlabelled = False,
    from_nothing: Annotated[
        bool, typer.Option("--from-nothing", help="Go on where phases freeze a backbone of random weights.")
    ] = False,
    data_dir: options.DataDirs = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.JsonFlag = False,
) -> None:
    """Fine-tune an ST model, phase by phase, into a run directory.

    Example: `steval finetune raw-staged --init-from tahoe.safetensors --set 'data.files=[screen.h5ad]' --run runs/screen`

    Continue a stopped run with `steval finetune --resume runs/screen`.
    """
    from steval.checkpoints.location import holds_seeds

    overrides = tuple(set_ or ())
    if drop_unlabelled:
        overrides += ("data.columns.drop_unlabelled=true",)
    if resume and from_arc_config:
        raise typer.BadParameter("--resume continues with the run's own configuration; leave --from-arc-config out")
    if data_dir and not resume and context.get_parameter_source("data_dir") is ParameterSource.COMMANDLINE:
        raise typer.BadParameter(
            "--data-dir finds the files of a run to --resume; name a new run's with --set data.files=[...]"
        )
    several = resume is not None and holds_seeds(resume)
    if several and (config or overrides):
        raise typer.BadParameter("runs of several seeds continue as they began; leave CONFIG and --set out")
    settings = (
        _resumed(resume, overrides) if resume and not config else _configuration(config, from_arc_config, overrides)
    )
    if print_config:
        if settings is None:
            raise typer.BadParameter("--print-config needs CONFIG or --from-arc-config")
        typer.echo(settings.to_yaml(), nl=False)
        return
    if resume and (dry_run or estimate):
        option = "--dry-run" if dry_run else "--estimate"
        raise typer.BadParameter(f"{option} is for a run that has not begun; leave --resume out")
    if dry_run and estimate:
        raise typer.BadParameter("give --dry-run or --estimate, not both")
    if resume and (run or overwrite or seeds):
        given = "--seeds" if seeds else "--run and --overwrite"
        raise typer.BadParameter(f"--resume names the run directory itself; leave {given} out")
    keep_freed_memory()
    with importing():
        from steval.workflows.finetune import finetune_with_evaluation, rehearse_with_evaluation
        from steval.workflows.score import data_directories
        from steval.workflows.seeds import finetune_seeds, resume_seeds
    if threads:
        import torch

        torch.set_num_threads(threads)

    notices: list[Notice] = []
    report = notices.append if json else _print_notice
    if estimate:
        from steval.trainer.run import estimate as tell_memory

        assert settings is not None
        tell_memory(settings, init_from=init_from, device=device, report=report)
    if dry_run:
        assert settings is not None
        rehearse_with_evaluation(
            settings,
            init_from=init_from,
            device=device,
            allow_mismatch=allow_mismatch,
            from_nothing=from_nothing,
            report=report,
        )
    if dry_run or estimate:
        if json:
            print_json({"notices": [asdict(notice) for notice in notices]})
        return
    directory = resume or run or Path("runs") / Path(config or str(from_arc_config)).stem
    if seeds or several:
        if resume is not None:
            done = resume_seeds(resume, device=device, data_dirs=data_directories(data_dir), report=report)
        else:
            assert settings is not None
            assert seeds is not None
            done = finetune_seeds(
                settings, directory, seeds, init_from=init_from, overwrite=overwrite, device=device,
                allow_mismatch=allow_mismatch, from_nothing=from_nothing, report=report,
            )  # fmt: skip
        _say_seeds(done, json)
        return
    if not resume:
        _require_kept(directory, config or str(from_arc_config))
    result = finetune_with_evaluation(
        settings,
        directory,
        init_from=init_from,
        resume=resume is not None,
        overwrite=overwrite,
        device=device,
        allow_mismatch=allow_mismatch,
        from_nothing=from_nothing,
        data_dirs=data_directories(data_dir) if resume else (),
        report=report,
    )
    if json:
        print_json(_told(result))
    else:
        say(f"best checkpoint: {result.best} ({_said(result.best_record)})")
    _exit_where_stopped(result, result.run_dir)


def _told(result: "RunResult") -> dict[str, object]:
    best = {"path": str(result.best), **result.best_record}
    return {"run": str(result.run_dir), "finished": result.finished, "step": result.step, "best": best}


def _say_seeds(done: "SeedRuns", json: bool) -> None:
    """What the runs of several seeds left, and how they predict together."""
    if json:
        print_json(
            {"run": str(done.path), "finished": done.finished, "runs": [_told(result) for result in done.results]}
        )
    else:
        for result in done.results:
            say(f"best checkpoint: {result.best} ({_said(result.best_record)})")
        if done.finished:
            say(f"predict with all of them: steval predict {shlex.join(map(str, done.run_dirs))} -o preds.h5ad")
    _exit_where_stopped(done.results[-1], done.path)


def _exit_where_stopped(result: "RunResult", directory: Path) -> None:
    if not result.finished:
        say(f"stopped at step {result.step}; continue with: steval finetune --resume {directory}", err=True)
        raise typer.Exit(128 + (result.stopped_by or signal.SIGINT))


def _resumed(run_dir: Path, overrides: tuple[str, ...]) -> "FinetuneConfig | None":
    """The configuration on record with the overrides; which of them a resumed run can take is the trainer's to say."""
    from steval.trainer.config import FinetuneConfig
    from steval.trainer.progress.rundir import RunDirectory

    if not overrides:
        return None
    directory = RunDirectory(run_dir)
    directory.require_resumable()
    return FinetuneConfig.load(directory.config_path, overrides)


def _configuration(config: str | None, arc_config: Path | None, overrides: tuple[str, ...]) -> "FinetuneConfig":
    from steval.trainer.config import FinetuneConfig
    from steval.trainer.recipes import config_path

    if config is not None and arc_config is None:
        return FinetuneConfig.load(config_path(config), overrides)
    if arc_config is None or config is not None:
        raise typer.BadParameter("give CONFIG (a YAML file or a recipe), or --from-arc-config, or --resume RUN")
    from steval.trainer.settings.arc_translation import translate

    translation = translate(arc_config)
    for line in translation.lines():
        say(line, err=True)
    return FinetuneConfig.parse_with(translation.values, overrides, str(arc_config))


def _require_kept(run_dir: Path, config: str) -> None:
    """Refuse a directory whose `config.yaml` is CONFIG itself: the resolved one goes there. A run's own may be replaced."""
    from steval.data.outputs import same_file
    from steval.errors import ConfigError
    from steval.trainer.progress.rundir import RunDirectory

    directory = RunDirectory(run_dir)
    if not directory.record_path.exists() and same_file(Path(config), directory.config_path):
        raise ConfigError(
            f"{config} lies in the run's directory, where the resolved configuration would take its place: name another --run"
        )


def _print_notice(notice: "Notice") -> None:
    print_table(notice.title, notice.columns, notice.rows)


def _said(record: dict[str, object]) -> str:
    value = record.get("value")
    shown = f"{value:.6g}" if isinstance(value, float) else "none"
    return f"{record.get('metric')} {shown} at step {record.get('step')}, phase {record.get('phase')}"
