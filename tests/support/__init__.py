"""What tests of several modules share: cells, checkpoints, batches and servers with known answers, and scripts that they run."""
