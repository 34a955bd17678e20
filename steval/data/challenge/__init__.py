"""The Virtual Cell Challenge of 2026: what its control bundle says, and how it becomes files that steval reads."""
