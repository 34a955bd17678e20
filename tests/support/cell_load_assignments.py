"""How cell-load divides cells, written as JSON: run by an interpreter that has cell-load installed, never imported.

usage: cell_load_assignments.py SPLIT.toml (of files as `cells_on_disk.make_cells` makes them)
prints part → "dataset.context" → perturbation → number of cells
"""

import json
import sys
from collections import Counter, defaultdict

import h5py
from cell_load.data_modules import PerturbationDataModule


def labels(handle: h5py.File, column: str) -> list[str]:
    stored = handle["obs"][column]
    names = stored["categories"].asstr()[:]
    return [str(names[code]) for code in stored["codes"][:]]


def main(toml: str) -> None:
    module = PerturbationDataModule(
        toml, num_workers=0, pert_col="target_gene", batch_col="batch", cell_type_key="cell_type",
        control_pert="non-targeting", embed_key="X_hvg", output_space="gene", cell_sentence_len=4,
    )  # fmt: skip
    module.setup()
    result: dict[str, dict[str, dict[str, int]]] = {}
    for part in ("train", "val", "test"):
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for subset in getattr(module, f"{part}_datasets"):
            with h5py.File(subset.dataset.h5_path) as handle:
                contexts, names = labels(handle, "cell_type"), labels(handle, "target_gene")
            for index in map(int, subset.indices):
                found[f"{subset.dataset.name}.{contexts[index]}"][names[index]] += 1
        result[part] = {context: dict(sorted(counts.items())) for context, counts in sorted(found.items())}
    sys.stdout.write("\n" + json.dumps(result))


main(sys.argv[1])
