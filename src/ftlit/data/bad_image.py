"""The error for an image that cannot be decoded."""

from pathlib import Path

from ftlit.errors import UserError, one_line
from ftlit.formatting import shown


class BadImage(UserError):
    """An image that cannot be decoded, with a message of one line, also from a DataLoader's worker process."""

    def __init__(self, text: str) -> None:
        # torch rebuilds a worker's exception from the text of its traceback; the last line of that is our message
        super().__init__(text.strip().splitlines()[-1].removeprefix(f"{__name__}.BadImage: "))


def unreadable(path: str | Path, error: BaseException) -> BadImage:
    """The error for a file that a decoder rejects."""
    return BadImage(f"{shown(path)} cannot be read as an image: replace or remove the file ({one_line(error)})")


def check_regular(path: str | Path) -> None:
    """Raise `BadImage` for a folder, a pipe or a device: reading from a pipe would wait."""
    if (file := Path(path)).exists() and not file.is_file():
        raise BadImage(f"{shown(path)} is not a regular file, but a folder, a pipe or a device: give the path of an image file")
