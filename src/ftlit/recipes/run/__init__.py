"""Shared by all recipes: parts of a run, and files of the run's folder."""
