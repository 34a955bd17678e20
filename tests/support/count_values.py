"""The pairs of counts whose values by cell-eval2 are kept with the tests, and those values; run as a script it makes both anew.

usage: count_values.py PYTHON    (an interpreter that has cell-eval2 and pdex)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.count_screens import KEPT, counts_of, pairs

DIRECTORY = Path(__file__).parents[1] / "evaluator" / "vcc2026"
PAIRS = DIRECTORY / "pairs.npz"
VALUES = DIRECTORY / "values.json"


def kept_pair(name: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Predicted and real cells."""
    with np.load(PAIRS) as stored:
        genes = stored["genes"].tolist()
        sides = [
            counts_of(stored[f"{name} {side}"], stored[f"{name} {side} labels"].tolist(), genes)
            for side in ("pred", "real")
        ]
    return sides[0], sides[1]


def main(python: str) -> None:
    DIRECTORY.mkdir(exist_ok=True)
    made = pairs()
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in KEPT:
            for side, cells in zip(("pred", "real"), made[name], strict=True):
                cells.write_h5ad(Path(directory) / f"{name}.{side}.h5ad")
                arrays[f"{name} {side}"] = cells.X.toarray().astype(np.uint16)
                arrays[f"{name} {side} labels"] = cells.obs["target_gene"].astype(str).to_numpy().astype("U")
                arrays["genes"] = np.array(cells.var_names, dtype="U")
        script = Path(__file__).with_name("cell_eval2_values.py")
        found = subprocess.run([python, script, directory], check=True, capture_output=True, text=True)
    values = json.loads(found.stdout)
    for of_pair in values.values():
        of_pair.pop("p")
    np.savez_compressed(PAIRS, **arrays)
    VALUES.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
