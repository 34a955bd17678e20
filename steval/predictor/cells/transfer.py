"""Predicted cells on their way to the host, from a GPU while it computes what comes next.

There cells are copied into pinned memory on a stream of their own; as CSR they are compacted on the GPU before, which leaves the
zeros there. Shape letters: N cells, G output columns, V values that are not zero.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from steval.data.rows.csr import csr_of

HostCells = np.ndarray | sp.csr_matrix


@dataclass(frozen=True)
class _Computed:
    """Cells that a GPU has been told to compute, and when it will have."""

    cells_NG: Tensor
    ready: torch.cuda.Event


@dataclass(frozen=True)
class _Coming:
    """Pinned memory that is being filled, and when it will be full."""

    parts: tuple[Tensor, ...]
    full: torch.cuda.Event
    num_columns: int

    def host(self) -> HostCells:
        """The cells; waits for them."""
        self.full.synchronize()
        if len(self.parts) == 1:
            return self.parts[0].numpy()
        values_V, columns_V, counts_N = (part.numpy() for part in self.parts)
        indptr = np.concatenate([[0], np.cumsum(counts_N, dtype=np.int64)])
        return sp.csr_matrix((values_V, columns_V, indptr), shape=(len(counts_N), self.num_columns))


def cells_to_host(computed: Iterable[Tensor], device: torch.device, *, sparse: bool) -> Iterator[HostCells]:
    """The cells `[N, G]` of each tensor on the host, in order: dense, or CSR of what is not zero.

    From a GPU the next tensor is asked for, and so its computation begun, before the one before it is copied: three are alive
    at once.
    """
    if device.type != "cuda":
        for cells_NG in computed:
            yield csr_of(cells_NG.numpy()) if sparse else cells_NG.numpy()
        return
    stream = torch.cuda.Stream(device)
    waiting: _Computed | None = None
    coming: _Coming | None = None
    for cells_NG in computed:
        ready = torch.cuda.current_stream(device).record_event()
        following = _copied(waiting, stream, sparse) if waiting is not None else None
        if coming is not None:
            yield coming.host()
        waiting, coming = _Computed(cells_NG, ready), following
    if coming is not None:
        yield coming.host()
    if waiting is not None:
        yield _copied(waiting, stream, sparse).host()


def _copied(computed: _Computed, stream: torch.cuda.Stream, sparse: bool) -> _Coming:
    cells_NG = computed.cells_NG
    with torch.cuda.stream(stream):
        stream.wait_event(computed.ready)
        parts = compacted(cells_NG) if sparse else (cells_NG,)
        pinned = tuple(torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts)
        for there, here in zip(pinned, parts, strict=True):
            there.copy_(here, non_blocking=True)
        cells_NG.record_stream(stream)
        return _Coming(pinned, stream.record_event(), cells_NG.shape[1])


def compacted(cells_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values that are not zero, their columns (int32), row after row, and how many each cell has (int32)."""
    is_kept_NG = cells_NG != 0
    places_V = is_kept_NG.flatten().nonzero()[:, 0]
    values_V = cells_NG.flatten()[places_V]
    columns_V = places_V.remainder_(cells_NG.shape[1]).to(torch.int32)
    return values_V, columns_V, is_kept_NG.sum(dim=1, dtype=torch.int32)
