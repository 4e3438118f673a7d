"""Sources of pretrained weights: torchvision's weights API and its cache, or a file."""

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
from torchvision import models

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, invalid, one_line
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.zoo.weights.own_checkpoints import input_spec_of
from ftlit.zoo.weights.weight_files import SUFFIXES, WITHOUT_DOWNLOAD, WeightsFile, read, weights_file

SYNONYMS = {  # in lower case
    **dict.fromkeys(("imagenet", "imagenet1k", "pretrained", "true", "yes", "best"), "default"),
    **dict.fromkeys(("none", "random", "scratch", "false", "no"), "null"),
}


@dataclass(frozen=True)
class WeightSource:
    """Weights that can be loaded.

    Args:
        origin: where they come from.
        load: returns the state dicts, or raises `UserError`.
        input_spec: the input that they expect, if known.
        published_as: name of the file that torchvision publishes.
        key: of the state dict to take, as the user gave it.
        path: returns where the file is, or would be after a download; `None` where it is not known.
    """

    origin: WeightsOrigin
    load: Callable[[], WeightsFile]
    input_spec: InputSpec | None = None
    published_as: str | None = None
    key: str | None = None
    path: Callable[[], Path | None] = lambda: None

    @property
    def is_at_hand(self) -> bool:
        """Whether the weights can be loaded without a download."""
        path = self.path()
        return path is not None and path.is_file()

    @property
    def is_installed(self) -> bool:
        """Whether the weights are part of ftlit or of another installed package."""
        return self.origin.kind in ("shipped", "package") and self.is_at_hand


def find(weights: str | PathLike[str] | None, sources: Mapping[str, WeightSource], key: str | None = None) -> WeightSource | None:
    """Find the source of `weights`: a name in `sources`, or a file, which is read; `None` for random weights.

    A file with the name of a published one counts as that one, so its input specification is known. So is that of a checkpoint of ftlit.

    Args:
        weights: as the user gave them.
        sources: name of weights -> their source.
        key: of the state dict in a file; see `ftlit.zoo.weights.state_dict.select`.

    Raises:
        UserError: neither a published name nor a file that can be read, or a key without a file.
    """
    text = "null" if weights is None else str(weights)
    found = None if weights is None else published_source(text, sources)
    if weights is None or found:
        if key is not None:
            raise UserError(
                f"backbone.weights_key={key} selects weights in a file, but backbone.weights={text} is not a file: "
                "leave out backbone.weights_key"
            )
        return found
    path = Path(text).expanduser()
    if "://" in text or (path.suffix not in SUFFIXES and not path.exists()):
        raise _unknown(text, sources)
    file = read(path)
    own = WeightSource(WeightsOrigin("file", str(path)), lambda: file, input_spec_of(file), key=key)
    known = next((source for source in sources.values() if source.published_as == path.name), own)
    return replace(known, origin=own.origin, load=own.load, key=key)


def published_source(weights: str, sources: Mapping[str, WeightSource]) -> WeightSource | None:
    """The source of this name; `None` where no weights are published under it."""
    name = weights.rpartition(".")[2]  # torchvision's long form: ResNet50_Weights.IMAGENET1K_V2
    return sources.get("default" if name == "DEFAULT" else name)


def _unknown(text: str, sources: Mapping[str, WeightSource]) -> UserError:
    if "://" in text:
        file = text.partition("?")[0].rpartition("/")[2]
        published = next((name for name, source in sources.items() if source.published_as == file), None)
        other = f"use backbone.weights={published}" if published else f"download it with curl -LO {text} and use backbone.weights={file}"
        return UserError(f"backbone.weights={text}: ftlit does not download weights from this address; {other}")
    if meant := SYNONYMS.get(text.lower()):
        return UserError(f"backbone.weights={text} is not the name of weights: give backbone.weights={meant}")
    return invalid("backbone.weights", text, [*sources, "null", f"/path/to/file ({' '.join(SUFFIXES)})"])


def as_record(weights: str | PathLike[str] | None) -> str | None:
    """Convert `weights` to a plain value for the record; a path becomes absolute."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    return str(path.resolve()) if path.exists() else str(weights)


def weights_record(weights: str | PathLike[str] | None, key: str | None) -> dict[str, str | None]:
    """The entries of the record that name the weights."""
    return {"weights": as_record(weights), **({} if key is None else {"weights_key": key})}


def sources(builder: str) -> dict[str, WeightSource]:
    """List the weights that torchvision publishes for a builder: `default` first, then by torchvision's names (IMAGENET1K_V1)."""
    entries = models.get_model_weights(builder)
    if not len(entries):
        return {}
    by_name = {
        entry.name: WeightSource(
            _origin(entry), partial(_fetch, entry), _input_spec(entry), _cached(entry).name, path=partial(_cached, entry)
        )
        for entry in entries
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


def _fetch(entry: Any) -> WeightsFile:
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
            return weights_file(entry.get_state_dict(progress=True, check_hash=True, weights_only=True), path)
    except (OSError, HTTPException, RuntimeError) as error:  # no network; cut off; the hash is wrong
        raise UserError(f"cannot download {entry.url} ({one_line(error)}): put this file into {path.parent}, {WITHOUT_DOWNLOAD}") from error


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
            f"{path} is used, although it is not the published file (its sha256 begins with {actual[:8]}); "
            "to download the published file, delete this one",
            stacklevel=2,
        )
