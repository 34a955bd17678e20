"""What training reads: many files as one, cell sets, perturbation features."""
