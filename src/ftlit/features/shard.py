"""A shard: some rows of a feature table in one file, which is written completely or not at all, with a checksum."""

import errno
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_128

from ftlit.errors import UserError, one_line
from ftlit.features.spec import HASH_DTYPE, ImageHashes
from ftlit.files import is_foreign
from ftlit.formatting import sizes_in_words

# as safetensors calls them
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
CHECKSUM_PLACEHOLDER = "0" * 32  # until the rows are written
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, or the user's quota is used up


class Damaged(Exception):
    """A shard that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Shard:
    """Some rows of a feature table.

    Args:
        path: the file.
        features: (n, *shape), mapped into memory.
        images: hashes of the images (n,).
    """

    path: Path
    features: Tensor
    images: ImageHashes


def read_shard(path: Path, *, check: bool = True) -> Shard:
    """Map a shard into memory.

    Args:
        path: the file.
        check: read the whole file and compare the checksum.

    Raises:
        Damaged: the file is truncated, a byte changed, or it is not a shard.
    """
    try:
        with safe_open(path, framework="pt") as file:
            features, images = file.get_tensor("features"), file.get_tensor("images")
            expected = (file.metadata() or {}).get("checksum")
    except (SafetensorError, RuntimeError) as error:
        raise Damaged(one_line(error)) from error
    if images.dtype != torch.uint8 or images.shape != (*features.shape[:1], 32):
        raise Damaged("no image hashes in it")
    if check and checksum(features, images) != expected:
        raise Damaged("its checksum differs")
    return Shard(path, features, np.frombuffer(images.numpy().tobytes(), HASH_DTYPE))


def checksum(features: Tensor, images: Tensor) -> str:
    """Compute the checksum of values, dtype and shape."""
    hasher = _new_hasher(features.dtype, tuple(features.shape))
    hasher.update(_bytes(features))
    hasher.update(_bytes(images))
    return hasher.hexdigest()


def _new_hasher(dtype: torch.dtype, shape: tuple[int, ...]) -> xxh3_128:
    return xxh3_128(f"{dtype}{shape}".encode())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def write_shard(folder: Path, images: ImageHashes, parts: Sequence[Tensor]) -> Path:
    """Write a temporary file, then rename it. In the format of safetensors, whose own writer holds two copies of the tensors in memory.

    Args:
        folder: of the feature table.
        images: hashes of the images (n,).
        parts: the rows, (n, *shape) in all; they may be mapped from other files.

    Returns:
        The file. Its name is the hash of `images`.

    Raises:
        UserError: the disk is full, or the folder cannot be written to; nothing is left of the shard.
    """
    hashes = torch.frombuffer(bytearray(images.tobytes()), dtype=torch.uint8).view(-1, 32)
    shape, dtype = (len(images), *parts[0].shape[1:]), parts[0].dtype
    size = sum(part.nbytes for part in parts)
    text, hasher = _header(dtype, shape, size), _new_hasher(dtype, shape)
    path = folder / f"{xxh3_128(images.tobytes()).hexdigest()}.safetensors"
    if path.exists() and is_foreign(path):
        path = path.with_stem(f"{path.stem}-{os.getuid()}")
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in (*parts, hashes):
                content = _bytes(part)
                file.write(content)
                hasher.update(content)
            file.seek(8 + text.index(CHECKSUM_PLACEHOLDER.encode()))
            file.write(hasher.hexdigest().encode())
        os.replace(beside, path)
        return path
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise (no_space(folder, size) if error.errno in DISK_FULL else unusable(f"cannot write features in {folder}", error)) from error


def _header(dtype: torch.dtype, shape: tuple[int, ...], size: int) -> bytes:
    """The header of the safetensors format, padded so that the rows are aligned."""
    header = {
        "__metadata__": {"checksum": CHECKSUM_PLACEHOLDER},
        "features": {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [0, size]},
        "images": {"dtype": "U8", "shape": [shape[0], 32], "data_offsets": [size, size + 32 * shape[0]]},
    }
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def rows_of(path: Path) -> int:
    """Return the number of rows of a shard from its header; 0 if that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice("images").get_shape()[0])
    except (SafetensorError, OSError):
        return 0


def unusable(what: str, error: OSError) -> UserError:
    """Return the error for a file or folder of the store that cannot be read or written."""
    reason = error.strerror or one_line(error)
    return UserError(
        f"{what} ({reason}): make the file or folder accessible, use another folder (cache.folder=...), or store no features (cache=none)"
    )


def no_space(folder: Path, needed: int) -> UserError:
    """Return the error for features that the disk cannot hold."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    size, room = sizes_in_words(needed, free)
    # the disk may have room where a user's quota is used up, or where the last bytes are kept for the administrator
    lacking = f"only {room} are free" if free < needed else "the disk is full, or your quota is used up"
    return UserError(
        f"features need {size} more in {folder}, but {lacking}: "
        "use a folder on another disk (cache.folder=...), store less (cache.max_gb=..., cache.pixels=false), or store no features "
        "(cache=none)"
    )
