"""Distances between two sets of cells, and their gradients: what the losses are made of."""
