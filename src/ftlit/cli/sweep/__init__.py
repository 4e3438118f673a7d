"""Sweeps on the command line."""
