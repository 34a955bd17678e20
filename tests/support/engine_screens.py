"""Small lognorm screens with many DE genes and everything that makes scoring differ: ties, zeros, odd labels, layouts."""

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse as sp

CONTROL = "non-targeting"
COLUMN = "target_gene"


def screen(
    seed=3,
    *,
    num_perturbations=8,
    num_genes=300,
    cells=40,
    controls=120,
    tied=False,
    one_cell=False,
    dtype=np.float32,
    dense=False,
    labels="category",
    cell_types=1,
):
    """Real and predicted AnnData `[n, G]`, rows in random order.

    Genes 0 to 9 are zero everywhere; half of the perturbations are named like a gene; the last has no effect. `tied`:
    values are few and equal ones many; `one_cell`: the second perturbation has a single cell.
    """
    generator = np.random.default_rng(seed)
    base = generator.lognormal(0, 1.5, num_genes)
    base[:10] = 0
    genes = [f"g{i}" for i in range(num_genes)]
    half = num_perturbations // 2
    names = [genes[20 + i] for i in range(half)] + [f"drug{i}" for i in range(num_perturbations - half)]
    effects = {n: generator.normal(0, 1.0, num_genes) * (generator.random(num_genes) < 0.4) for n in names}
    effects[names[-1]][:] = 0
    sides = []
    for strength, noise in ((1.0, 0.0), (0.6, 0.1)):
        blocks, owners = [], []
        for name in [*names, CONTROL]:
            number = controls if name == CONTROL else 1 if one_cell and name == names[1] else cells
            effect = effects.get(name, np.zeros(num_genes)) * strength
            effect = effect + generator.normal(0, noise, num_genes) * (name != CONTROL)
            depth = np.ones((number, 1)) if tied else generator.lognormal(0, 0.2, (number, 1))
            blocks.append(generator.poisson(base * np.exp(effect) * depth))
            owners += [name] * number
        sides.append(
            _assemble(np.vstack(blocks), np.array(owners), genes, generator, tied, dtype, dense, labels, cell_types)
        )
    return sides[0], sides[1]


def _assemble(counts, owners, genes, generator, tied, dtype, dense, labels, cell_types):
    shares = counts / counts.sum(axis=1, keepdims=True)
    matrix = np.log1p(counts) * 1.3 if tied else np.log1p(shares * 1e3)
    order = generator.permutation(len(owners))
    matrix, owners = matrix[order].astype(dtype), owners[order]
    values: Any = {"category": pd.Categorical, "object": lambda x: x.astype(object), "string": pd.array}[labels](owners)
    if labels == "string":
        values = pd.array(owners, dtype="string")
    obs = pd.DataFrame({COLUMN: values}, index=[f"c{i}" for i in range(len(owners))])
    obs["cell_type"] = pd.Categorical([f"type{i % cell_types}" for i in range(len(owners))])
    obsm = {"X_low": np.asarray(matrix[:, 30:46], dtype=np.float32)}
    return ad.AnnData(matrix if dense else sp.csr_matrix(matrix), obs=obs, var=pd.DataFrame(index=genes), obsm=obsm)


def cell_eval_results(real, pred, profile, *, tmp_path, control=CONTROL, column=COLUMN, **arguments):
    """cell_eval's own results frame and its evaluator; its warnings are not ours."""
    from cell_eval import MetricsEvaluator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = MetricsEvaluator(
            adata_pred=pred.copy(),
            adata_real=real.copy(),
            control_pert=control,
            pert_col=column,
            outdir=str(tmp_path / "cell-eval"),
            **arguments,
        )
        results, _ = evaluator.compute(profile=profile, write_csv=False)
    return results, evaluator


def assert_same_metrics(ours, theirs):
    """Same rows and columns in the same order, nulls and NaN in the same places, values within 1e-6."""
    assert ours.columns == theirs.columns
    assert ours["perturbation"].to_list() == theirs["perturbation"].to_list()
    for column in ours.columns[1:]:
        expected = theirs[column].cast(pl.Float64)
        assert ours[column].is_null().to_list() == expected.is_null().to_list(), column
        np.testing.assert_allclose(
            ours[column].to_numpy(), expected.to_numpy(), atol=1e-6, rtol=0, equal_nan=True, err_msg=column
        )
