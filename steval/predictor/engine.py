"""The engine behind command line, service and batch jobs: sets of many perturbations in one batch, never merged.

What depends on the control cells alone is computed once. Sets of one size go through the network together, so that
nothing is padded. Memory does not grow with the number of predicted cells.
Shape letters: N cells, B sets, S cells of a set, P perturbation features, G output columns.
"""

import inspect
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from steval.checkpoints.location import pinned_reference
from steval.checkpoints.store import Checkpoint
from steval.data.effects.decoding import DecodingSettings
from steval.errors import ConfigError
from steval.limits import require_memory
from steval.model.config import Attention
from steval.model.hardware import has_native_bf16, lowered_by, slow_bf16_notice
from steval.model.inference import ControlTerms, InferenceNetwork
from steval.model.network import Prediction
from steval.predictor.cells.decoding import Decoder, Network
from steval.predictor.cells.predicted import PredictedBlock, PredictedSet, PredictionFacts
from steval.predictor.cells.transfer import cells_to_host
from steval.predictor.controls import ControlPool
from steval.predictor.plan import PredictionPlan, make_plan
from steval.predictor.requests import PredictionRequest
from steval.predictor.sets import PlannedItem, PlannedSet, windows
from steval.wording import counted

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
DEFAULT_BATCH_CELLS = 1024
"""1024 cells × 18,080 genes in float32 are 74 MB."""
ENCODE_ROWS = 256
ENCODED_BYTES = 512 * 2**20
"""Most memory for encoded control cells; requests that use more are done in several waves."""


@dataclass(frozen=True)
class EncodedControls:
    """What the network needs of control cells, computed once. `rows` (sorted) are the pool's rows `[N]`."""

    pool: ControlPool
    rows: np.ndarray
    terms: ControlTerms
    batch_N: Tensor | None
    """Batch codes, where the network has a batch encoder."""

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where the pool's `rows` are in the tensors."""
        return np.searchsorted(self.rows, rows)


