import numpy as np

from steval.data.cells.scale import lognorm
from steval.data.synthetic import generate


def test_the_known_effects_are_in_the_cells():
    screen = generate(num_genes=200, num_perturbations=4, cells_per_perturbation=300, num_controls=300, seed=3)
    cells = screen.cells
    assert cells.shape == (4 * 300 + 300, 200)
    linear = np.expm1(lognorm(cells.X, 10_000.0).toarray())
    control = linear[(cells.obs["target_gene"] == "non-targeting").to_numpy()].mean(axis=0)
    for name, truth in screen.effects.groupby("perturbation"):
        perturbed = linear[(cells.obs["target_gene"] == name).to_numpy()].mean(axis=0)
        columns = cells.var_names.get_indexer(truth["gene"])
        expressed = control[columns] > 5
        measured = np.log(perturbed[columns][expressed] / control[columns][expressed])
        assert np.corrcoef(measured, truth["log_fold_change"][expressed])[0, 1] > 0.95


def test_same_seed_same_cells_and_contexts_share_effects():
    arguments = {
        "num_genes": 80,
        "num_perturbations": 3,
        "cells_per_perturbation": 5,
        "num_controls": 5,
        "cell_types": ("a", "b"),
    }
    first, again, other = generate(seed=1, **arguments), generate(seed=1, **arguments), generate(seed=2, **arguments)
    assert (first.cells.X != again.cells.X).nnz == 0
    assert (first.cells.X != other.cells.X).nnz > 0
    wide = first.effects.pivot_table(index=["perturbation", "gene"], columns="cell_type", values="log_fold_change")
    assert wide.corr().iloc[0, 1] > 0.6
