"""A run's curves, read from `metrics.csv`: ours, or the CSV logger's of arc-state (several files of a run are joined)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from steval.data.files import read_bytes
from steval.errors import ConfigError, DataError

ARC_NAMES = {
    "train_loss": "train/total",
    "train/embedding_loss": "train/embedding",
    "decoder_loss": "train/gene",
    "val_loss": "val/gene",
    "val/embedding_loss": "val/embedding",
    "val/decoder_loss": "val/gene",
}
"""arc-state's logged names and ours; `val_loss` is what it selects its best checkpoint by."""


@dataclass(frozen=True)
class Curve:
    """One metric: `steps [n]` int, `values [n]` float, in order of writing."""

    name: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Curves:
    """All curves of one run."""

    path: Path
    frame: pl.DataFrame
    """A row per logged step; column `step`, `phase` where there are phases, and one per metric."""

    @property
    def names(self) -> list[str]:
        """The metrics, sorted."""
        return sorted(set(self.frame.columns) - {"step", "phase", "phase_step", "seconds", "epoch"})

    def get(self, name: str) -> Curve | None:
        """The curve of a metric where it has values; None otherwise."""
        if name not in self.frame.columns:
            return None
        kept = self.frame.select("step", name).drop_nulls()
        if not kept.height:
            return None
        return Curve(name, kept["step"].to_numpy().astype(np.int64), kept[name].to_numpy().astype(np.float64))

    def starting_with(self, prefix: str) -> list[Curve]:
        """The curves whose name starts with `prefix`."""
        curves = [self.get(name) for name in self.names if name.startswith(prefix)]
        return [curve for curve in curves if curve is not None]


def read_curves(path: Path) -> Curves:
    """Curves of a run directory or of one `metrics.csv`; a `ConfigError` where there are none."""
    files = _metric_files(Path(path))
    frames = [_read(file) for file in files]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    renames = {old: new for old, new in ARC_NAMES.items() if old in frame.columns and new not in frame.columns}
    frame = frame.rename(_one_each(renames))
    if "step" not in frame.columns or frame.height == 0:
        raise ConfigError(
            f"{files[0]} holds no curves: it needs a column `step` and rows, it has {', '.join(frame.columns)}"
        )
    return Curves(Path(path), frame)


def _metric_files(path: Path) -> Sequence[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"no such run: {path}")
    own = path / "metrics.csv"
    files = [own] if own.is_file() else sorted(path.rglob("metrics.csv"))
    if not files:
        raise ConfigError(f"{path} holds no metrics.csv, so there are no curves to read; is it a run directory?")
    return files


def _read(file: Path) -> pl.DataFrame:
    try:
        content = read_bytes(file, "table of metrics")
        frame = pl.read_csv(content, infer_schema_length=None, truncate_ragged_lines=True, null_values=[""])
    except (pl.exceptions.PolarsError, DataError) as error:
        raise ConfigError(f"{file} is not a table of metrics: {error}") from error
    numbers = [name for name in frame.columns if name != "phase"]
    return frame.with_columns(pl.col(numbers).cast(pl.Float64, strict=False))


def _one_each(renames: dict[str, str]) -> dict[str, str]:
    """Drop renames whose new name is taken already by an earlier one."""
    first_of = {new: old for old, new in reversed(renames.items())}
    return {old: new for new, old in first_of.items()}
