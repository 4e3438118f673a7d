"""Hydra configs: overrides, names of options, messages."""
