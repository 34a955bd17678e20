"""Scoring with what a checkpoint knows: its evaluation data, its training cells for baselines, its columns."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from steval.checkpoints.location import local, locate_checkpoint, shown
from steval.checkpoints.manifest import FEATURES, Manifest, read_manifest
from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import Scale
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.files import require_file
from steval.data.labels import labels_of
from steval.data.outputs import require_output, require_output_directory
from steval.data.splits.selection import open_reference
from steval.errors import ConfigError, DataError, MissingReferenceError
from steval.evaluator.settings import ScoreSettings
from steval.wording import counted, listed

if TYPE_CHECKING:
    import polars as pl

    from steval.evaluator.measure.engine import Engine
    from steval.evaluator.report.report import ScoreReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored against what; see `steval score --help`."""

    preds: Path
    checkpoint: Path | None = None
    real: Path | None = None
    train: Path | None = None
    out: Path | None = None
    predict: bool = False
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    scale: Scale | None = None
    data_dirs: tuple[Path, ...] = ()
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    threads: int | None = None
    cache_dir: Path | None = None
    device: str = "auto"
    """What `predict` runs on; and, where it names a GPU, what ranks and distances are computed on."""
    device_memory: float | None = None
    """GiB of the GPU's memory for them; None: a default."""
    perturbations: tuple[str, ...] = ()
    """Score these perturbations of the real cells alone; empty: all."""
    only_common: bool = False
    """Leave out perturbations that one side alone has, in place of refusing them."""
    adapter: Path | None = None
    """An adapter to `checkpoint`, which is its base then."""
    de_real: "pl.DataFrame | None" = None
    de_pred: "pl.DataFrame | None" = None
    """DE tables made elsewhere (pdex's columns), as batch jobs do."""

    @property
    def out_dir(self) -> Path:
        """Where the score directory goes: `--out`, else `NAME.score` beside the predictions."""
        return self.out or self.preds.with_name(self.preds.stem + ".score")


def score_predictions(request: ScoreRequest) -> "tuple[ScoreReport, Path]":
    """Score predicted cells, write the score directory, return the report and the directory.

    The real cells are `request.real`, else the evaluation data that the checkpoint records; baselines come from
    `request.train`, else the checkpoint's training cells, else there are none. Raises `ConfigError`, `CheckpointError`
    or `DataError`.
    """
    from steval.evaluator.metrics.profiles import resolve
    from steval.evaluator.report.drawing import load_ahead
    from steval.evaluator.scoring import score
    from steval.evaluator.tables import require_replaceable, write_score_dir

    if request.checkpoint is None and request.real is None:
        raise ConfigError(
            "without a checkpoint there is no record of evaluation data: give the real cells with --real REAL.h5ad, "
            "or the checkpoint before the predictions: steval score CKPT PREDS"
        )
    resolve(request.settings.chosen)  # unknown names are to be said before anything is predicted
    if not request.predict:
        _require_predictions(request.preds)
    if request.checkpoint is not None:
        request = replace(request, checkpoint=locate_checkpoint(request.checkpoint))
    if request.adapter is not None:
        request = replace(request, adapter=local(request.adapter))
    if request.adapter is not None and request.checkpoint is None:
        raise ConfigError("--adapter needs its base: steval score BASE PREDS --adapter ADAPTER")
    inputs = {
        "the checkpoint": request.checkpoint,
        "--adapter": request.adapter,
        "--real": request.real,
        "--train": request.train,
    }
    require_output_directory(request.out_dir, {**inputs, "the predictions": request.preds})
    require_replaceable(request.out_dir)
    if request.predict:
        require_output(request.preds, inputs)
    load_ahead()
    manifest = _manifest(request)
    with ExitStack() as stack:
        real = stack.enter_context(_open_real(request, manifest))
        columns = resolve_columns(
            real.obs, real.record, request.columns, manifest.columns if manifest else None, source=real.name
        )
        real = only_perturbations(real.labelled(columns, "perturbation"), columns, request.perturbations)
        if request.predict and not request.preds.exists():
            _predict(request, manifest, real, columns)
        train = _open_train(request, manifest)
        if train is not None:
            stack.enter_context(train)
        pred: Path | CellFile = request.preds
        left_out: tuple[str, ...] = ()
        if request.only_common:
            pred, real, left_out = common_perturbations(stack.enter_context(CellFile.open(pred)), real, columns)
        report = score(
            pred, real, columns=columns, train=train, settings=request.settings,
            threads=request.threads, engine=_engine(request), cache_dir=request.cache_dir,
            scale=request.scale, de_real=request.de_real, de_pred=request.de_pred,
            features=_features(request, manifest), model_record=_model_record(request, manifest),
        )  # fmt: skip
    if left_out:
        warnings = [*left_out, *report.record["warnings"]]
        report = replace(report, record={**report.record, "warnings": warnings})
    return report, write_score_dir(report, request.out_dir)


def _engine(request: ScoreRequest) -> "Engine":
    """The processors, unless a GPU is asked for by name."""
    from steval.evaluator.measure.engine import HOST

    if not request.device.startswith("cuda"):
        return HOST
    from steval.predictor.engine import choose_device
    from steval.workflows.device_measures import DEFAULT_MEMORY, DeviceEngine

    memory = DEFAULT_MEMORY if request.device_memory is None else int(request.device_memory * 2**30)
    return DeviceEngine(choose_device(request.device), memory)


def _require_predictions(preds: Path) -> None:
    if not preds.exists():
        raise DataError(
            f"no such predictions file: {preds}. Make it first with steval predict CKPT -o {preds}, or let the checkpoint "
            "predict the perturbations of the real data into it with --predict"
        )
    require_file(preds, "predictions file")


