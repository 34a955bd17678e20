import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.cells.genes import align, read_genes
from steval.errors import DataError


def test_shuffled_and_extra_genes_are_aligned_by_name():
    alignment = align(["c", "x", "a", "b"], ["a", "b", "c"])
    matrix = sp.csr_matrix(np.array([[3.0, 9.0, 1.0, 0.0], [0.0, 9.0, 0.0, 2.0]]))
    np.testing.assert_array_equal(alignment.apply(matrix).toarray(), [[1, 0, 3], [0, 2, 0]])
    assert (alignment.num_extra, alignment.missing, alignment.is_identity) == (1, (), False)


def test_identity_keeps_the_matrix():
    matrix = sp.csr_matrix(np.eye(2))
    assert align(["a", "b"], ["a", "b"]).apply(matrix) is matrix


def test_missing_genes_are_listed_or_become_zero_when_allowed():
    with pytest.raises(DataError, match=r"lacks 2 of the 3 genes that are needed: b, c"):
        align(["a"], ["a", "b", "c"])
    alignment = align(["a"], ["b", "a"], fill_missing="zero")
    np.testing.assert_array_equal(alignment.apply(sp.csr_matrix([[5.0]])).toarray(), [[0, 5]])
    assert alignment.missing == ("b",)


def test_duplicates_are_an_error():
    with pytest.raises(DataError, match="more than once: a"):
        align(["a", "b", "a"], ["a"])


def test_gene_lists_are_read_from_text_and_h5ad(tmp_path, counts_path):
    listing = tmp_path / "genes.csv"
    listing.write_text("TP53,x\nMYC,y\n\n")
    assert read_genes(listing) == ["TP53", "MYC"]
    assert read_genes(counts_path)[:2] == ["CCNL2", "SSU72"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no gene names"):
        read_genes(tmp_path / "empty.txt")
