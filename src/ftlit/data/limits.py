"""Limits of the values of an input, without torch, whose import takes seconds."""

MAX_VALUE = 1e12  # of mean, std and grey_range, either sign
