"""Sources of pretrained weights: torchvision's weights API and its cache, or a file. No code in a file is ever executed."""

import hashlib
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, one_line, unknown
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.tensor_files import load_checkpoint, read_tensors

Tensors = dict[str, Tensor]

SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "backbone.")
ALTERNATIVES = "name a file with backbone.weights=/path/to/file.pth, or start at random with backbone.weights=null"


@dataclass(frozen=True)
class WeightSource:
    """Weights that can be loaded.

    Args:
        origin: where they come from.
        load: returns the tensors by name, or raises `UserError`.
        input_spec: the input that they expect, if known.
        published_as: name of the file that torchvision publishes.
    """

    origin: WeightsOrigin
    load: Callable[[], Tensors]
    input_spec: InputSpec | None = None
    published_as: str | None = None


def find(weights: str | PathLike[str] | None, sources: Mapping[str, WeightSource]) -> WeightSource | None:
    """Find the source of `weights`: a name in `sources`, or a file; `None` for random weights.

    A file with the name of a published one counts as that one, so its input specification is known.

    Raises:
        UserError: neither a published name nor a file.
    """
    if weights is None:
        return None
    text = str(weights)
    name = text.rpartition(".")[2]  # torchvision's long form: ResNet50_Weights.IMAGENET1K_V2
    if found := sources.get("default" if name == "DEFAULT" else name):
        return found
    path = Path(text).expanduser()
    if path.suffix in SUFFIXES or path.is_file():
        file = WeightSource(WeightsOrigin("file", str(path)), partial(read, path))
        known = next((source for source in sources.values() if source.published_as == path.name), file)
        return replace(known, origin=file.origin, load=file.load)
    raise unknown("weights", text, [*sources, "null", f"/path/to/file ({' '.join(SUFFIXES)})"])


def as_record(weights: str | PathLike[str] | None) -> str | None:
    """Convert `weights` to a plain value for the record; a path becomes absolute."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    return str(path.resolve()) if path.exists() else str(weights)


def sources(builder: str) -> dict[str, WeightSource]:
    """List the weights that torchvision publishes for a builder: `default` first, then by torchvision's names (IMAGENET1K_V1)."""
    entries = models.get_model_weights(builder)
    if not len(entries):
        return {}
    by_name = {
        entry.name: WeightSource(_origin(entry), partial(_fetch, entry), _input_spec(entry), _cached(entry).name) for entry in entries
    }
    return {"default": by_name[entries.DEFAULT.name], **by_name}


def _origin(entry: Any) -> WeightsOrigin:
    return WeightsOrigin("torchvision", entry.name, file=_cached(entry).name)


def _input_spec(entry: Any) -> InputSpec:
    view = entry.transforms()
    mode = view.interpolation.value
    return InputSpec(size=view.crop_size[0], resize=view.resize_size[0], mean=view.mean, std=view.std, interpolation=mode)


def _cached(entry: Any) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name


def _fetch(entry: Any) -> Tensors:
    """Load published weights from torchvision's cache; download them first if they are missing.

    Warns of a cached file that differs from the published one: torch checks the hash in its name only after a download.

    Raises:
        UserError: the download fails or the file cannot be read.
    """
    path = _cached(entry)
    if path.exists():
        _check_hash(path)
        return read(path)
    try:
        with network_timeout(seconds=30):
            return _state_dict(entry.get_state_dict(progress=True, check_hash=True, weights_only=True), path)
    except (OSError, HTTPException, RuntimeError) as error:  # no network; cut off; the hash is wrong
        raise UserError(
            f"cannot download {path.name} ({entry.url}): {one_line(error)}; put that file into {path.parent}, or {ALTERNATIVES}"
        ) from error


@contextmanager
def network_timeout(seconds: float) -> Iterator[None]:
    """Set a timeout for new sockets: torch sets none, and a firewall that drops packets would block the run forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_hash(path: Path) -> None:
    wanted = re.search(r"-([0-9a-f]{8,})\.", path.name)
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted and not actual.startswith(wanted[1]):
        warnings.warn(
            f"{path} differs from the published file (its sha256 begins with {actual[:8]}) and is used all the same; "
            "delete it to download the published one",
            stacklevel=2,
        )


def read(path: Path) -> Tensors:
    """Read the state dict of a file, without wrappers (`{"state_dict": ...}`) and prefixes (`module.`, `model.`, `backbone.`).

    Raises:
        UserError: the file is missing or damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}: {ALTERNATIVES}")
    try:
        content = read_tensors(path)[0] if path.suffix == ".safetensors" else load_checkpoint(path)
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(
            f"cannot read weights from {path}: it is damaged, or contains more than tensors and plain values; code in a file is never "
            f"executed (torch.save(model.state_dict(), ...) writes a readable file); delete or replace it, or {ALTERNATIVES}"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> Tensors:
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                return _state_dict(content[wrapper], path)
        if tensors := {str(name): value for name, value in content.items() if isinstance(value, Tensor)}:
            return _without_prefix(tensors)
    raise UserError(f"{path} contains no state dict (name -> tensor): {ALTERNATIVES}")


def _without_prefix(tensors: Tensors) -> Tensors:
    """Remove the prefix that most names share, and the tensors without it, which belong to another part: a head, a loss."""
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if 2 * len(inside) > len(tensors):
            return _without_prefix(inside)
    return tensors