def common_perturbations(
    pred: CellFile, real: CellFile, columns: Columns
) -> tuple[CellFile, CellFile, tuple[str, ...]]:
    """Both sides with the perturbations that both have (and the controls), and a sentence on what each side loses.

    Nothing in common is a `DataError`.
    """
    names = {"predicted": pred, "real": real}
    for side, cells in names.items():
        if columns.perturbation not in cells.obs:
            found = listed(cells.obs.columns)
            raise DataError(f"the {side} cells have no obs column {columns.perturbation!r}; they have: {found}")
    labels = {side: labels_of(cells.obs, columns.perturbation, cells.name) for side, cells in names.items()}
    kinds = {side: set(found) - {columns.control} for side, found in labels.items()}
    common = kinds["predicted"] & kinds["real"]
    if not common:
        predicted, measured = (listed(sorted(found)) for found in kinds.values())
        raise DataError(f"no perturbation is on both sides: predicted are {predicted}; real are {measured}")
    kept, told = [], []
    for side, cells in names.items():
        extra = sorted(kinds[side] - common)
        rows = np.isin(labels[side], [*common, columns.control])
        if extra:
            lost = f"{counted(len(extra), 'perturbation')} of the {side} cells ({counted(int((~rows).sum()), 'cell')})"
            scored = counted(len(common), "perturbation")
            told.append(f"only what both sides have is scored, {scored}: {lost} left out: {listed(extra)}")
        kept.append(cells.select(np.flatnonzero(rows)) if extra else cells)
    return kept[0], kept[1], tuple(told)


def only_perturbations(real: CellFile, columns: Columns, names: Sequence[str]) -> CellFile:
    """The cells of `names` and the controls; all cells where `names` is empty. A name without cells is a `DataError`."""
    if not names:
        return real
    labels = labels_of(real.obs, columns.perturbation, real.name)
    absent = sorted(set(names) - set(labels))
    if absent:
        raise DataError(f"{real.name} holds no cells of {listed(absent)}")
    return real.select(np.flatnonzero(np.isin(labels, [*names, columns.control])))


def _open_real(request: ScoreRequest, manifest: Manifest | None) -> CellFile:
    if request.real is not None:
        return CellFile.open(request.real)
    assert manifest is not None
    if manifest.evaluation is None:
        raise ConfigError(f"{request.checkpoint} records no evaluation data; give the real cells with --real REAL.h5ad")
    return open_reference(manifest.evaluation, request.data_dirs, manifest.output_genes)


def _open_train(request: ScoreRequest, manifest: Manifest | None) -> CellFile | None:
    if request.settings.metrics_only:
        return None
    if request.train is not None:
        return CellFile.open(request.train)
    if manifest is None or manifest.training_data is None:
        return None
    try:
        return open_reference(manifest.training_data, request.data_dirs, manifest.output_genes)
    except MissingReferenceError as error:
        logger.warning("no baselines: %s", error)
        return None


def _predict(request: ScoreRequest, manifest: Manifest | None, real: CellFile, columns: Columns) -> None:
    from steval.workflows.predict import predict_as_in

    if request.checkpoint is None or manifest is None:
        raise ConfigError("--predict needs the checkpoint that is to predict: steval score CKPT PREDS --predict")
    predict_as_in(
        request.checkpoint, real, columns, request.preds,
        seed=request.settings.seed, device=request.device, adapter=request.adapter,
    )  # fmt: skip


def _manifest(request: ScoreRequest) -> Manifest | None:
    """Of the checkpoint, or of what it makes with the adapter."""
    if request.checkpoint is None:
        return None
    if request.adapter is None:
        return read_manifest(request.checkpoint)
    from steval.checkpoints.adapters.adapter_file import require_its_base

    return require_its_base(request.adapter, request.checkpoint)


def _features(request: ScoreRequest, manifest: Manifest | None) -> dict[str, np.ndarray] | None:
    """Perturbation → feature vector, for the ridge baseline; None where the features are one-hot and say nothing."""
    if request.checkpoint is None or manifest is None:
        return None
    rows = None
    for path in (request.adapter, request.checkpoint):  # an adapter has its own where they are not the base's
        if path is None or rows is not None:
            continue
        with safe_open(path, framework="numpy") as handle:
            rows = handle.get_tensor(FEATURES) if FEATURES in handle.keys() else None  # noqa: SIM118 - no mapping
    assert rows is not None
    if (np.count_nonzero(rows, axis=1) <= 1).all():
        return None
    return dict(zip(manifest.perturbation_names, rows, strict=True))


def _model_record(request: ScoreRequest, manifest: Manifest | None) -> dict[str, Any] | None:
    if request.checkpoint is None or manifest is None:
        return None
    training = manifest.training
    return {
        "checkpoint": shown(request.checkpoint),
        **({} if request.adapter is None else {"adapter": shown(request.adapter)}),
        "made_by": manifest.made_by,
        "created": manifest.created,
        "attention": manifest.model.attention,
        "training_step": training.step if training else None,
        "config_digest": training.config_digest if training else None,
        "licence": manifest.licence,
    }


def parse_metrics(text: str | None) -> tuple[str, ...] | None:
    """`a,b,c` as a tuple, empty parts dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else None


def data_directories(directories: Sequence[Path] | None) -> tuple[Path, ...]:
    """Directories to search for moved data files; one that does not exist is a `ConfigError`."""
    absent = [str(directory) for directory in directories or () if not Path(directory).is_dir()]
    if absent:
        raise ConfigError(f"--data-dir names no directory: {', '.join(absent)}")
    return tuple(Path(directory) for directory in directories or ())
