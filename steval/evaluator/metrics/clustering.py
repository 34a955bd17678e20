"""Clustering agreement: do predicted mean profiles fall into the groups that real ones fall into?

cell-eval 0.8.2's own computation (Leiden on a neighbour graph of the mean profiles, best of several resolutions), fed with
the means that are there already, so that the cells are not made dense.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steval.errors import ConfigError
from steval.wording import needs_package


def clustering_agreement(
    real_means: np.ndarray, predicted_means: np.ndarray, perturbations: Sequence[str], options: Mapping[str, Any]
) -> float:
    """Agreement of the clusters of mean profiles `[P, D]` float64 (rows as `perturbations`, sorted); 0 to 1, best 1."""
    import anndata as ad
    import pandas as pd

    try:
        from cell_eval.metrics import ClusteringAgreement
    except ModuleNotFoundError as error:
        raise ConfigError(needs_package("the metric clustering_agreement", "cell-eval")) from error

    obs = pd.DataFrame({"perturbation": np.asarray(perturbations, dtype=object)})

    class Means(ClusteringAgreement):
        """cell-eval's metric on given mean profiles."""

        @staticmethod
        def _centroid_ann(adata: Any, category_key: str, control_pert: str, embed_key: str | None = None) -> ad.AnnData:
            frame = obs.copy()
            frame.index = frame.index.astype(str)
            return ad.AnnData(X=adata.copy(), obs=frame)

    class Profiles:
        """What cell-eval's metric reads of a pair."""

        perts = np.asarray(perturbations)
        control_pert = ""
        pert_col = "perturbation"
        real = real_means
        pred = predicted_means

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Means(**options)(Profiles())  # ty: ignore[invalid-argument-type]
