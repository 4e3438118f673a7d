"""Before a command loads PyTorch, which takes seconds: its paths exist, and a line says what takes the time."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ftlit.errors import UserError, shorten
from ftlit.formatting import shown


def check_inputs(paths: Sequence[str]) -> None:
    """Raise `UserError` where none of the paths of images or texts exists. One missing among others gets a row with the reason.

    Words with `=` are options of `ftlit embed`.
    """
    given = [path for path in paths if "=" not in path]
    if given and not any(Path(path).exists() for path in given):
        raise UserError(f"there is no file or folder {shorten(shown(path) for path in given)}")


def print_loading(network: str) -> None:
    """Print on stderr, if that is a terminal, that the next seconds go into loading."""
    if sys.stderr.isatty():
        print(f"loading PyTorch, then {shown(network)}", file=sys.stderr, flush=True)
