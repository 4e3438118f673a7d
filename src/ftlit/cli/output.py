"""stdout and stderr of the command lines: they escape what they cannot encode, and outlive their reader; warnings of ftlit are a line."""

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper, UnsupportedOperation
from pathlib import Path
from typing import Any, TextIO

READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal
PACKAGE = Path(__file__).parents[1]  # ftlit
UNREAD_STATUS = 128 + 13  # of a program that SIGPIPE ended


@contextmanager
def robust_output(*, end_unread: bool = False) -> Iterator[None]:
    """Let stdout escape what it cannot encode, as stderr does: names of files may be any bytes, and a terminal may lack letters. Where
    nobody reads stdout or stderr any more, as in `... | head`, write to nowhere.

    Args:
        end_unread: exit with `UNREAD_STATUS` where nobody reads stdout any more, as a program whose only result is printed.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _robust(sys.stdout, end_unread), _robust(sys.stderr, False)
    try:
        yield
    finally:
        now = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in now:
            stream.flush()


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print the warnings of ftlit in one line, without their place in the code; those of libraries as Python does."""
    before = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        own = Path(filename).is_relative_to(PACKAGE)
        return f"ftlit: warning: {message}\n" if own else before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def _robust(stream: TextIO | None, end_unread: bool) -> TextIO:
    """A writer to the file of a stream, to nowhere for one that is closed; the stream itself where it has no file."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        file = _OutlivingFile(stream.fileno(), end_unread)
    except UnsupportedOperation:
        return stream
    stream.flush()
    unbuffered = bool(getattr(stream, "write_through", False))  # `python -u`, PYTHONUNBUFFERED: each line at once
    lines = unbuffered or bool(getattr(stream, "line_buffering", True))
    return TextIOWrapper(BufferedWriter(file), stream.encoding, "backslashreplace", line_buffering=lines)


class _OutlivingFile(FileIO):
    """An open file, written to; once its reader is gone, its descriptor, which other processes inherit, leads to nowhere."""

    def __init__(self, descriptor: int, end_unread: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.end_unread = end_unread

    def write(self, data: Any, /) -> int:
        """Raises `SystemExit` if the reader is gone and the program is to end."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if self.end_unread:
            sys.exit(UNREAD_STATUS)
        return super().write(data)
