"""Fine-tuning in a notebook: a run, its curves and its model."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad

from steval.data.cells.cellfile import write_anndata
from steval.errors import ConfigError
from steval.evaluator.report.drawing import Plot, plot
from steval.notebook.cells import CellsInput
from steval.notebook.model import Model, load
from steval.notebook.showing import Facts, as_html, as_text
from steval.workflows.curves import Curves, read_curves
from steval.workflows.figures.curves import draw_curves

if TYPE_CHECKING:
    from steval.trainer.config import FinetuneConfig


class Run:
    """A fine-tuning run that has ended; `sv.finetune` makes one, `sv.open_run` finds one again."""

    def __init__(self, directory: Path, temporary: Path | None = None):
        self.directory = directory
        self._temporary = temporary
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    @property
    def best(self) -> Path:
        """The checkpoint to use."""
        return self.directory / "checkpoints" / "best-val.safetensors"

    @cached_property
    def model(self) -> Model:
        """Its best checkpoint, loaded."""
        return load(self.best)

    @cached_property
    def curves(self) -> Curves:
        """What was logged: `run.curves.frame` is a Polars frame with a row per logged step."""
        return read_curves(self.directory)

    @property
    def plot(self) -> "RunPlots":
        """`run.plot.curves()`."""
        return RunPlots(self)

    def save(self, path: Path | str) -> Path:
        """Copy the best checkpoint to `path` (`.safetensors`); returns it."""
        from steval.checkpoints.location import locate_checkpoint
        from steval.data.files import atomic_path
        from steval.data.outputs import require_output

        path, best = Path(path), locate_checkpoint(self.directory)
        require_output(path, {"the run's own checkpoint": best}, suffixes=(".safetensors",))
        with atomic_path(path) as partial:
            shutil.copyfile(best, partial)
        return path

    def _facts(self) -> Facts:
        steps = self.curves.frame["step"].to_numpy()
        place = (
            "a temporary directory that goes with this object: keep the checkpoint with run.save('model.safetensors')"
        )
        return [
            ("steps", f"{int(steps.max()):,}"),
            ("directory", self.directory if self._temporary is None else place),
            ("evidence", self.model.evidence),
        ]

    def __repr__(self) -> str:
        return as_text("steval run", self._facts())

    def _repr_html_(self) -> str:
        return as_html("steval run", self._facts())


class RunPlots:
    """What can be drawn of a run."""

    def __init__(self, run: Run):
        self._run = run

    def curves(self) -> Plot:
        """Training and validation losses over optimiser steps."""
        return plot(lambda: draw_curves([self._run.directory.name], [self._run.curves]), "the run has no curves")


def finetune(
    cells: CellsInput | Sequence[Path | str],
    config: "str | Path | Mapping[str, Any] | FinetuneConfig" = "quick-cpu",
    *,
    run_dir: Path | str | None = None,
    init_from: Path | str | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> Run:
    """Fine-tune on `cells`: an AnnData (`sv.prepare` makes one that declares its scale), or h5ad paths; as `steval finetune`.

    `config`: the name of a recipe, a YAML file, a mapping as YAML would hold (`{"recipe": "quick-cpu", "phases": {"A":
    {"steps": 100}}}`), or a `FinetuneConfig`. `init_from`: a checkpoint to start from. An AnnData is written beside
    `run_dir` (`NAME-cells.h5ad`), which the checkpoint records as its data. Without `run_dir` all of it lies in a
    temporary directory that goes with the `Run`. Raises `ConfigError`, `DataError` or `CheckpointError`; an interrupted run is a
    `ConfigError` that names its directory.
    """
    if run_dir is not None:
        return _finetuned(cells, config, Path(run_dir), init_from, overwrite, device)
    temporary = Path(tempfile.mkdtemp(prefix="steval-run-"))
    try:
        found = _finetuned(cells, config, temporary / "run", init_from, overwrite, device)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Run(found.directory, temporary)


def open_run(directory: Path | str) -> Run:
    """A run directory of `steval finetune`."""
    if not Path(directory).is_dir():
        raise ConfigError(f"no such run: {directory}")
    return Run(Path(directory))


def _finetuned(
    cells: CellsInput | Sequence[Path | str],
    config: "str | Path | Mapping[str, Any] | FinetuneConfig",
    directory: Path,
    init_from: Path | str | None,
    overwrite: bool,
    device: str,
) -> Run:
    from steval.workflows.finetune import finetune_with_evaluation

    start = None if init_from is None else Path(init_from)
    beside = directory.with_name(f"{directory.name}-cells.h5ad")
    settings = _configured(config, _files(cells, beside))
    if isinstance(cells, ad.AnnData):
        _write_cells(cells, beside, directory, overwrite)
    result = finetune_with_evaluation(settings, directory, init_from=start, overwrite=overwrite, device=device)
    if not result.finished:
        raise ConfigError(
            f"the run was stopped at step {result.step}; go on with: steval finetune --resume {directory}"
        )
    return Run(directory)


def _files(cells: CellsInput | Sequence[Path | str], beside: Path) -> list[str]:
    """What the configuration is to name; cells in memory are going to be written to `beside`."""
    if isinstance(cells, ad.AnnData):
        return [str(beside)]
    paths = [cells] if isinstance(cells, str | Path) else list(cells)
    return [str(Path(path).absolute()) for path in paths]


def _write_cells(cells: ad.AnnData, beside: Path, directory: Path, overwrite: bool) -> None:
    """Where nothing is that may not be replaced: neither the run nor a file of that name."""
    from steval.trainer.progress.rundir import RunDirectory

    RunDirectory(directory).require_startable(overwrite=overwrite)
    if beside.exists() and not overwrite:
        raise ConfigError(
            f"{beside} is there already, and the cells are to be kept under this name: name another run_dir, or replace it with "
            "overwrite=True"
        )
    write_anndata(cells, beside)


def _configured(config: "str | Path | Mapping[str, Any] | FinetuneConfig", files: list[str]) -> "FinetuneConfig":
    from steval.settings import apply_overrides, read_yaml
    from steval.trainer.config import FinetuneConfig
    from steval.trainer.recipes import config_path, with_recipe

    if isinstance(config, FinetuneConfig):
        values, source = config.as_dict(), "the configuration"
    elif isinstance(config, Mapping):
        values, source = dict(config), "the configuration"
    else:
        path = config_path(config)
        values, source = read_yaml(path), str(path)
    whole = apply_overrides(with_recipe(values, source), ["data.files=[]"])
    whole["data"]["files"] = files  # as they are: no name is read as YAML
    return FinetuneConfig.parse(whole, source=source)
