"""Cells in and out of files: columns, genes, scale, splits and cell sets. Never imports torch.

`example()` gives the real Perturb-seq cells that ship with the package.
"""

from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.example import example, example_path

__all__ = ["ColumnOptions", "Columns", "example", "example_path", "resolve_columns"]
