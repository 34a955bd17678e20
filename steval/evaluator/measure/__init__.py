"""What is read and computed of each side: one scan, ranks, differential expression, distances, the cache."""
