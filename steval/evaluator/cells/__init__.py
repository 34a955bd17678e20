"""The two sides of a score: a validated pair, read a perturbation at a time."""