class Predictor:
    """A checkpoint ready to predict.

    `device`: auto, cpu, cuda, cuda:N. `dtype`: float32 or bf16 (weights and activations). `batch_cells`: cells that
    are computed together. `attention` overrides the checkpoint's regime, `set_size` its cells per set, `decoding` how its
    predictions become cells.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: Dtype = "float32",
        batch_cells: int = DEFAULT_BATCH_CELLS,
        attention: Attention | None = None,
        set_size: int | None = None,
        compile: bool = False,
        decoding: DecodingSettings | None = None,
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is not known; allowed: {', '.join(DTYPES)}")
        if batch_cells < 1 or (set_size is not None and set_size < 1):
            raise ConfigError(f"batch_cells ({batch_cells}) and set_size ({set_size}) must be at least 1")
        self.manifest = checkpoint.manifest
        self.digest = checkpoint.digest
        self.path = checkpoint.path
        self.device = choose_device(device)
        if dtype == "bf16" and not has_native_bf16(self.device):
            log.warning("warning: %s", slow_bf16_notice("dtype bf16"))
        self.dtype = dtype
        self.batch_cells = batch_cells
        self.attention: Attention = attention or self.manifest.model.attention
        self.set_size = set_size or self.manifest.model.cell_set_size
        self.compiled = compile
        self.decoder = Decoder(checkpoint, decoding)
        self._features = checkpoint.features
        self._feature_row = {name: row for row, name in enumerate(self.manifest.perturbation_names)}
        with lowered_by(self._less_memory):
            self._network = InferenceNetwork.from_network(
                checkpoint.network().to(self.device), DTYPES[dtype], attention
            )
        self._run = _compiled(self._network) if compile else self._network.predict
        self._batch_codes = {name: code for code, name in enumerate(self.manifest.batches)}

    @property
    def known(self) -> list[str]:
        """Perturbations that can be asked for, the control left out."""
        return [name for name in self.manifest.perturbation_names if name != self.manifest.control]

    @property
    def num_outputs(self) -> int:
        """Columns of a prediction: output genes, or embedding dimensions."""
        return self.manifest.model.prediction_dim

    def weights(self) -> dict[str, Tensor]:
        """The network's weights on its device, in its dtype; shared, not to be changed."""
        return self._network.weights()

    def settings(self) -> dict[str, object]:
        """Everything that was set or taken by default, for the record of an output."""
        return {
            "device": str(self.device),
            "dtype": self.dtype,
            "batch_cells": self.batch_cells,
            "attention": self.attention,
            "set_size": self.set_size,
            "compile": self.compiled,
        }

    def facts(self, request: PredictionRequest, made_by: str = "steval predict") -> PredictionFacts:
        """Where this engine's predictions of `request` come from, for the record of an output."""
        decoding = self.decoder.chosen(request.decoding).settings.as_dict()
        name = pinned_reference(self.path) or str(self.path)
        return PredictionFacts(made_by, name, self.digest, {**self.settings(), "decoding": decoding})

    def facts_of(self, plan: PredictionPlan, made_by: str = "steval predict") -> PredictionFacts:
        """`facts` with how wrong the cells of a plan are expected to be."""
        return replace(self.facts(plan.request, made_by), expected_error=self.expected_errors(plan))

    def plan(self, request: PredictionRequest, pool: ControlPool) -> PredictionPlan:
        """`plan.make_plan` for this checkpoint and set size; cells that are computed together must fit the memory."""
        plan = make_plan(request, pool, self.manifest, self.set_size)
        together = min(max(self.batch_cells, self.set_size), request.num_cells)
        if not self._on_cuda:  # a GPU says itself when it is full
            require_memory(
                together * 2 * 4 * self.num_outputs,
                f"{counted(together, 'cell')} computed together",
                f"lower --batch-cells (now {self.batch_cells:,}) or --set-size (now {self.set_size:,})",
            )
        return plan

    def predict(self, request: PredictionRequest, pool: "ControlPool | EncodedControls") -> Iterator[PredictedSet]:
        """The sets of `request` in its order; the request is checked before the first is computed."""
        plan = self.plan(request, pool.pool if isinstance(pool, EncodedControls) else pool)
        return itertools.chain.from_iterable(block.split() for block in self.blocks(plan, pool))

    def blocks(
        self, plan: PredictionPlan, pool: "EncodedControls | ControlPool | None" = None, *, sparse: bool = False
    ) -> Iterator[PredictedBlock]:
        """The cells of a plan as its decoding says, as `output.write_predictions` takes them.

        `pool`: its controls, encoded before; `sparse`: as CSR.
        """
        network = self._network_of(plan, pool)
        return self.decoder.chosen(plan.request.decoding).blocks(plan, network, sparse=sparse)

    def effects(self, plan: PredictionPlan, items: Sequence[PlannedItem]) -> list[np.ndarray]:
        """What this checkpoint's cells of `items` of a plan would carry, `[G]` float64 each."""
        return self.decoder.chosen(plan.request.decoding).effects(plan, items, self._network_of(plan, None))

    def expected_errors(self, plan: PredictionPlan) -> list[dict[str, Any]] | None:
        """How wrong the cells of a plan are expected to be; see `Decoder.expected_errors`."""
        return self.decoder.chosen(plan.request.decoding).expected_errors(plan)

    def _network_of(self, plan: PredictionPlan, pool: "EncodedControls | ControlPool | None") -> Network:
        def network(inner: PredictionPlan, csr: bool) -> Iterator[PredictedBlock]:
            source = pool or inner.pool
            if inner is plan:
                return self.predict_blocks(inner.sets(), source, sparse=csr)
            # effects come item by item, so that what else is asked for changes no bit of them
            sets = (item.sets(inner.request.seed, inner.set_size) for item in inner.items)
            return itertools.chain.from_iterable(self.predict_blocks(one, source, sparse=csr) for one in sets)

        return network

    def predict_blocks(
        self, planned: Iterable[PlannedSet], pool: "ControlPool | EncodedControls", *, sparse: bool = False
    ) -> Iterator[PredictedBlock]:
        """The network's own cells of planned sets (of one request or many) in the given order, as blocks of a few hundred.

        `sparse`: as CSR.
        """
        with lowered_by(self._less_memory):
            if isinstance(pool, EncodedControls):
                yield from self._predict_wave(planned, pool, sparse)
                return
            for wave in self._waves(planned):
                rows = np.unique(np.concatenate([one.control_indices for one in wave]))
                yield from self._predict_wave(wave, self._encode(pool, rows), sparse)

    def encode(self, pool: ControlPool) -> EncodedControls:
        """All controls of a pool encoded, for many predictions from it (the service's case)."""
        with lowered_by(self._less_memory):
            return self._encode(pool, np.arange(len(pool)))

    def _less_memory(self) -> str:
        return (
            f"Lower --batch-cells (now {self.batch_cells}), take --dtype bf16 (now {self.dtype}), end other programs "
            "that use its memory, or predict on another --device"
        )

    def _encode(self, pool: ControlPool, rows: np.ndarray) -> EncodedControls:
        parts = []
        for start in range(0, len(rows), ENCODE_ROWS):
            dense = torch.from_numpy(pool.inputs(rows[start : start + ENCODE_ROWS]).toarray())
            parts.append(self._network.encode_controls(dense.pin_memory() if self._on_cuda else dense))
        return EncodedControls(pool, rows, ControlTerms.concatenate(parts), self._codes(pool, rows))

    def _predict_wave(
        self, sets: Iterable[PlannedSet], encoded: EncodedControls, sparse: bool
    ) -> Iterator[PredictedBlock]:
        begun: deque[list[PlannedSet]] = deque()

        def computed() -> Iterator[Tensor]:
            for window in windows(sets, self.batch_cells):
                begun.append(window)
                yield self._predict_window(window, encoded)

        for cells in cells_to_host(computed(), self.device, sparse=sparse):
            yield PredictedBlock(begun.popleft(), cells)

    @torch.no_grad()
    def _predict_window(self, window: list[PlannedSet], encoded: EncodedControls) -> Tensor:
        """Cells of the window `[N, G]` in its order; the sets of one size are one batch."""
        sizes = np.array([one.num_cells for one in window])
        if len(set(sizes.tolist())) == 1:
            return self._predict_batch(window, encoded).flatten(0, 1)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        cells_NG = torch.empty((int(sizes.sum()), self.num_outputs), device=self.device)
        for size in np.unique(sizes):
            members = np.flatnonzero(sizes == size)
            output_BSG = self._predict_batch([window[member] for member in members], encoded)
            place_BS = torch.from_numpy(starts[members][:, None] + np.arange(size)).to(self.device)
            cells_NG[place_BS.flatten()] = output_BSG.flatten(0, 1)
        return cells_NG

    def _predict_batch(self, sets: Sequence[PlannedSet], encoded: EncodedControls) -> Tensor:
        """Predicted cells `[B, S, G]` of sets of one size."""
        indices_BS = torch.from_numpy(np.stack([encoded.positions(one.control_indices) for one in sets])).to(
            self.device
        )
        features_BP = self._features[[self._feature_row[one.perturbation] for one in sets]]
        batch_BS = None if encoded.batch_N is None else encoded.batch_N[indices_BS]
        prediction = self._run(encoded.terms, indices_BS, features_BP, batch_BS)
        return prediction.output_BSG if prediction.genes_BSD is None else prediction.genes_BSD

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _waves(self, planned: Iterable[PlannedSet]) -> Iterator[list[PlannedSet]]:
        limit = max(1, ENCODED_BYTES // (4 * self._terms_width()))
        wave: list[PlannedSet] = []
        used: set[int] = set()
        for one in planned:
            rows = one.control_indices.tolist()
            if wave and len(used) + sum(row not in used for row in rows) > limit:
                yield wave
                wave, used = [], set()
            wave.append(one)
            used.update(rows)
        if wave:
            yield wave

    def _terms_width(self) -> int:
        """Columns that one encoded control cell takes at most."""
        model = self.manifest.model
        return model.hidden_dim + (model.output_dim // 8 if model.has_bottleneck else model.input_dim)

    def _codes(self, pool: ControlPool, rows: np.ndarray) -> Tensor | None:
        if not self.manifest.model.batch_encoder:
            return None
        return torch.tensor([self._batch_codes[label] for label in pool.batches[rows]], device=self.device)


def _compiled(network: InferenceNetwork) -> Callable[..., Prediction]:
    """`network.predict` compiled at its first call; a compiler that fails is a `ConfigError`."""
    from torch._dynamo.exc import TorchDynamoException

    # Inductor cannot trace views inside inference mode; no weight asks for gradients, so nothing is lost without it
    compiled = torch.compile(MethodType(inspect.unwrap(InferenceNetwork.predict), network))

    def run(*arguments: object) -> Prediction:
        try:
            return compiled(*arguments)
        except TorchDynamoException as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"the network cannot be compiled here ({reason}); leave --compile out") from error

    return run


def choose_device(name: str) -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; a device that is not there is a `ConfigError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but torch sees no CUDA device; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N")
    return device
