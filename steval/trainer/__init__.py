"""Fine-tuning: phases, optimiser groups, the run directory (Lightning inside)."""
