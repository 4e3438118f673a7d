"""Format numbers as text."""


def size_in_words(size: float) -> str:
    """A number of bytes with a unit, three digits.

    >>> size_in_words(12_300_000)
    '12.3 MB'
    """
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
