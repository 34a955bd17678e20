"""The gene contract: data is aligned to ordered gene names by name, never by position."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.files import read_text
from steval.errors import DataError
from steval.wording import counted, listed

FillMissing = Literal["error", "zero"]
_HEADERS = frozenset({"gene", "genes", "gene_name", "gene_names", "gene_symbol"})
"""First lines of a gene list that name no gene."""


@dataclass(frozen=True)
class GeneAlignment:
    """How the genes of a source map onto a target contract.

    `position_of_source [G_source]` is the target column of each source gene, -1 for an extra gene.
    """

    target: tuple[str, ...]
    position_of_source: np.ndarray
    missing: tuple[str, ...]
    num_extra: int
    reordered: bool

    @property
    def is_identity(self) -> bool:
        """Whether source and target are the same genes in the same order."""
        return not self.reordered and not self.missing and not self.num_extra

    def apply(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        """`matrix [n, G_source]` as CSR `[n, G_target]` with sorted columns; extra genes dropped, missing ones zero."""
        if self.is_identity:
            return matrix
        columns = self.position_of_source[matrix.indices]
        kept = columns >= 0
        kept_before = np.concatenate([[0], np.cumsum(kept)])
        aligned = sp.csr_matrix(
            (matrix.data[kept], columns[kept], kept_before[matrix.indptr]), shape=(matrix.shape[0], len(self.target))
        )
        aligned.sort_indices()
        return aligned


def align(
    source: Sequence[str],
    target: Sequence[str],
    fill_missing: FillMissing = "error",
    what: str = "the data",
    *,
    to_fill: str | None = None,
) -> GeneAlignment:
    """Map `source` gene names onto `target`; duplicates, and missing genes unless they may be zero, are errors.

    `to_fill` is what the caller's user can say to let them be zero."""
    require_unique(source, what)
    position = {gene: index for index, gene in enumerate(target)}
    position_of_source = np.array([position.get(gene, -1) for gene in source], dtype=np.int64)
    known = set(source)
    missing = tuple(gene for gene in target if gene not in known)
    if missing and fill_missing == "error":
        raise DataError(
            f"{what} lacks {len(missing)} of the {counted(len(target), 'gene that is', 'genes that are')} needed: "
            f"{listed(missing)}. Give data with these "
            f"genes{f', or allow zeros in their place with {to_fill} (recorded in the output)' if to_fill else ''}"
        )
    present = position_of_source[position_of_source >= 0]
    return GeneAlignment(
        target=tuple(target),
        position_of_source=position_of_source,
        missing=missing,
        num_extra=int((position_of_source < 0).sum()),
        reordered=bool((np.diff(present) < 0).any()),
    )


def require_unique(genes: Sequence[str], what: str = "the data") -> None:
    """Raise a `DataError` that lists the gene names that occur more than once, or counts genes without a name."""
    require_named(genes, what)
    if len(set(genes)) == len(genes):
        return
    repeated = sorted(gene for gene, count in Counter(genes).items() if count > 1)
    raise DataError(
        f"{what} has {counted(len(repeated), 'gene name that occurs', 'gene names that occur')} more than once: "
        f"{listed(repeated)}. Make them unique "
        "(by gene id, or by adding up the columns) before steval reads them"
    )


def require_named(genes: Sequence[str], what: str = "the data") -> None:
    """Raise a `DataError` that counts the genes without a name."""
    unnamed = sum(not gene.strip() for gene in genes)
    if unnamed:
        raise DataError(
            f"{what}: {unnamed} of {counted(len(genes), 'gene')} have no name; name them, or leave them out with steval prepare "
            "--drop-unlabelled"
        )


def read_genes(path: Path) -> list[str]:
    """Gene names from an h5ad's `var` index, or from a text file with a name per line (first column of CSV or TSV).

    A header such as `gene_name` is left out, quotes are taken off; an empty list or a repeated name is a `DataError`.
    """
    if path.suffix in (".h5ad", ".h5"):
        with CellFile.open(path) as cells:
            return cells.genes
    lines = read_text(path, "gene list").splitlines()
    genes = [line.replace("\t", ",").split(",")[0].strip().strip('"') for line in lines if line.strip()]
    if genes and genes[0].casefold() in _HEADERS:
        genes = genes[1:]
    require_unique(genes, str(path))
    if not genes:
        raise DataError(f"{path} holds no gene names")
    return genes
