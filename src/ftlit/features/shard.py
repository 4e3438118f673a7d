"""A shard: some rows of features in one file, which is whole or not there, and notices when a byte of it changed."""

import errno
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_128

from ftlit.errors import UserError, one_line
from ftlit.features.spec import DIGEST, Digests
from ftlit.formatting import size_in_words

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}  # as safetensors calls them
UNKNOWN = "0" * 32  # stands for the checksum until the rows are written
FULL = (errno.ENOSPC, errno.EDQUOT)  # no room on the disk, or none left for this person


class Damaged(Exception):
    """A shard that cannot be used, and why."""


@dataclass(frozen=True)
class Shard:
    """Some rows of a column: `features` (n, *shape), mapped, of the images whose digests are `images` (n,)."""

    path: Path
    features: Tensor
    images: Digests


def read_shard(path: Path, *, check: bool = True) -> Shard:
    """Map a shard into memory.

    Args:
        path: the file.
        check: read all of it and compare the checksum.

    Raises:
        Damaged: cut off, a byte changed, or no shard.
    """
    try:
        with safe_open(path, framework="pt") as file:
            features, images = file.get_tensor("features"), file.get_tensor("images")
            meant = (file.metadata() or {}).get("checksum")
    except (SafetensorError, RuntimeError) as error:
        raise Damaged(one_line(error)) from error
    if images.dtype != torch.uint8 or images.shape != (*features.shape[:1], 32):
        raise Damaged("no digests of its images")
    if check and checksum(features, images) != meant:
        raise Damaged("its checksum differs")
    return Shard(path, features, np.frombuffer(images.numpy().tobytes(), DIGEST))


def checksum(features: Tensor, images: Tensor) -> str:
    """Of values, dtype and shape."""
    hasher = _begun(features.dtype, tuple(features.shape))
    hasher.update(_bytes(features))
    hasher.update(_bytes(images))
    return hasher.hexdigest()


def _begun(dtype: torch.dtype, shape: tuple[int, ...]) -> xxh3_128:
    return xxh3_128(f"{dtype}{shape}".encode())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def write_shard(folder: Path, images: Digests, parts: Sequence[Tensor]) -> Path:
    """Write rows of the images with these digests: beside, then renamed. In the format of safetensors, whose own writer takes all of it
    in memory, twice. Returns the file, which is named by the digests.

    Args:
        folder: where to.
        images: (n,)
        parts: the rows, (n, *shape) in all; may be mapped from other files.

    Raises:
        UserError: the disk is full; nothing is left of the shard.
    """
    digests = torch.frombuffer(bytearray(images.tobytes()), dtype=torch.uint8).view(-1, 32)
    shape, dtype = (len(images), *parts[0].shape[1:]), parts[0].dtype
    size = sum(part.nbytes for part in parts)
    text, hasher = _header(dtype, shape, size), _begun(dtype, shape)
    path = folder / f"{xxh3_128(images.tobytes()).hexdigest()}.safetensors"
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in (*parts, digests):
                content = _bytes(part)
                file.write(content)
                hasher.update(content)
            file.seek(8 + text.index(UNKNOWN.encode()))
            file.write(hasher.hexdigest().encode())
        os.replace(beside, path)
        return path
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno in FULL:
            raise no_room(folder, size) from error
        raise


def _header(dtype: torch.dtype, shape: tuple[int, ...], size: int) -> bytes:
    """What safetensors expects in front of the tensors; the rows behind it are aligned."""
    header = {
        "__metadata__": {"checksum": UNKNOWN},
        "features": {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [0, size]},
        "images": {"dtype": "U8", "shape": [shape[0], 32], "data_offsets": [size, size + 32 * shape[0]]},
    }
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def rows_of(path: Path) -> int:
    """How many rows a shard has, by its header; 0 where that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice("images").get_shape()[0])
    except (SafetensorError, OSError):
        return 0


def no_room(folder: Path, needed: int) -> UserError:
    """The error for features that the disk cannot hold."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    return UserError(
        f"features need {size_in_words(needed)} more in {folder}, where {size_in_words(free)} are free: "
        "give a folder on another disk, or store less (on the command line cache.folder=, cache.max_gb=, or cache=none)"
    )
