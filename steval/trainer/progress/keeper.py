"""What a run writes as it goes, by its first process alone: rows of metrics, and beside training checkpoints and the state to
resume from."""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor

from steval.checkpoints.manifest import Manifest, TrainingRecord, WarmupRecord
from steval.checkpoints.store import Checkpoint, ControlSet, save_checkpoint
from steval.errors import DataError
from steval.trainer.progress.rundir import RunDirectory, weights_digest
from steval.trainer.progress.sinks import Sink
from steval.trainer.progress.state import Progress, TrainerState, save_state
from steval.trainer.progress.writing import WritingThread, copied

logger = logging.getLogger(__name__)

QuickEval = Callable[[Checkpoint], Mapping[str, float]]
"""Scores of a checkpoint in memory by name (`eval/...` is put before them)."""
Warmup = Callable[[Checkpoint], WarmupRecord | None]
"""A small prediction for the service to repeat before it is ready."""


class Keeper:
    """Writes a run's outputs. `manifest` is complete but for `training` and `warmup`.

    Checkpoints and states are copied at once and written by a thread, in the order of the calls. A write that fails is raised by a
    later call, by `flush` at the latest.
    """

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
        """That training stood still for checkpoints (their warm-up prediction included) and the state to resume from."""
        self._thread = WritingThread()

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
        """The weights of this moment as a checkpoint in memory; it shares `weights`."""
        record = self._training.model_copy(
            update={"phases": progress.records(), "step": progress.step, "validation": dict(validation)}
        )
        manifest = self._manifest.model_copy(update={"training": record})
        return Checkpoint(self.directory.path, manifest, dict(weights), self._features, self._controls, digest="")

    def write_best(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Write `best-val`, and note the digest of its weights in `progress`; the one that the last saved state means is kept until
        the next."""

        def write(snapshot: Checkpoint) -> None:
            self.directory.save_best_of_state()
            progress.best_digest = weights_digest(self._save(self.directory.best_path, snapshot).tensors)

        self._write(checkpoint, write)

    def write(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write a checkpoint atomically; a full disk is a `DataError`, what was there before stays."""
        self._write(checkpoint, lambda snapshot: self._save(path, snapshot))

    def save_state(self, state: TrainerState, progress: Progress) -> None:
        """Write `last.ckpt`; every row of metrics up to it is on disk before, its best checkpoint is `best-val`, and the digest of
        that one's weights is the one that `progress` has when both are written."""
        with self._timed():
            for sink in self._sinks:
                sink.sync()
            self._thread.make_room()
            snapshot = cast(TrainerState, copied(state))

        def write() -> None:
            snapshot["best_digest"] = progress.best_digest
            save_state(self.directory.state_path, snapshot)
            self.directory.saved_best_path.unlink(missing_ok=True)

        self._thread.submit(write)

    def check(self) -> None:
        """Raise what a write that is done has failed with."""
        self._thread.check()

    def flush(self) -> None:
        """Wait until everything is written."""
        with self._timed():
            self._thread.flush()

    def close(self) -> None:
        """Close metrics, once everything is written; what fails now is told, for the run has ended by another error."""
        error = self._thread.close()
        if error is not None:
            logger.error("a file of this run was not written: %s", error)
        for sink in self._sinks:
            sink.close()

    def _write(self, checkpoint: Checkpoint, write: Callable[[Checkpoint], object]) -> None:
        with self._timed():
            manifest = checkpoint.manifest
            if self._warmup is not None:
                manifest = manifest.model_copy(update={"warmup": self._warmup(checkpoint)})
            self._thread.make_room()
            snapshot = replace(checkpoint, manifest=manifest, weights=copied(checkpoint.weights))
        self._thread.submit(lambda: write(snapshot))

    def _save(self, path: Path, checkpoint: Checkpoint) -> Manifest:
        try:
            return save_checkpoint(
                path,
                manifest=checkpoint.manifest,
                weights=checkpoint.weights,
                features=self._features,
                controls=self._controls,
            )
        except DataError as error:
            raise DataError(
                f"cannot write {path}: {error}. What was written whole before is still there: free some space and continue "
                "with --resume"
            ) from error

    @contextmanager
    def _timed(self) -> Generator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
