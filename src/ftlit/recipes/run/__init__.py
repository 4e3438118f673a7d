"""Shared by all recipes: parts of a run, console output, files of the run's folder, resuming, processes."""
