"""Hydra configs: overrides, validation, messages."""
