"""One batch of cell sets as tensors: dense as the network takes it, or packed for the way to a device.

A cell of 18,080 genes expresses about a tenth of them: packed, it is a seventh of the bytes, and the device makes it dense.
Shape letters: B sets, S cells, G columns of the input, P perturbation features, D genes of a separate gene target, N values.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from steval.data.training.row_store import SparseRows
from steval.data.training.sets import SetBatch


class Batch(NamedTuple):
    """What one forward and backward pass takes; expression is lognorm."""

    control_BSG: Tensor
    target_BSG: Tensor
    pert_BP: Tensor
    batch_BS: Tensor | None
    padding_BS: Tensor | None
    genes_BSD: Tensor | None
    auxiliary_BA: Tensor | None = None
    """Standardised mean embedding of each set's measured cells."""

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; asynchronous from pinned memory."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of every tensor moved."""
        return Batch(
            move(self.control_BSG),
            move(self.target_BSG),
            move(self.pert_BP),
            *(None if tensor is None else move(tensor) for tensor in self[3:]),
        )


class PackedRows(NamedTuple):
    """Cells of B sets by their stored values, row after row."""

    values_N: Tensor
    columns_N: Tensor
    """int16 or int32."""
    counts_BS: Tensor
    """int32: values of each cell."""
    num_genes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense cells."""
        return (*self.counts_BS.shape, self.num_genes)

    def dense(self, into_BSG: Tensor | None = None) -> Tensor:
        """`[B, S, G]` float32 where the values are, to the bit what the host would make; waits for nothing. `into_BSG`:
        the memory to write into."""
        num_sets, num_cells = self.counts_BS.shape
        numbers = torch.arange(num_sets * num_cells, device=self.values_N.device)
        rows_N = numbers.repeat_interleave(self.counts_BS.flatten(), output_size=len(self.values_N))
        places_N = rows_N.mul_(self.num_genes).add_(self.columns_N)
        dense_BSG = self.values_N.new_zeros(self.shape) if into_BSG is None else into_BSG.zero_()
        dense_BSG.view(-1).scatter_add_(0, places_N, self.values_N)
        return dense_BSG


class PackedBatch(NamedTuple):
    """A `Batch` whose expression may be packed."""

    control: Tensor | PackedRows
    target: Tensor | PackedRows
    pert_BP: Tensor
    batch_BS: Tensor | None
    padding_BS: Tensor | None
    genes: Tensor | PackedRows | None
    auxiliary_BA: Tensor | None = None

    @classmethod
    def of(cls, cells: SetBatch, features: Tensor) -> Self:
        """The cells of a batch and the rows of `features` that belong to them; memory is shared."""
        shape = cells.target_rows_BS.shape
        genes = cells.target_genes_BSD
        return cls(
            _tensor(cells.control_BSG, shape),
            _tensor(cells.target_BSG, shape),
            features[torch.from_numpy(cells.pert_codes_B)],
            torch.from_numpy(cells.batch_codes_BS),
            None if cells.padding_BS is None else torch.from_numpy(cells.padding_BS),
            None if genes is None else _tensor(genes, shape),
            None if cells.auxiliary_BA is None else torch.from_numpy(cells.auxiliary_BA),
        )

    def each(self, move: Callable[[Tensor], Tensor]) -> "PackedBatch":
        """The batch of every tensor moved."""
        return PackedBatch(
            _each(self.control, move),
            _each(self.target, move),
            move(self.pert_BP),
            *(None if tensor is None else move(tensor) for tensor in (self.batch_BS, self.padding_BS)),
            None if self.genes is None else _each(self.genes, move),
            None if self.auxiliary_BA is None else move(self.auxiliary_BA),
        )

    def pin(self) -> "PackedBatch":
        """The same in pinned memory; what is there already stays where it is."""
        return self.each(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The dense batch on `device`, made dense there; asynchronous from pinned memory."""
        moved = self.each(lambda tensor: tensor.to(device, non_blocking=True))
        return Batch(
            _dense(moved.control),
            _dense(moved.target),
            moved.pert_BP,
            moved.batch_BS,
            moved.padding_BS,
            None if moved.genes is None else _dense(moved.genes),
            moved.auxiliary_BA,
        )

    def fits(self, dense: Batch) -> bool:
        """Whether this batch is of the shapes of `dense`."""
        return all(
            (part is None and other is None)
            or (part is not None and other is not None and tuple(part.shape) == tuple(other.shape))
            for part, other in zip(self, dense, strict=True)
        )

    def write_into(self, dense: Batch) -> None:
        """Overwrite the tensors of `dense`, a batch of the same shapes on the device that this one is on, or from pinned memory."""
        for part, tensor in zip(self, dense, strict=True):
            if tensor is None or part is None:
                continue
            if isinstance(part, PackedRows):
                part.dense(tensor)
            else:
                tensor.copy_(part, non_blocking=True)


def _tensor(cells: np.ndarray | SparseRows, shape: tuple[int, ...]) -> Tensor | PackedRows:
    if isinstance(cells, np.ndarray):
        return torch.from_numpy(cells)
    return PackedRows(
        torch.from_numpy(cells.values),
        torch.from_numpy(cells.columns),
        torch.from_numpy(cells.counts).view(shape[0], shape[1]),
        cells.num_genes,
    )


def _dense(part: Tensor | PackedRows) -> Tensor:
    return part if isinstance(part, Tensor) else part.dense()


def _each(part: Tensor | PackedRows, move: Callable[[Tensor], Tensor]) -> Tensor | PackedRows:
    if isinstance(part, Tensor):
        return move(part)
    return PackedRows(move(part.values_N), move(part.columns_N), move(part.counts_BS), part.num_genes)
