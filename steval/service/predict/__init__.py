"""`POST /predict`: batching, warm-up, names."""
