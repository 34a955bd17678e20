"""Submissions to the Virtual Cell Challenge of 2026: what is refused, and the archive."""
