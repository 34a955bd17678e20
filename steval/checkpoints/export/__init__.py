"""A checkpoint as other tools take it."""
