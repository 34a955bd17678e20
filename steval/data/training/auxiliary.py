"""A cell embedding that is a second target of training: its mean over the measured cells of a set, standardised."""

from functools import cached_property

import numpy as np

from steval.data.training.obsm_store import ObsmStore
from steval.errors import DataError

SAMPLED_CELLS = 4096
"""Training cells at most from which mean and spread of each dimension are taken, spread evenly."""
_LEAST_SPREAD = 1e-6


class AuxiliaryEmbedding:
    """An `obsm` matrix of all files; mean and spread are those of the cells `training` (their numbers)."""

    def __init__(self, store: ObsmStore, training: np.ndarray):
        self.store = store
        self._training = training

    @property
    def dimension(self) -> int:
        """Columns A."""
        return self.store.dimension

    def set_means(self, rows_BS: np.ndarray) -> np.ndarray:
        """Mean standardised embedding of each set's cells, float32 `[B, A]`; cell -1 is padding. Raises `DataError` for values that
        are not finite."""
        centre_A, spread_A = self._scale
        cells_BSA = self.store.gather(rows_BS.reshape(-1)).reshape(*rows_BS.shape, -1)
        there_BS = rows_BS >= 0
        means_BA = cells_BSA.sum(axis=1, dtype=np.float64) / there_BS.sum(axis=1, keepdims=True)
        self._require_finite(means_BA)
        return ((means_BA - centre_A) / spread_A).astype(np.float32)

    @cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each dimension, float64 `[A]`; a constant one has spread 1."""
        places = np.linspace(0, len(self._training) - 1, min(SAMPLED_CELLS, len(self._training))).astype(np.int64)
        cells_NA = self.store.gather(self._training[places]).astype(np.float64)
        self._require_finite(cells_NA)
        spread_A = cells_NA.std(axis=0)
        return cells_NA.mean(axis=0), np.where(spread_A > _LEAST_SPREAD, spread_A, 1.0)

    def _require_finite(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise DataError(
                f"obsm matrix {self.store.key!r}, the auxiliary embedding, holds values that are not finite; mend them, or leave "
                "data.auxiliary_key out"
            )
