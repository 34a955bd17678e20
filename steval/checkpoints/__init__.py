"""Checkpoints: one safetensors file that describes itself, and the safe import of arc-state's files."""
