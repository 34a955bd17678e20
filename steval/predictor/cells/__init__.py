"""Predicted cells on their way from the network to whoever asked: copied back, decoded, counted."""
