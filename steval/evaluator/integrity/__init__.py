"""Is the score a gain in prediction, or the work of something broken or gamed?"""
