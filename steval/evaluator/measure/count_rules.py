"""The constants of scoring on counts: those of cell-eval2 0.20.0's preset `vcc2026`."""

BULK_TARGET = 50_000.0
"""Total that a perturbation's gene sums are brought to before log1p."""
LARGEST_TOTAL = 1_000_000.0
"""Counts that a cell may have."""
LEAST_CPM = 5.0
"""Genes are tested where the control cells' mean CPM is above this."""
