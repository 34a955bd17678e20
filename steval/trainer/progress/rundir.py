"""The run directory (docs/finetuning.md): where everything is, when a run may start there, and `run.json`."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steval.checkpoints.location import ADAPTER_NAME
from steval.checkpoints.manifest import EFFECTS, read_manifest
from steval.data.files import atomic_path, read_json, remove, require_directory
from steval.data.locks import LOCK_NAME
from steval.data.outputs import real_path
from steval.errors import CheckpointError, ConfigError, DataError
from steval.settings import json_digest

PACKAGES = ("steval", "torch", "lightning", "numpy", "scipy", "anndata", "safetensors")
"""Packages that a run's numbers depend on."""
OWN_NAMES = frozenset({"config.yaml", "metrics.csv", "events", "run.json", "checkpoints", "report.html", "wandb"})
"""What a run leaves in its directory, and `--overwrite` clears."""


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
    def adapter_path(self) -> Path:
        """The same weights as LoRA adapters beside the base, where a `lora` phase found them."""
        return self.checkpoints_dir / ADAPTER_NAME

    @property
    def saved_best_path(self) -> Path:
        """The best checkpoint as of `last.ckpt`, for as long as `best-val` is a newer one."""
        return self.checkpoints_dir / "best-of-last.safetensors"

    @property
    def state_path(self) -> Path:
        """Full trainer state, for `--resume` only."""
        return self.checkpoints_dir / "last.ckpt"

    def step_path(self, step: int) -> Path:
        """The checkpoint kept at `step` for ablations."""
        return self.checkpoints_dir / f"step-{step:08d}.safetensors"

    def require_startable(self, *, overwrite: bool) -> None:
        """A directory that holds a run's state, or foreign files, is a `ConfigError`; `overwrite` allows a run's own files."""
        if self.state_path.exists() and not overwrite:
            raise ConfigError(
                f"{self.path} already holds a run ({self.state_path.name} is there). Continue it with --resume, replace it "
                "with --overwrite, or choose another directory"
            )
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        foreign = sorted(name for name in names - OWN_NAMES - {LOCK_NAME} if not name.endswith(".part"))
        if foreign and not self.record_path.exists():
            raise ConfigError(
                f"{self.path} is not a run directory and not empty (it holds {', '.join(foreign[:5])}); choose another"
            )

    def require_kept(self, inputs: Mapping[str, Path | None]) -> None:
        """An input (what it is → path) that is this run, or among the files that `clear` removes, is a `ConfigError`."""
        own = [real_path(self.path / name) for name in sorted(OWN_NAMES)]
        for what, path in inputs.items():
            if path is None:
                continue
            real = real_path(path)
            if real == real_path(self.path) or any(real.is_relative_to(place) for place in own):
                raise ConfigError(
                    f"{path} ({what}) lies in {self.path}, where the run replaces it by its own files: choose another directory"
                )

    def clear(self) -> None:
        """Remove what an earlier run left; foreign files stay."""
        for name in sorted(OWN_NAMES) if self.path.is_dir() else ():
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
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
                remove(partial)

    def save_best_of_state(self) -> None:
        """Before a newer best checkpoint takes its name: keep the one that `last.ckpt` means under a name of its own."""
        if not (self.state_path.exists() and self.best_path.exists()) or self.saved_best_path.exists():
            return
        try:
            os.link(self.best_path, self.saved_best_path)
        except OSError:  # a file system without hard links
            with atomic_path(self.saved_best_path) as partial:
                shutil.copyfile(self.best_path, partial)

    def cut_back(self, step: int, best: Mapping[str, Any], best_digest: str | None) -> None:
        """Checkpoints as they were at a saved state: its best under its name, none of a later step.

        `best` and `best_digest` are the state's. A best checkpoint that is neither there nor kept is a `CheckpointError`.
        """
        for path in self.checkpoints_dir.glob("step-*.safetensors"):
            if path > self.step_path(step):
                path.unlink()
        if not best:
            self.best_path.unlink(missing_ok=True)
        elif self.saved_best_path.exists() and _holds(self.saved_best_path, best, best_digest):
            self.saved_best_path.replace(self.best_path)
        else:
            self.require_best(best, best_digest)
        self.saved_best_path.unlink(missing_ok=True)

    def require_best(self, best: Mapping[str, Any], digest: str | None) -> None:
        """A `best-val` that is not the one that the run means is a `CheckpointError`."""
        if not self.best_path.exists():
            found = "is not there"
        elif _holds(self.best_path, best, digest):
            return
        else:
            found = "holds other weights"
        raise CheckpointError(
            f"{self.best_path} {found}: this run's best are those of step {best['step']}, and the run needs them to go on. "
            "Restore the file, or start another run with --init-from"
        )

    def write_config(self, text: str) -> None:
        """Write `config.yaml` atomically."""
        with atomic_path(self.config_path) as partial:
            partial.write_text(text, encoding="utf-8")

    def read_record(self) -> dict[str, Any]:
        """`run.json`; empty where there is none."""
        if not self.record_path.is_file():
            return {}
        try:
            return read_json(self.record_path, "record of a run")
        except DataError as error:
            raise ConfigError(str(error)) from error

    def update_record(self, values: Mapping[str, Any]) -> None:
        """Merge `values` into `run.json`, atomically."""
        merged = self.read_record() | dict(values)
        with atomic_path(self.record_path) as partial:
            partial.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def weights_digest(tensors: Mapping[str, str]) -> str:
    """Digest of a checkpoint's weights, from the digests of its tensors in the manifest; training effects are none of them."""
    return json_digest({name: digest for name, digest in tensors.items() if not name.startswith(EFFECTS)})


def _holds(path: Path, best: Mapping[str, Any], digest: str | None) -> bool:
    """Whether the checkpoint at `path` is the best one on record; states of an earlier format know its step alone."""
    manifest = read_manifest(path)
    if digest is not None:
        return weights_digest(manifest.tensors) == digest
    return manifest.training is not None and manifest.training.step == best["step"]
