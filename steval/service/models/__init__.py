"""The checkpoints of a worker: which there are, which are in memory, which answers."""
