"""Ranks and energy distances of `steval.evaluator` on a device: the same U and ties, p to the last digits.

Ranks. Expression is not negative, so the bits of float32 values have the values' order, and a gene's number before them
makes one key of both; the controls' keys are sorted once, a perturbation's values find their places among them by binary
search. Every count is whole, hence exact; float64 values are told apart by their place among the controls' values.
Distances. Float64 products of centred cells; distances go back to the host, which takes their means as cell-eval does.
Shape letters: N values, G genes, R runs of equal values of a gene.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from steval.errors import ConfigError
from steval.evaluator.measure.distances import PAIRS_AT_ONCE, Matrix, column_means
from steval.evaluator.measure.groups import Group
from steval.model.hardware import lowered_by
from steval.wording import counted, memory_size

DEFAULT_MEMORY = 8 << 30
"""Bytes of device memory."""
_BYTES_PER_VALUE = 128
"""Of device memory while one value is ranked: keys, their order, places, sums."""


class DeviceEngine:
    """`evaluator.measure.engine.Engine` on `device`, within about `memory_bytes` of its memory."""

    def __init__(self, device: torch.device, memory_bytes: int = DEFAULT_MEMORY):
        self.device = device
        self.memory_bytes = memory_bytes
        self.name = f"torch {device.type}"
        self._one_at_a_time = Lock()

    def ranks(self, control: Group, pool: ThreadPoolExecutor) -> "DeviceRanks":
        """The controls' values sorted within each gene, on the device."""
        with lowered_by(_less_memory(self.memory_bytes)):
            return DeviceRanks(control, self.device, self.memory_bytes, self._one_at_a_time)

    def distances(self, control: Matrix) -> "DeviceDistances":
        """The controls, centred, on the device as far as they fit."""
        with lowered_by(_less_memory(self.memory_bytes)):
            return DeviceDistances(control, self.device, self.memory_bytes, self._one_at_a_time)


