"""Energy distance of each perturbation to the control: E = 2 mean d(x, c) − mean d(x, x') − mean d(c, c'), d Euclidean.

cell-eval 0.8.2 takes all pairs, a cell with itself included (d = 0). Here squared distances come from norms and one matrix
product per block, in float64 on centred cells; the control's own term is computed once. Distances of float32 cells are
rounded to float32 and averaged as scikit-learn and numpy do it: the energy distance is a small difference of large means,
so cell-eval's rounding shows in its values.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

BLOCK_CELLS = 1024
DENSE_CONTROL_BYTES = 1 << 29
PAIRS_AT_ONCE = 1 << 26
"""Above this many distances the mean is taken block by block in float64."""

Matrix = sp.csr_matrix | np.ndarray


class ControlDistances:
    """Energy distance to one set of control cells `[n, G]`; sparse or dense, float32 or float64."""

    def __init__(self, control: Matrix):
        self._control = control
        self._dtype = np.dtype(np.float32 if control.dtype == np.float32 else np.float64)
        self._centre = column_means(control)
        self.num_cells = control.shape[0]
        fits = control.shape[0] * control.shape[1] * 8 <= DENSE_CONTROL_BYTES
        self._blocks = list(self._dense_blocks()) if fits else None
        self._spread = self._control_spread()

    def energy(self, cells: Matrix) -> float:
        """Energy distance of `cells [n, G]` to the controls."""
        moved = _centred(cells, self._centre)
        norms = _norms(moved)
        within = _distances(moved, norms, moved, norms, self._dtype)
        np.fill_diagonal(within, 0)
        between = self._mean_to_controls(moved, norms)
        return float(2 * between - within.mean() - self._spread)

    def _mean_to_controls(self, moved: np.ndarray, norms: np.ndarray) -> Any:
        parts = (_distances(moved, norms, block, squares, self._dtype) for block, squares in self._iterate_blocks())
        if len(moved) * self.num_cells <= PAIRS_AT_ONCE:
            return np.concatenate(list(parts), axis=1).mean()
        total = sum(float(part.sum(dtype=np.float64)) for part in parts)
        return self._dtype.type(total / (len(moved) * self.num_cells))

    def _control_spread(self) -> Any:
        """Mean distance between controls; the same for every perturbation, so its last digit moves no correlation."""
        total = 0.0
        for position, (first, first_squares) in enumerate(self._iterate_blocks()):
            for other, (second, second_squares) in enumerate(self._iterate_blocks()):
                if other < position:
                    continue
                part = _distances(first, first_squares, second, second_squares, self._dtype)
                if other == position:
                    np.fill_diagonal(part, 0)
                total += float(part.sum(dtype=np.float64)) * (1 if other == position else 2)
        return self._dtype.type(total / self.num_cells**2)

    def _iterate_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter(self._blocks) if self._blocks is not None else self._dense_blocks()

    def _dense_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, self._control.shape[0], BLOCK_CELLS):
            block = _centred(self._control[start : start + BLOCK_CELLS], self._centre)
            yield block, _norms(block)


def generic_energies(
    matrices: Mapping[str, Matrix], control: str, metric: str, options: Mapping[str, Any]
) -> np.ndarray:
    """Energy distances under any of scikit-learn's metrics, all pairs at once as cell-eval has it.

    One value for each group in order, the control left out.
    """
    from sklearn.metrics import pairwise_distances

    reference = matrices[control]
    spread = pairwise_distances(reference, metric=metric, **options).mean()
    return np.array(
        [
            2 * pairwise_distances(cells, reference, metric=metric, **options).mean()
            - pairwise_distances(cells, metric=metric, **options).mean()
            - spread
            for name, cells in matrices.items()
            if name != control
        ],
        dtype=np.float64,
    )


def column_means(cells: Matrix) -> np.ndarray:
    """Mean of each column `[G]` float64."""
    if sp.issparse(cells):
        return np.asarray(cells.sum(axis=0, dtype=np.float64)).ravel() / cells.shape[0]
    return np.asarray(cells).mean(axis=0, dtype=np.float64)


def _centred(cells: Matrix, centre: np.ndarray) -> np.ndarray:
    dense = np.array(cells.toarray() if isinstance(cells, sp.csr_matrix) else cells, dtype=np.float64)
    dense -= centre
    return dense


def _norms(dense: np.ndarray) -> np.ndarray:
    """Squared norms `[n]`."""
    return np.einsum("ij,ij->i", dense, dense)


def _distances(
    first: np.ndarray, first_squares: np.ndarray, second: np.ndarray, second_squares: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Distances `[n, m]` in `dtype`, from float64 rows and their squared norms."""
    squares = first @ second.T
    squares *= -2.0
    squares += first_squares[:, None]
    squares += second_squares[None, :]
    result = squares.astype(dtype, copy=False)
    np.maximum(result, 0, out=result)
    return np.sqrt(result, out=result)
