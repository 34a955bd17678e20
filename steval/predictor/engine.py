"""The engine behind command line, service and batch jobs: sets of many perturbations in one batch, never merged.

What depends on the control cells alone is computed once. Linear layers see the cells of all sets together; attention sees
sets of one size at a time, so that nothing is padded. Memory does not grow with the number of predicted cells.
Shape letters: N control cells or predicted cells, B sets, S cells of a set, C hidden size, P features, G output columns.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from steval.checkpoints.store import Checkpoint
from steval.errors import ConfigError
from steval.model.config import Attention
from steval.predictor.controls import ControlPool
from steval.predictor.requests import PredictionRequest, require_known, require_unique
from steval.predictor.sets import PlannedSet, plan_sets, windows

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
DEFAULT_BATCH_CELLS = 4096
OUTPUT_ROWS = 512
"""Cells that pass the output layers together: 512 × 18,080 float32 are 37 MB."""
ENCODED_BYTES = 512 * 2**20
"""Most memory for encoded control cells; requests that use more are done in several waves."""


@dataclass(frozen=True)
class PredictedSet:
    """One predicted cell set; `cells [n, G]` float32 on the checkpoint's scale (or an embedding)."""

    planned: PlannedSet
    cells: np.ndarray

    @property
    def perturbation(self) -> str:
        return self.planned.perturbation

    @property
    def cell_type(self) -> str:
        return self.planned.cell_type

    @property
    def batch(self) -> str | None:
        return self.planned.batch

    @property
    def control_indices(self) -> np.ndarray:
        """Rows of the control pool `[n]` that the cells started from."""
        return self.planned.control_indices


@dataclass(frozen=True)
class PredictedBlock:
    """Several consecutive sets in one matrix `[sum of n, G]`, as they leave the network."""

    sets: list[PlannedSet]
    cells: np.ndarray

    def split(self) -> Iterator[PredictedSet]:
        """The sets one by one; views of `cells`."""
        start = 0
        for planned in self.sets:
            yield PredictedSet(planned, self.cells[start : start + planned.num_cells])
            start += planned.num_cells


@dataclass(frozen=True)
class EncodedControls:
    """What the network needs of control cells, computed once. `rows` (sorted) are the pool's rows `[N]`."""

    pool: ControlPool
    rows: np.ndarray
    basal_NC: Tensor
    inputs_NG: Tensor | None
    batch_N: Tensor | None

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where the pool's `rows` are in the tensors."""
        return np.searchsorted(self.rows, rows)


