"""One loaded checkpoint, whole or an adapter on a base that is loaded: predictor, control cells, batcher, and the parts of
answers that are always the same."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steval import __version__
from steval.checkpoints.evidence import evidence_sentence
from steval.data.files import require_file
from steval.service.http.encoding import json_numbers, json_object
from steval.service.http.telemetry import ServiceMetrics
from steval.service.models.threads import NetworkThread
from steval.service.schemas import ModelCard
from steval.service.settings import ServiceSettings

if TYPE_CHECKING:
    from steval.checkpoints.adapters.beside import SharedBase
    from steval.predictor.controls import ControlPool
    from steval.predictor.engine import EncodedControls

ENCODED_BYTES = 512 * 2**20
"""Most memory for control cells that stay encoded; larger pools are encoded as they are needed."""


class Model:
    """A loaded checkpoint ready to answer."""

    def __init__(
        self,
        path: Path,
        settings: ServiceSettings,
        metrics: ServiceMetrics,
        *,
        networks: NetworkThread,
        controls: Path | None = None,
        base: "SharedBase | None" = None,
    ):
        """Load `path` and predict once; raises `StevalError`. `networks`: where its batches run; `controls`: an h5ad to start from
        instead of its own; `base`: where `path` is an adapter, what it shares tensors with."""
        from steval.checkpoints.adapters.beside import SharedBase, load_beside
        from steval.checkpoints.store import assembled, read_tensors
        from steval.predictor.controls import checkpoint_controls, file_controls
        from steval.predictor.engine import Predictor
        from steval.predictor.output import output_names
        from steval.service.predict.batcher import MicroBatcher
        from steval.service.predict.warmup import warm_up

        tensors = {}
        if base is not None:
            checkpoint = load_beside(base, path)
        else:
            tensors, manifest, digest = read_tensors(path)
            checkpoint = assembled(path, tensors, manifest, digest)
        self.settings = settings
        self.base = base
        self.predictor: Predictor = Predictor(
            checkpoint, device=settings.device, dtype=settings.dtype, batch_cells=settings.batch_cells
        )
        self.manifest = checkpoint.manifest
        kept = {name: tensor for name, tensor in tensors.items() if name not in checkpoint.weights}
        self.shared: SharedBase = base or SharedBase(
            path, self.manifest, checkpoint.digest, kept | self.predictor.weights()
        )
        """What adapters on this model take their tensors from; of an adapter: its base."""
        beside = [matrix for pair in checkpoint.beside.values() for matrix in (pair.a_RI, pair.b_OR)]
        self._num_parameters = sum(tensor.numel() for tensor in (*checkpoint.weights.values(), *beside))
        self.controls = controls
        self.controls_version = None if controls is None else _version_of(controls)
        """Changes with the file of control cells; None where they are the checkpoint's own."""
        self.pool: ControlPool = (
            checkpoint_controls(checkpoint) if controls is None else file_controls(controls, checkpoint.manifest)
        )
        self._source = self._encoded()
        self.genes = output_names(self.manifest)
        warm_up(self.predictor, self._source, compare=controls is None)
        self.genes_json = json.dumps(self.genes).encode()
        """The gene names as a JSON list; every summary holds them."""
        self.control_json = self._control_json()
        """`schemas.ControlProfile` of each cell type as JSON; empty where the expression is not known."""
        self.batcher: MicroBatcher = MicroBatcher(
            self._run,
            batch_cells=settings.batch_cells,
            max_queued_cells=settings.max_queued_cells,
            linger=settings.linger_ms / 1000,
            perform=networks.run,
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
        from steval.predictor.controls import control_mean

        if not self.pool.has_measured:
            return {}
        pieces = {}
        for cell_type in self.pool.cell_type_names:
            rows = np.flatnonzero(self.pool.cell_types == cell_type)
            mean = json_numbers(control_mean(self.pool, rows))
            pieces[cell_type] = json_object({"cell_type": cell_type, "num_cells": len(rows)}, {"mean": mean})
        return pieces

    @cached_property
    def card(self) -> ModelCard:
        """The model card of `GET /model`."""
        manifest, predictor, settings = self.manifest, self.predictor, self.settings
        training = manifest.training
        limits = ("max_cells", "max_json_values", "max_queued_cells", "max_body_bytes", "max_upload_bytes")
        return ModelCard(
            name=Path(predictor.path).name,
            checkpoint=predictor.digest,
            base=None if self.base is None else self.base.digest,
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


def _version_of(path: Path) -> str:
    status = require_file(path, "file of control cells").stat()
    return f"{path}, size {status.st_size}, changed at {status.st_mtime_ns}"
