"""One phase: batches, objective, optimiser, schedule, validation."""
