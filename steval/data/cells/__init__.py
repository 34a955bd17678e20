"""Cells of a file: read, written, aligned to a gene contract, on a declared scale."""
