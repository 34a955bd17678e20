"""Checkpoints themselves: made of others, calibrated on measured cells, converted."""
