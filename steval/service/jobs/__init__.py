"""Jobs in the background: on disk, one at a time a worker, each in a process of its own; scoring and long predictions share it."""
