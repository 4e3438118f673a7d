"""Write and read a YAML file with a checksum in its first line; a damaged or malicious file is an error of one line."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from xxhash import xxh3_64_hexdigest

from ftlit.files import write_atomically
from ftlit.formats import CHECKSUM, DamagedFile, reading


class EditedFile(DamagedFile):
    """A YAML file that can be read, and is not as it was written.

    Args:
        path: of the file.
        config: what it holds.
        remedy: what to do.
    """

    def __init__(self, path: Path, config: DictConfig, remedy: str) -> None:
        super().__init__(path, "its checksum differs", remedy)
        self.config = config


def write_yaml(path: Path, text: str) -> None:
    """Write a mapping in YAML, with the checksum of its text in front. Raises `WriteError`."""
    write_atomically(path, f"{CHECKSUM}: {_checksum(text)}\n{text}".encode(errors="surrogateescape"))


def load_yaml(path: Path, *, remedy: str) -> DictConfig:
    """The config in a file, without its checksum; a file that has none (an older one) is read as it is.

    Args:
        path: of the file.
        remedy: what to do about a damaged one.

    Raises:
        EditedFile: the checksum differs.
        DamagedFile: it is not YAML, no mapping, or has aliases, which may stand for any amount of data.
        UserError: the file cannot be read.
    """
    with reading(path, remedy):
        text = path.read_bytes().decode(errors="surrogateescape")
        first, _, rest = text.partition("\n")
        checked = first.startswith(f"{CHECKSUM}: ")
        text = rest if checked else text
        _check_events(text)
        config: Any = OmegaConf.create(text)
    if checked and first.removeprefix(f"{CHECKSUM}: ") != _checksum(text):
        raise EditedFile(path, config, remedy)
    return config  # type: ignore[no-any-return]


def _check_events(text: str) -> None:
    """Raise `ValueError` for YAML that `write_yaml` does not write: other than one mapping, or with aliases."""
    events = list(yaml.parse(text))
    if len(events) < 3 or not isinstance(events[2], yaml.MappingStartEvent):
        raise ValueError("it holds no settings")
    if any(isinstance(event, yaml.AliasEvent) for event in events):
        raise ValueError("it has YAML aliases")


def _checksum(text: str) -> str:
    return xxh3_64_hexdigest(text.encode(errors="surrogateescape"))
