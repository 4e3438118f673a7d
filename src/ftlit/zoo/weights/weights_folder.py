"""The file of a network in a folder of weights, which `backbone.weights` names for several backbones."""

import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from ftlit.errors import UserError, shorten
from ftlit.formatting import shell_word, shown
from ftlit.run_folder import is_run_folder
from ftlit.zoo.weights.weight_files import SUFFIXES
from ftlit.zoo.weights.weight_sources import WeightSource


def file_of(weights: str | PathLike[str] | None, network: str, default: WeightSource | None = None) -> str | PathLike[str] | None:
    """`weights`; of a folder the file in it that is named after the network, so that a sweep over backbones gives each of them its own.

    Args:
        weights: as the user gave them.
        network: its name: `resnet18` is in `resnet18.pth` or, with the hash of a published file, in `resnet18-f37072fd.pth`.
        default: source of its default weights, if they may be part of ftlit or of another package.

    Returns:
        The file; `default` where the folder has files for other networks only and the default weights are installed; `weights` themselves
        where they are no folder, the folder of a run, or a folder without files of weights.

    Raises:
        UserError: several files fit, a file may be misnamed, or the folder has files for other networks only.
    """
    if weights is None or not (folder := Path(weights).expanduser()).is_dir() or is_run_folder(folder):
        return weights
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    found = _named_after(network, files)
    if len(found) > 1:
        names = shorten(shown(file.name) for file in found)
        raise UserError(f"backbone.weights={weights} has several files for {network} ({names}): keep only one of them in the folder")
    if files and not found:
        similar = [file for file in files if _plain(network) in _plain(file.stem)]
        if default and default.is_installed and not similar:
            return "default"
        raise _no_file(Path(weights), network, files, similar)
    return found[0] if found else weights


def _no_file(folder: Path, network: str, files: Sequence[Path], similar: Sequence[Path]) -> UserError:
    """The error for a folder without a file for the network, with the one file that may be misnamed.

    Args:
        folder: as the user gave it.
        network: its name.
        files: of weights in the folder.
        similar: those whose names contain that of the network. A number after it is a width or a size: `mobilenetv2_035`.
    """
    name = _plain(network)
    meant = [file for file in similar if not _plain(file.stem).partition(name)[2][:1].isdigit()]
    near = meant[0] if len(meant) == 1 else None
    there = "" if near else f" (files there: {shorten(shown(file.name) for file in files)})"
    link = f"ln -s {shell_word(near.name) if near else 'FILE'} {shell_word(str(folder / (network + (near or files[0]).suffix)))}"
    remedy = f"if {shown(near.name)} is for {network}, rename or link it" if near else f"add the file for {network}, rename it or link it"
    return UserError(
        f"backbone.weights={folder} has no {network}{files[0].suffix}{there}: in a folder, a file must be named after its backbone; "
        f"{remedy}: {link}"
    )


def has_file(weights: str | PathLike[str], network: str, default: WeightSource | None = None) -> bool:
    """Whether `weights` are a file, or a folder from which the network has weights; see `file_of`."""
    path = Path(weights).expanduser()
    if not path.is_dir() or is_run_folder(path):
        return path.is_file()
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES]
    return bool(_named_after(network, files) or (files and default and default.is_installed))


def _named_after(network: str, files: Iterable[Path]) -> list[Path]:
    """The files of weights among these whose name is that of the network, with or without the hash of a published file."""
    named = re.compile(rf"{re.escape(network)}(-[0-9a-f]{{8,}})?")
    return [file for file in files if file.suffix in SUFFIXES and named.fullmatch(file.stem)]


def _plain(name: str) -> str:
    """A name without case, `_` and `-`, in which names of files and of networks differ."""
    return name.casefold().replace("_", "").replace("-", "")
