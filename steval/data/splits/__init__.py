"""Which cells train, validate and test."""
