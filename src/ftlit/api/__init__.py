"""Whole runs by one call in Python: what the command line does, in this process."""
