"""A run -> files that predict without ftlit."""
