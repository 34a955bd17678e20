"""Checkpoints of a model hub: `hf://owner/repo@revision/path`."""
