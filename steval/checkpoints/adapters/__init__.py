"""Low-rank adapters in files: arc-state's, and our own beside a base checkpoint."""
