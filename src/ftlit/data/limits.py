"""Limits of the values of an input, without torch, whose import takes seconds."""

MAX_VALUE = 1e12  # of mean, std and grey_range, either sign
MAX_PIXELS = 1 << 13  # of a side of an image that a checkpoint's record asks for; a file may come from anyone
