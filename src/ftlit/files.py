"""Write files that are complete at any moment, whatever stops the program."""

from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file next to `path` and rename it to `path`; text as UTF-8. Creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    beside.replace(path)
