"""Before a command loads PyTorch, which takes seconds: its paths exist, and a line says what takes the time."""

import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile

from ftlit.errors import UserError, closest_path, shorten
from ftlit.formatting import shell_word, shown
from ftlit.run_folder import existing_run, is_run_folder


def check_inputs(paths: Sequence[str]) -> None:
    """Raise `UserError` where none of the paths of images or texts exists. One missing among others gets a row with the reason.

    Words with `=` are options of `ftlit embed`.
    """
    given = [path for path in paths if "=" not in path]
    if given and not any(Path(path).exists() for path in given):
        near = next(filter(None, (closest_path(Path(path)) for path in given)), None)
        meant = f": did you mean {shown(near)}?" if near else ""
        raise UserError(f"there is no file or folder {shorten(shown(path) for path in given)}{meant}")


def check_run(run: str, paths: Sequence[str]) -> None:
    """Raise `UserError` where there is no such run, or where it stands behind the images."""
    behind = next((path for path in paths if is_run_folder(Path(path).expanduser())), None)
    given = Path(run).expanduser()
    if behind and given.exists() and not is_run_folder(given) and not is_zipfile(given):  # a checkpoint is a zip archive
        others = " ".join(shell_word(run if path == behind else path) for path in paths)
        raise UserError(f"the run goes before the images: give ftlit predict {shell_word(behind)} {others}")
    existing_run(run)


def check_output(words: Sequence[str]) -> None:
    """Raise `UserError` for words of `ftlit predict` that name a file for its predictions, which go to stdout."""
    for word, after in zip(words, [*words[1:], "predictions.csv"], strict=True):
        flag, _, value = word.partition("=")
        name = value or after
        is_file = flag in ("-o", "--output") or (flag == "--out" and Path(name).suffix != "")  # --out FOLDER lacks its --dense
        if is_file and "--dense" not in words:
            file = shell_word(name)
            raise UserError(f"{flag} {file}: to write the predictions to a file, end the command with > {file} instead")


def print_loading(network: str) -> None:
    """Print on stderr, if that is a terminal, that the next seconds go into loading."""
    if sys.stderr.isatty():
        print(f"loading PyTorch, then {shown(network)}", file=sys.stderr, flush=True)
