"""Files that are whole at any moment, whatever stops the program."""

from pathlib import Path


def write_atomically(path: Path, what: bytes | str) -> None:
    """Write beside it, then take its place; a text as UTF-8. Its folder is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(what if isinstance(what, bytes) else what.encode())
    beside.replace(path)
