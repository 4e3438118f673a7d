"""Splits: given by the data, made by a hash of each image, or taken from another run."""
