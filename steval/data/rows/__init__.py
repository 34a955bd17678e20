"""Stored matrices: rows by number, whatever the layout on disk."""
