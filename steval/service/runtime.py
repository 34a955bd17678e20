"""What a worker holds: the checkpoint, its predictor, its control cells, the batcher; loaded in the background.

`state` goes from starting to ready, or to failed with the reason; `/readyz` tells it.
"""

import json
import logging
import shutil
import tempfile
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steval import __version__
from steval.checkpoints.evidence import evidence_sentence
from steval.errors import ServiceError, StevalError
from steval.machine import num_cores
from steval.service.http.encoding import json_numbers, json_object
from steval.service.http.telemetry import ServiceMetrics, service_metrics
from steval.service.private import shared_directory
from steval.service.schemas import ModelCard
from steval.service.score.job_runner import JobRunner
from steval.service.score.jobs import JobStore
from steval.service.settings import ServiceSettings, require_checkpoint

if TYPE_CHECKING:
    from steval.predictor.controls import ControlPool
    from steval.predictor.engine import EncodedControls

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "failed", "stopping"]
STARTING_RETRY = 2.0
ENCODED_BYTES = 512 * 2**20
"""Most memory for control cells that stay encoded; larger pools are encoded as they are needed."""


class Model:
    """A loaded checkpoint ready to answer."""

    def __init__(self, settings: ServiceSettings, metrics: ServiceMetrics):
        import torch

        from steval.checkpoints.store import load_checkpoint
        from steval.predictor.controls import checkpoint_controls, file_controls
        from steval.predictor.engine import Predictor
        from steval.predictor.output import output_names
        from steval.service.predict.batcher import MicroBatcher
        from steval.service.predict.warmup import warm_up

        torch.set_num_threads(settings.threads or max(1, num_cores() // settings.workers))
        checkpoint = load_checkpoint(require_checkpoint(settings))
        self.settings = settings
        self.predictor: Predictor = Predictor(
            checkpoint, device=settings.device, dtype=settings.dtype, batch_cells=settings.batch_cells
        )
        self.manifest = checkpoint.manifest
        self._num_parameters = sum(tensor.numel() for tensor in checkpoint.weights.values())
        own_controls = settings.controls is None
        self.pool: ControlPool = (
            checkpoint_controls(checkpoint)
            if settings.controls is None
            else file_controls(settings.controls, checkpoint.manifest)
        )
        self._source = self._encoded()
        self.genes = output_names(self.manifest)
        warm_up(self.predictor, self._source, compare=own_controls)
        self.genes_json = json.dumps(self.genes).encode()
        """The gene names as a JSON list; every summary holds them."""
        self.control_json = self._control_json()
        """`schemas.ControlProfile` of each cell type as JSON; empty where the expression is not known."""
        self.batcher: MicroBatcher = MicroBatcher(
            self._run,
            batch_cells=settings.batch_cells,
            max_queued_cells=settings.max_queued_cells,
            linger=settings.linger_ms / 1000,
            observe=metrics.batch,
            watch=metrics.queued,
        )

    def _encoded(self) -> "ControlPool | EncodedControls":
        model = self.manifest.model
        num_bytes = 4 * len(self.pool) * (model.input_dim + model.hidden_dim)
        return self.predictor.encode(self.pool) if num_bytes <= ENCODED_BYTES else self.pool

    def _run(self, planned: list[Any]) -> Any:
        for block in self.predictor.predict_blocks(planned, self._source):
            yield from block.split()

    def _control_json(self) -> dict[str, bytes]:
        from steval.predictor.means import control_mean

        if not self.pool.has_measured:
            return {}
        pieces = {}
        for cell_type in self.pool.cell_type_names:
            rows = np.flatnonzero(self.pool.cell_types == cell_type)
            mean = json_numbers(control_mean(self.pool, rows))
            pieces[cell_type] = json_object({"cell_type": cell_type, "num_cells": len(rows)}, {"mean": mean})
        return pieces

    @cached_property
    def recorded_files(self) -> list[str]:
        """Paths of the data files that the checkpoint records: what a scoring job may read beside its own."""
        references = [self.manifest.evaluation, self.manifest.training_data]
        return [str(file.path) for reference in references if reference is not None for file in reference.files]

    @cached_property
    def card(self) -> ModelCard:
        """The model card of `GET /model`."""
        manifest, predictor, settings = self.manifest, self.predictor, self.settings
        training = manifest.training
        limits = ("max_cells", "max_json_values", "max_queued_cells", "max_body_bytes", "max_upload_bytes")
        return ModelCard(
            name=Path(predictor.path).name,
            checkpoint=predictor.digest,
            made_by=manifest.made_by,
            created=manifest.created,
            steval_version=__version__,
            scale=manifest.scale if manifest.output_genes is not None else "embedding",
            target_sum=manifest.target_sum,
            num_genes=len(self.genes),
            num_perturbations=len(predictor.known),
            control=manifest.control,
            cell_types=self.pool.cell_type_names,
            batches=sorted(set(self.pool.batches.tolist())) if self.pool.has_batches else [],
            num_controls=len(self.pool),
            set_size=predictor.set_size,
            attention=predictor.attention,
            parameters=self._num_parameters,
            dtype=predictor.dtype,
            device=str(predictor.device),
            architecture=manifest.model.as_dict(),
            training=training.as_dict() if training else None,
            has_evaluation_data=manifest.evaluation is not None,
            licence=manifest.licence,
            evidence=evidence_sentence(manifest),
            notes=list(manifest.notes),
            limits={name: getattr(settings, name) for name in limits},
        )

    def close(self) -> None:
        """Finish what was accepted, then let go of the files."""
        self.batcher.stop()
        self.pool.close()


class Runtime:
    """A worker's life: `start` loads in the background, `close` drains."""

    def __init__(self, settings: ServiceSettings):
        self.settings = settings
        self.metrics = service_metrics()
        self.state: State = "starting"
        self.reason = "the checkpoint is being loaded"
        self._model: Model | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="steval-service-")
        self.jobs = JobStore(
            settings.job_dir or shared_directory("jobs"), max_jobs=settings.max_jobs, ttl=settings.job_ttl
        )
        self.runner = JobRunner(self.jobs, settings, self.metrics)
        self._loader = threading.Thread(target=self._load, name="steval-loader", daemon=True)

    @property
    def scratch(self) -> Path:
        """A directory for this worker's temporary files."""
        return Path(self._scratch.name)

    @property
    def model(self) -> Model:
        """The loaded model; a `ServiceError` 503 with the reason while there is none."""
        if self._model is None or self.state != "ready":
            retry = STARTING_RETRY if self.state == "starting" else None
            raise ServiceError(f"not ready: {self.reason}", status=503, code="not_ready", retry_after=retry)
        return self._model

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._loader.start()

    def wait(self, timeout: float | None = None) -> State:
        """Wait until loading has ended, well or not."""
        self._loader.join(timeout)
        return self.state

    def close(self) -> None:
        """Finish what was accepted, then let everything go."""
        self._loader.join()
        self.state, self.reason = "stopping", "the service is shutting down"
        if self._model is not None:
            self._model.close()
        self.runner.stop()
        self._scratch.cleanup()
        if self.settings.job_dir is None and self.settings.workers == 1:
            shutil.rmtree(self.jobs.directory, ignore_errors=True)

    def _load(self) -> None:
        try:
            self._model = Model(self.settings, self.metrics)
        except StevalError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("the checkpoint could not be loaded")
            self._fail(f"internal error while loading: {type(error).__name__}")
        else:
            self.state, self.reason = "ready", "ready"
            log.info("ready: %s", self._model.predictor.path)

    def _fail(self, reason: str) -> None:
        self.state, self.reason = "failed", reason
        log.error("not ready: %s", reason)
