"""Files of tensors: checkpoints and safetensors. They are written atomically, checked for damage before they are parsed, and nothing in
them is executed, whatever the environment says (`TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`).
"""

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from xxhash import xxh3_128

from ftlit.errors import one_line
from ftlit.files import replacing, write_atomically
from ftlit.formats import CHECKSUM, DamagedFile

FORCE_ANY_LOAD = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # changes the default of torch.load
CHUNK_BYTES = 1 << 20
DIRECTORY = 0x10  # attribute in a zip archive; torch reads no bytes of such an entry, and gives whatever is in memory


def save_checkpoint(content: object, path: Path) -> None:
    """Write a checkpoint, straight to the folder that it is for. Raises `WriteError`."""
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer raises it while an error of the file, or an interruption, is on its way
            if (first := _first_error(error)) is error:
                raise
            raise first from error


def load_checkpoint(path: Path, map_location: Any = "cpu") -> Any:
    """The content of a checkpoint: tensors and plain values.

    Raises:
        DamagedFile: a byte of it changed.
        OSError, UnpicklingError, RuntimeError, ...: another file, or one that holds more than tensors and plain values.
    """
    if zipfile.is_zipfile(path):  # what torch.save writes since 1.6; older files have no checksum
        check_zip(path)
    with Path(path).open("rb") as file:  # from a path, torch decides by the suffix how to read it
        return torch.load(file, map_location=map_location, weights_only=True)


def why_unreadable(path: Path, error: Exception) -> str:
    """Why `load_checkpoint` failed, in a few words: torch's own text advises to run what the file holds."""
    if isinstance(error, DamagedFile):
        return error.reason
    if not zipfile.is_zipfile(path):
        return f"{path.stat().st_size:,} bytes that are not an archive of tensors" if path.is_file() else "not a file"
    return f"{type(error).__name__}: the file holds more than tensors and plain values, or is incomplete"


@contextmanager
def weights_only() -> Iterator[None]:
    """Keep libraries that call `torch.load` in this block, without saying how, from executing what a file holds."""
    before = os.environ.pop(FORCE_ANY_LOAD, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[FORCE_ANY_LOAD] = before


def check_zip(path: Path) -> None:
    """Compare the checksums of a zip archive, which torch writes and does not compare. Raises `DamagedFile`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not any(entry.CRC for entry in entries):  # written under torch.serialization.set_crc32_options(False)
                return
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & DIRECTORY:
                    raise zipfile.BadZipFile(f"{entry.filename} is compressed, or a folder")
                with archive.open(entry) as file:
                    while file.read(CHUNK_BYTES):
                        pass
    except OSError:
        raise
    except Exception as error:  # a damaged directory raises almost any error
        raise DamagedFile(path, one_line(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of safetensors, with their checksum in its metadata. Raises `WriteError`."""
    write_atomically(path, save(dict(tensors), {**(metadata or {}), CHECKSUM: _checksum(tensors)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of safetensors. One without a checksum (of another program) is read as it is.

    Raises:
        DamagedFile: the checksum differs.
        SafetensorError, OSError: another file, or one that is cut off.
    """
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    found = metadata.pop(CHECKSUM, None)
    if found is not None and found != _checksum(tensors):
        raise DamagedFile(path, "its checksum differs")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    hasher = xxh3_128()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        hasher.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode(errors="surrogateescape"))
        hasher.update(plain.view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _first_error(error: BaseException) -> BaseException:
    """The error of the file system, or the interruption, among the errors that led to this one; else this one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError | KeyboardInterrupt):
        found = found.__context__
    return found or error
