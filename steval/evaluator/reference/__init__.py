"""What a score is seen beside: training cells, baselines, ceiling, normalised members, intervals."""
