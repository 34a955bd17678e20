"""Real Perturb-seq cells that ship with the package (CC0; provenance in `example_data/README.md`)."""

from pathlib import Path

import anndata as ad

from steval.data.cells.cellfile import read_anndata


def example_path() -> Path:
    """Path of the packaged h5ad: 600 H1 cells × 1,000 genes, raw counts, five CRISPRi perturbations and controls."""
    return Path(__file__).parent / "example_data" / "h1_vcc_2025_subset.h5ad"


def example() -> ad.AnnData:
    """The packaged cells: X `[600, 1000]` CSR float32, raw counts; `obs`: target_gene, guide_id, batch; `var`: gene_id."""
    return read_anndata(example_path())
