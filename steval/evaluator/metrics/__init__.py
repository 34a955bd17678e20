"""The metrics: catalog, profiles and the functions that give their values."""