class DeviceRanks:
    """One side's controls on a device."""

    def __init__(self, control: Group, device: torch.device, memory_bytes: int, lock: Lock):
        num_values = int(control.starts[-1])
        if num_values * 2 * 8 > memory_bytes:
            raise ConfigError(
                f"the controls' {counted(num_values, 'value')} need {memory_size(num_values * 16)} of the device, which may use "
                f"{memory_size(memory_bytes)}; give more with --device-memory, or score on the processors (--device cpu)"
            )
        self._device, self._memory, self._lock = device, memory_bytes, lock
        self._num_controls = control.num_cells
        self._starts_G = torch.from_numpy(control.starts).to(device)
        self._zeros_G = control.num_cells - self._starts_G.diff()
        self._is_single = control.values.dtype == np.float32
        self._levels = torch.empty(0) if self._is_single else torch.from_numpy(np.unique(control.values)).to(device)
        self._keys_N = torch.empty(num_values, dtype=torch.int64, device=device)
        self._ties_G = torch.zeros(len(control.starts) - 1, dtype=torch.float64, device=device)
        for first, last in self._gene_ranges(control):
            chunk = slice(int(control.starts[first]), int(control.starts[last]))
            keys_N = self._keys(self._values(control, chunk), self._starts_G[first : last + 1], first).sort().values
            self._keys_N[chunk] = keys_N
            begins_R, sizes_R = _runs(_differs(keys_N))
            genes_R = keys_N[begins_R] >> 32
            self._ties_G.index_add_(0, genes_R, _tie_term(sizes_R))

    @torch.inference_mode()
    def rank(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """U and two-sided p of one perturbation, each `[G]` float64."""
        with self._lock, lowered_by(_less_memory(self._memory)):
            parts = [self._rank_genes(group, first, last) for first, last in self._gene_ranges(group)]
        statistic, p_value = (np.concatenate(part) for part in zip(*parts, strict=True))
        return statistic, p_value

    def _rank_genes(self, group: Group, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        starts_G = torch.from_numpy(group.starts[first : last + 1]).to(self._device)
        values_N = self._values(group, slice(int(group.starts[first]), int(group.starts[last])))
        keys_N, is_new_N = self._ordered(values_N, starts_G, first)
        below_N = torch.searchsorted(self._keys_N, keys_N)
        equal_N = torch.searchsorted(self._keys_N, keys_N, right=True).sub_(below_N)
        genes_N = keys_N >> 32
        twice_N = (self._zeros_G[genes_N] + below_N - self._starts_G[genes_N]).mul_(2).add_(equal_N)
        sums_N = torch.cat([twice_N.new_zeros(1), twice_N.cumsum(0)])
        twice_G = sums_N[starts_G[1:] - starts_G[0]] - sums_N[starts_G[:-1] - starts_G[0]]
        begins_R, sizes_R = _runs(is_new_N)
        equal_R = equal_N[begins_R]
        ties_G = self._ties_G[first:last].clone()
        ties_G.index_add_(0, genes_N[begins_R] - first, _tie_term(sizes_R + equal_R) - _tie_term(equal_R))
        zeros_G = group.num_cells - starts_G.diff()
        control_zeros_G = self._zeros_G[first:last]
        wins_G = (twice_G + zeros_G * control_zeros_G).double() / 2
        ties_G += _tie_term(zeros_G + control_zeros_G)
        p_G = _two_sided(wins_G, float(group.num_cells), float(self._num_controls), ties_G)
        return wins_G.cpu().numpy(), p_G.cpu().numpy()

    def _values(self, group: Group, part: slice) -> Tensor:
        return torch.from_numpy(group.values[part]).to(self._device)

    def _ordered(self, values_N: Tensor, starts_G: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Keys in order, and where a value differs from the one before it."""
        keys_N = self._keys(values_N, starts_G, first)
        if self._is_single and values_N.dtype == torch.float32:
            keys_N = keys_N.sort().values
            return keys_N, _differs(keys_N)
        values_N, order_N = values_N.double().sort()
        keys_N, order_N = keys_N[order_N].sort(stable=True)
        return keys_N, _differs(keys_N) | _differs(values_N[order_N])

    def _keys(self, values_N: Tensor, starts_G: Tensor, first: int) -> Tensor:
        """Gene and value as one int64 each, in the order of genes, then values, that the controls' keys have."""
        counts_G = starts_G.diff()
        genes_N = torch.arange(first, first + len(counts_G), device=self._device).repeat_interleave(
            counts_G, output_size=len(values_N)
        )
        if self._is_single and values_N.dtype == torch.float32:
            codes_N = values_N.view(torch.int32).long()
        else:
            codes_N = self._codes(values_N.double())
        return (genes_N << 32).add_(codes_N)

    def _codes(self, values_N: Tensor) -> Tensor:
        """Odd where a value is one of the controls' levels, even between two of them."""
        if self._is_single:
            self._levels = self._controls_levels()
            self._is_single = False
        if not len(self._levels):
            return torch.zeros_like(values_N, dtype=torch.int64)
        places_N = torch.searchsorted(self._levels, values_N)
        found_N = self._levels[places_N.clamp(max=len(self._levels) - 1)] == values_N
        return places_N.mul_(2).add_(found_N)

    def _controls_levels(self) -> Tensor:
        """The float32 controls' values as float64 levels, and their keys by them: a float64 perturbation has come."""
        codes_N = self._keys_N & 0xFFFFFFFF
        values_N = codes_N.to(torch.int32).view(torch.float32).double()
        levels = values_N.unique()
        places_N = torch.searchsorted(levels, values_N)
        self._keys_N = (self._keys_N - codes_N) + places_N * 2 + 1
        return levels

    def _gene_ranges(self, group: Group) -> list[tuple[int, int]]:
        """Ranges of genes whose values fit the memory together."""
        most = max(self._memory // _BYTES_PER_VALUE, 1)
        edges, num_genes = [0], len(group.starts) - 1
        while edges[-1] < num_genes:
            end = int(np.searchsorted(group.starts, group.starts[edges[-1]] + most, side="right")) - 1
            edges.append(min(max(end, edges[-1] + 1), num_genes))
        return list(pairwise(edges))


class DeviceDistances:
    """Energy distances to one set of control cells `[n, G]` on a device; `evaluator.measure.distances` has the definition."""

    def __init__(self, control: Matrix, device: torch.device, memory_bytes: int, lock: Lock):
        self._control, self._device, self._memory, self._lock = control, device, memory_bytes, lock
        self._dtype = np.dtype(np.float32 if control.dtype == np.float32 else np.float64)
        self._centre = torch.from_numpy(column_means(control)).to(device)
        row_bytes = control.shape[1] * 8
        self.num_cells = control.shape[0]
        self._block = max(1, min(self.num_cells, memory_bytes // (4 * row_bytes)))
        fits = self.num_cells * row_bytes <= memory_bytes // 2
        self._kept: _Points | None = None
        if fits:
            self._kept = _Points.of(self._moved(control))
        self._spread = self._control_spread()

    @torch.inference_mode()
    def energy(self, cells: Matrix) -> float:
        """Energy distance of `cells [n, G]` to the controls."""
        with self._lock, lowered_by(_less_memory(self._memory)):
            moved = _Points.of(self._moved(cells))
            within = self._between(moved, moved)
            within.fill_diagonal_(0)
            own = _to_host(within)
            parts = (self._between(moved, block) for block in self._blocks())
            pairs = moved.num_cells * self.num_cells
            if pairs <= PAIRS_AT_ONCE:
                distances = [_to_host(part) for part in parts]
            else:
                total = sum(float(part.sum(dtype=torch.float64)) for part in parts)
                distances = []
        # means as numpy takes them, while another thread has the device
        if distances:
            between = (distances[0] if len(distances) == 1 else np.concatenate(distances, axis=1)).mean()
        else:
            between = self._dtype.type(total / pairs)
        return float(2 * between - own.mean() - self._spread)

    @torch.inference_mode()
    def _control_spread(self) -> np.generic:
        total = 0.0
        for position, first in enumerate(self._pieces()):
            for other, second in enumerate(self._pieces()):
                if other < position:
                    continue
                part = self._between(first, second)
                if other == position:
                    part.fill_diagonal_(0)
                total += float(part.sum(dtype=torch.float64)) * (1 if other == position else 2)
        return self._dtype.type(total / self.num_cells**2)

    def _blocks(self) -> "Iterable[_Points]":
        return [self._kept] if self._kept is not None else self._pieces()

    def _pieces(self) -> "_Pieces":
        return _Pieces(self)

    def _moved(self, cells: Matrix) -> Tensor:
        """Cells around the controls' mean, float64, dense on the device."""
        if isinstance(cells, np.ndarray):
            return torch.tensor(cells, dtype=torch.float64, device=self._device).sub_(self._centre)
        csr = sp.csr_matrix(cells)
        dense = torch.zeros(csr.shape, dtype=torch.float64, device=self._device)
        counts = torch.from_numpy(np.diff(csr.indptr).astype(np.int64)).to(self._device)
        rows = torch.arange(csr.shape[0], device=self._device).repeat_interleave(counts, output_size=csr.nnz)
        places = rows.mul_(csr.shape[1]).add_(torch.from_numpy(csr.indices).to(self._device))
        dense.view(-1).scatter_add_(0, places, torch.from_numpy(csr.data).to(self._device).double())
        return dense.sub_(self._centre)

    def _between(self, first: "_Points", second: "_Points") -> Tensor:
        """Distances `[n, m]` in the cells' precision."""
        squares = first.cells @ second.cells.mT
        squares.mul_(-2).add_(first.squares[:, None]).add_(second.squares)
        rounded = squares.float() if self._dtype == np.float32 else squares
        return rounded.clamp_min_(0).sqrt_()


class _Points(NamedTuple):
    """Centred cells `[n, G]` and their squared norms `[n]`."""

    cells: Tensor
    squares: Tensor

    @classmethod
    def of(cls, cells: Tensor) -> "_Points":
        return cls(cells, torch.linalg.vecdot(cells, cells))

    @property
    def num_cells(self) -> int:
        return len(self.cells)

    def part(self, start: int, stop: int) -> "_Points":
        return _Points(self.cells[start:stop], self.squares[start:stop])


class _Pieces:
    """Blocks of the controls, from the device or moved to it one by one."""

    def __init__(self, distances: DeviceDistances):
        self._of = distances

    def __iter__(self):  # type: ignore[no-untyped-def]
        of = self._of
        for start in range(0, of.num_cells, of._block):
            if of._kept is not None:
                yield of._kept.part(start, start + of._block)
            else:
                yield _Points.of(of._moved(of._control[start : start + of._block]))


def _less_memory(memory_bytes: int) -> Callable[[], str]:
    return lambda: (
        f"Lower --device-memory (now {memory_size(memory_bytes)}), end other programs that use its memory, or score on "
        "the processors (--device cpu)"
    )


def _to_host(tensor: Tensor) -> np.ndarray:
    """A copy in the host's memory; through pinned memory from a GPU, ten times as fast."""
    if not tensor.is_cuda:
        return tensor.numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor).numpy()


def _differs(values_N: Tensor) -> Tensor:
    """Where a value differs from the one before it; the first does."""
    is_new_N = torch.ones(len(values_N), dtype=torch.bool, device=values_N.device)
    is_new_N[1:] = values_N[1:] != values_N[:-1]
    return is_new_N


def _runs(is_new_N: Tensor) -> tuple[Tensor, Tensor]:
    """First place and length of each run."""
    begins_R = is_new_N.nonzero()[:, 0]
    ends_R = torch.cat([begins_R[1:], begins_R.new_full((min(1, len(begins_R)),), len(is_new_N))])
    return begins_R, ends_R - begins_R


def _tie_term(size: Tensor) -> Tensor:
    """t³ − t in float64: exact up to 200,000 cells, as on the host."""
    size = size.double()
    return size * size * size - size


def _two_sided(wins: Tensor, num_cells: float, num_controls: float, ties: Tensor) -> Tensor:
    """p of U = `wins` in the order of operations of the host's kernel."""
    total = num_cells + num_controls
    largest = torch.maximum(wins, num_cells * num_controls - wins)
    inner = (total + 1.0) - ties / (total * (total - 1.0))
    variance = num_cells * num_controls / 12.0 * inner
    z = (largest - num_cells * num_controls / 2.0 - 0.5) / variance.clamp_min(0).sqrt()
    p = torch.erfc(z / 2.0**0.5).clamp(0.0, 1.0)
    return torch.where(variance <= 0.0, torch.ones_like(p), p)
