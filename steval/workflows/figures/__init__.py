"""Figures of runs and scores side by side, and the page that shows them."""
