"""Checkpoint + control cells + request → predicted cells, streamed."""
