"""The network that `ftlit embed` reads with: of a run, or a backbone of the config group `backbone`."""

from collections.abc import Sequence
from pathlib import Path

import hydra
import torch

from ftlit.cli.command_words import complete
from ftlit.errors import UserError, closest, shorten
from ftlit.inference.embed import network_of
from ftlit.inference.load_network import load
from ftlit.inference.network import Network
from ftlit.models.backbone import Backbone
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import fresh_hydra, group_options, instantiate

OPTION = "backbone."  # words that begin so and hold `=` are options of the backbone, not paths


def network_and_paths(source: str, words: Sequence[str], *, trust: bool = False) -> tuple[Network, list[str]]:
    """The network that a command line names, and the paths among its words.

    Args:
        source: folder of a run, a checkpoint, or a backbone as `backbone=` takes it; what exists goes first.
        words: paths, and options of the backbone as `backbone.weights=FILE`.
        trust: see `ftlit.load`.

    Raises:
        UserError: neither a run nor a backbone, no path, or options of a backbone with a run.
    """
    options = [word for word in words if word.startswith(OPTION) and "=" in word]
    paths = [word for word in words if word not in options]
    if not paths:
        raise UserError(f"no images are given, only {shorten(options)}: add paths of images, or of folders with images, to the command")
    if Path(source).expanduser().exists() and options:
        raise UserError(f"{source!r} is the folder of a run, which has its backbone already: leave {options[0]} out")
    if Path(source).expanduser().exists():
        return load(source, trust=trust), paths
    return network_of(backbone_of(source.removeprefix("backbone="), options)), paths


def backbone_of(name: str, options: Sequence[str]) -> Backbone:
    """A backbone as `ftlit train backbone=NAME` loads it; random weights are those of seed 0. Raises `UserError`."""
    with fresh_hydra():
        if name not in (known := group_options("backbone")):
            meant = closest(name, known)
            near = f"did you mean {meant!r}? There are" if meant else "give the folder of a run, or one of"
            raise UserError(f"there is no file or folder {name}, and no backbone of this name: {near}: {shorten(known)}")
        try:
            cfg = hydra.compose("train", complete([f"backbone={name}", *options]))
            torch.manual_seed(0)
            return instantiate(cfg.backbone)  # type: ignore[no-any-return]
        except Exception as error:
            if found := as_user_error(error):
                raise found from error
            raise
