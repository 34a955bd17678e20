"""Split files and the data they divide, for the comparison with cell-load."""

from pathlib import Path

from support.cells_on_disk import CONTROL, make_cells

GENES = [f"G{number}" for number in range(6)]
CONTEXTS = {"alpha": ("jurkat", "k562", "rpe1"), "beta": ("hepg2", "k562")}

SPLITS = {
    "zeroshot and fewshot": """
[training]
alpha = "train"
beta = "train"
[zeroshot]
"alpha.jurkat" = "test"
"beta.hepg2" = "val"
[fewshot."alpha.rpe1"]
val = ["G0"]
test = ["G1", "G2"]
""",
    "a data set that does not train, held out": """
[training]
alpha = "train"
[zeroshot]
"beta.hepg2" = "test"
[fewshot."alpha.rpe1"]
val = ["G0"]
test = ["G2"]
""",
    "a data set that does not train, few shots": """
[training]
alpha = "train"
[zeroshot]
[fewshot."beta.k562"]
val = ["G0", "G5"]
test = ["G1"]
""",
    "no test": """
[training]
beta = "train"
[fewshot."beta.k562"]
val = ["G3"]
""",
    "test only where it is whole": """
[training]
alpha = "train"
beta = "train"
[zeroshot]
"beta.k562" = "test"
[fewshot."alpha.k562"]
val = ["G0", "G1", "G2", "G3", "G4"]
""",
}


def write_data(directory: Path) -> None:
    """A folder per data set with a file per context: 6 perturbations of 4 to 9 cells, 7 controls."""
    for dataset, contexts in CONTEXTS.items():
        (directory / dataset).mkdir()
        for context in contexts:
            groups = {CONTROL: 7} | {gene: 4 + number for number, gene in enumerate(GENES)}
            cells = make_cells({context: groups}, prefix=f"{dataset}-{context}-")
            cells.obsm["X_hvg"] = cells.X.toarray()
            cells.write_h5ad(directory / dataset / f"{context}.h5ad")


def write_split(directory: Path, name: str) -> Path:
    """One of `SPLITS` with `[datasets]` that name the folders in `directory`."""
    datasets = "".join(f'{dataset} = "{directory / dataset}"\n' for dataset in CONTEXTS)
    path = directory / "split.toml"
    path.write_text(f"[datasets]\n{datasets}{SPLITS[name]}", encoding="utf-8")
    return path
