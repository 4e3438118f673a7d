"""The report of a run: its files before training and at its end."""