class Predictor:
    """A checkpoint ready to predict.

    `device`: auto, cpu, cuda, cuda:N. `dtype`: float32 or bf16 (weights and activations). `batch_cells`: cells that pass
    the backbone together. `attention` overrides the checkpoint's regime, `set_size` its cells per set.
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
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is not known; allowed: {', '.join(DTYPES)}")
        if batch_cells < 1 or (set_size is not None and set_size < 1):
            raise ConfigError(f"batch_cells ({batch_cells}) and set_size ({set_size}) must be at least 1")
        self.manifest = checkpoint.manifest
        self.digest = checkpoint.digest
        self.path = checkpoint.path
        self.device = choose_device(device)
        self.dtype = dtype
        self.batch_cells = batch_cells
        self.attention: Attention = attention or self.manifest.model.attention
        self.set_size = set_size or self.manifest.model.cell_set_size
        self.compiled = compile
        self._checkpoint = checkpoint
        self._network = checkpoint.network(attention).to(self.device, DTYPES[dtype])
        self._run_backbone = torch.compile(self._network.run_backbone) if compile else self._network.run_backbone
        self._batch_codes = {name: code for code, name in enumerate(self.manifest.batches)}

    @property
    def known(self) -> list[str]:
        """Perturbations that can be asked for, the control left out."""
        return [name for name in self.manifest.perturbation_names if name != self.manifest.control]

    @property
    def num_outputs(self) -> int:
        """Columns of a prediction: output genes, or embedding dimensions."""
        model = self.manifest.model
        return model.gene_decoder.gene_dim if model.gene_decoder else model.output_dim

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

    def plan(self, request: PredictionRequest, pool: ControlPool) -> list[PlannedSet]:
        """The sets of a request with their controls. Raises for anything that the checkpoint or the pool cannot serve."""
        require_unique(request.items, "the request")
        require_known((item.perturbation for item in request.items), self.manifest.perturbation_names, self.manifest.control)
        self._require_batches(request, pool)
        return plan_sets(request, pool, self.set_size)

    def predict(self, request: PredictionRequest, pool: "ControlPool | EncodedControls") -> Iterator[PredictedSet]:
        """The sets of `request` in its order; the request is checked before the first is computed."""
        planned = self.plan(request, pool.pool if isinstance(pool, EncodedControls) else pool)
        return itertools.chain.from_iterable(block.split() for block in self.predict_blocks(planned, pool))

    def predict_blocks(
        self, planned: Iterable[PlannedSet], pool: "ControlPool | EncodedControls"
    ) -> Iterator[PredictedBlock]:
        """Planned sets (of one request or of many) in the given order, as blocks of a few hundred cells."""
        if isinstance(pool, EncodedControls):
            yield from self._predict_wave(list(planned), pool)
            return
        for wave in self._waves(planned):
            rows = np.unique(np.concatenate([one.control_indices for one in wave]))
            yield from self._predict_wave(wave, self._encode(pool, rows))

    def encode(self, pool: ControlPool) -> EncodedControls:
        """All controls of a pool encoded, for many predictions from it (the service's case)."""
        return self._encode(pool, np.arange(len(pool)))

    @torch.inference_mode()
    def _encode(self, pool: ControlPool, rows: np.ndarray) -> EncodedControls:
        basal, inputs = [], []
        for start in range(0, len(rows), OUTPUT_ROWS):
            dense = torch.from_numpy(pool.inputs(rows[start : start + OUTPUT_ROWS]).toarray())
            dense = dense.to(self.device, DTYPES[self.dtype])
            basal.append(self._network.basal_encoder(dense))
            inputs.append(dense)
        return EncodedControls(pool, rows, torch.cat(basal), torch.cat(inputs), self._codes(pool, rows))

    def _predict_wave(self, sets: Sequence[PlannedSet], encoded: EncodedControls) -> Iterator[PredictedBlock]:
        for window in windows(sets, self.batch_cells):
            positions = np.concatenate([encoded.positions(one.control_indices) for one in window])
            position_N = torch.from_numpy(positions).to(self.device)
            cells_NC = self._hidden(window, position_N, encoded)
            start = 0
            for block in windows(window, OUTPUT_ROWS):
                end = start + sum(one.num_cells for one in block)
                yield PredictedBlock(block, self._outputs(cells_NC[start:end], position_N[start:end], encoded))
                start = end

    @torch.inference_mode()
    def _hidden(self, window: list[PlannedSet], position_N: Tensor, encoded: EncodedControls) -> Tensor:
        """Cells after the backbone `[N, C]`, in window order; sets of one size go through it together."""
        names = list(dict.fromkeys(one.perturbation for one in window))
        features = self._checkpoint.feature_rows(names).to(self.device, DTYPES[self.dtype])
        encoded_PC = self._network.pert_encoder(features)
        row = {name: index for index, name in enumerate(names)}
        sizes = np.array([one.num_cells for one in window])
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        hidden_NC = torch.empty((int(sizes.sum()), encoded_PC.shape[1]), dtype=encoded_PC.dtype, device=self.device)
        for size in np.unique(sizes):
            members = np.flatnonzero(sizes == size)
            place_BS = torch.from_numpy(starts[members][:, None] + np.arange(size)).to(self.device)
            pert_B = torch.tensor([row[window[member].perturbation] for member in members], device=self.device)
            position_BS = position_N[place_BS]
            tokens_BSC = encoded.basal_NC[position_BS] + encoded_PC[pert_B][:, None]
            if encoded.batch_N is not None:
                tokens_BSC = tokens_BSC + self._network.batch_encoder(encoded.batch_N[position_BS])
            hidden_NC[place_BS] = self._run_backbone(tokens_BSC).cells_BSC
        return hidden_NC

    @torch.inference_mode()
    def _outputs(self, cells_NC: Tensor, position_N: Tensor, encoded: EncodedControls) -> np.ndarray:
        output = self._network.run_head(cells_NC, encoded.inputs_NG[position_N], encoded.basal_NC[position_N])
        if self._network.gene_decoder is not None:
            output = self._network.gene_decoder(output)
        return output.to("cpu", torch.float32).numpy()

    def _waves(self, planned: Iterable[PlannedSet]) -> Iterator[list[PlannedSet]]:
        model = self.manifest.model
        limit = max(1, ENCODED_BYTES // (4 * (model.hidden_dim + model.input_dim)))
        wave: list[PlannedSet] = []
        used: set[int] = set()
        for one in planned:
            new = used.union(one.control_indices.tolist())
            if wave and len(new) > limit:
                yield wave
                wave, new = [], set(one.control_indices.tolist())
            wave.append(one)
            used = new
        if wave:
            yield wave

    def _codes(self, pool: ControlPool, rows: np.ndarray) -> Tensor | None:
        if self._network.batch_encoder is None:
            return None
        return torch.tensor([self._batch_codes[label] for label in pool.batches[rows]], device=self.device)

    def _require_batches(self, request: PredictionRequest, pool: ControlPool) -> None:
        if self._network.batch_encoder is None:
            return
        unknown = sorted(set(pool.batches.tolist()) - set(self._batch_codes))
        if unknown:
            raise ConfigError(
                f"the checkpoint encodes batches, and {pool.name} have {len(unknown)} that it does not know: "
                f"{', '.join(map(repr, unknown[:10]))}; known: {', '.join(self.manifest.batches[:20])}"
            )


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
