"""The run directory (docs/finetuning.md): where everything is, when a run may start there, and `run.json`."""

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steval.data.files import atomic_path, require_directory
from steval.errors import ConfigError

PACKAGES = ("steval", "torch", "lightning", "numpy", "scipy", "anndata", "safetensors")
"""Packages that a run's numbers depend on."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run; nothing is created until `create`."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def events_dir(self) -> Path:
        """TensorBoard's files."""
        return self.path / "events"

    @property
    def record_path(self) -> Path:
        """`run.json`: what the run was given, found out and did."""
        return self.path / "run.json"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best_path(self) -> Path:
        """The checkpoint to use: lowest validation loss (or what `select_best` says)."""
        return self.checkpoints_dir / "best-val.safetensors"

    @property
    def state_path(self) -> Path:
        """Full trainer state, for `--resume` only."""
        return self.checkpoints_dir / "last.ckpt"

    def step_path(self, step: int) -> Path:
        """The checkpoint kept at `step` for ablations."""
        return self.checkpoints_dir / f"step-{step:08d}.safetensors"

    def require_startable(self, *, overwrite: bool) -> None:
        """A directory that holds a run's state, or foreign files, is a `ConfigError`; `overwrite` clears a run's own files."""
        if self.state_path.exists() and not overwrite:
            raise ConfigError(
                f"{self.path} already holds a run ({self.state_path.name} is there). Continue it with --resume, replace it "
                "with --overwrite, or choose another directory"
            )
        known = {"config.yaml", "metrics.csv", "events", "run.json", "checkpoints", "report.html", "wandb"}
        foreign = sorted(p.name for p in self.path.iterdir() if p.name not in known) if self.path.is_dir() else []
        if foreign and not self.record_path.exists():
            raise ConfigError(
                f"{self.path} is not a run directory and not empty (it holds {', '.join(foreign[:5])}); choose another"
            )
        for name in sorted(known) if self.path.is_dir() else ():
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def require_resumable(self) -> None:
        """A directory without a recorded run is a `ConfigError`."""
        if not self.record_path.is_file() or not self.config_path.is_file():
            raise ConfigError(f"{self.path} holds no run to resume: it has no run.json and config.yaml")

    def create(self) -> None:
        """Make the directories, and remove what a killed run left half written."""
        require_directory(self.checkpoints_dir)
        for directory in (self.path, self.checkpoints_dir):
            for partial in directory.glob(".*.part"):
                partial.unlink(missing_ok=True)

    def write_config(self, text: str) -> None:
        """Write `config.yaml` atomically."""
        with atomic_path(self.config_path) as partial:
            partial.write_text(text, encoding="utf-8")

    def read_record(self) -> dict[str, Any]:
        """`run.json`; empty where there is none."""
        if not self.record_path.is_file():
            return {}
        try:
            return dict(json.loads(self.record_path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.record_path} cannot be read: {error}") from error

    def update_record(self, values: Mapping[str, Any]) -> None:
        """Merge `values` into `run.json`, atomically."""
        merged = self.read_record() | dict(values)
        with atomic_path(self.record_path) as partial:
            partial.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def package_versions() -> dict[str, str]:
    """Name → version of `PACKAGES` and of Python; a run's numbers depend on them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
