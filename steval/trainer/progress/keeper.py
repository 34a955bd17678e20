"""What a run writes as it goes, by its first process alone: rows of metrics, checkpoints, the state to resume from."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from steval.checkpoints.manifest import Manifest, TrainingRecord, WarmupRecord
from steval.checkpoints.store import Checkpoint, ControlSet, save_checkpoint
from steval.errors import DataError
from steval.trainer.progress.rundir import RunDirectory, weights_digest
from steval.trainer.progress.sinks import Sink
from steval.trainer.progress.state import Progress, TrainerState, save_state

QuickEval = Callable[[Checkpoint], Mapping[str, float]]
"""Scores of a checkpoint in memory by name (`eval/...` is put before them)."""
Warmup = Callable[[Checkpoint], WarmupRecord | None]
"""A small prediction for the service to repeat before it is ready."""


class Keeper:
    """Writes a run's outputs. `manifest` is complete but for `training` and `warmup`."""

    def __init__(
        self,
        directory: RunDirectory,
        manifest: Manifest,
        features: Tensor,
        controls: ControlSet | None,
        training: TrainingRecord,
        sinks: list[Sink],
        *,
        warmup: Warmup | None = None,
    ):
        self.directory = directory
        self._manifest = manifest
        self._features = features
        self._controls = controls
        self._training = training
        self._sinks = sinks
        self._warmup = warmup
        self.seconds = 0.0
        """Spent on checkpoints (their warm-up prediction included) and the state to resume from."""

    def log(self, progress: Progress, values: Mapping[str, float]) -> None:
        """One row of metrics."""
        place = {
            "step": progress.step,
            "phase": progress.phases[-1]["name"],
            "phase_step": progress.phase_step,
            "seconds": round(progress.seconds, 3),
        }
        for sink in self._sinks:
            sink.write(place, values)

    def checkpoint(
        self, weights: Mapping[str, Tensor], progress: Progress, validation: Mapping[str, float]
    ) -> Checkpoint:
        """The weights of this moment as a checkpoint in memory."""
        record = self._training.model_copy(
            update={"phases": progress.records(), "step": progress.step, "validation": dict(validation)}
        )
        manifest = self._manifest.model_copy(update={"training": record})
        return Checkpoint(self.directory.path, manifest, dict(weights), self._features, self._controls, digest="")

    def write_best(self, checkpoint: Checkpoint) -> str:
        """Write `best-val`; the one that the last saved state means is kept until the next. Returns `weights_digest`."""
        self.directory.save_best_of_state()
        return weights_digest(self.write(self.directory.best_path, checkpoint).tensors)

    def write(self, path: Path, checkpoint: Checkpoint) -> Manifest:
        """Write a checkpoint atomically, return its manifest; a full disk is a `DataError`, what was there before stays."""
        manifest = checkpoint.manifest
        try:
            with self._timed():
                if self._warmup is not None:
                    manifest = manifest.model_copy(update={"warmup": self._warmup(checkpoint)})
                return save_checkpoint(
                    path,
                    manifest=manifest,
                    weights=checkpoint.weights,
                    features=self._features,
                    controls=self._controls,
                )
        except (SafetensorError, DataError) as error:
            raise DataError(
                f"cannot write {path}: {error}. What was written whole before is still there: free some space and continue "
                "with --resume"
            ) from error

    def save_state(self, state: TrainerState) -> None:
        """Write `last.ckpt`; every row of metrics up to it is on disk before, and its best checkpoint is `best-val`."""
        with self._timed():
            for sink in self._sinks:
                sink.sync()
            save_state(self.directory.state_path, state)
            self.directory.saved_best_path.unlink(missing_ok=True)

    @contextmanager
    def _timed(self) -> Generator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def close(self) -> None:
        """Close metrics."""
        for sink in self._sinks:
            sink.close()
