"""What a run keeps and tells: run directory, state, metrics, progress bar, stopping."""
