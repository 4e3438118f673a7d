"""Splits: of the data themselves, by a hash of each image, or of another run."""
