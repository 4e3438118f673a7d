"""A checkpoint of sharded training: a folder with a file of shards for each process, and one file with all that they have in common.

Each file is written and read by `ftlit.tensor_files`: damage is noticed, and nothing in it is executed. (The index of
`torch.distributed.checkpoint` is a pickle, which executes what it holds.) Tensors are sharded along their first dimension.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.files import naming, part_of, remove
from ftlit.lit.sharding.sharded import is_shard
from ftlit.run_folder import SHARDS_META as META
from ftlit.tensor_files import check_zip, save_checkpoint, why_unreadable

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

PROCESSES = "processes"  # key in `META`: their number
CONTENT = "content"  # key in `META`: the checkpoint, with a marker in the place of each sharded tensor
MARKER = "shard"  # key of a marker: the name of a tensor in the files of shards
TRAINING_STATE = ("optimizer_states", "lr_schedulers", "callbacks", "loops")  # keys of a checkpoint that only a resumed run reads


def write_shards(
    content: dict[str, Any], folder: Path, rank: int, processes: int, together: Callable[[], AbstractContextManager[None]]
) -> None:
    """Write a checkpoint with sharded tensors, atomically: every process calls it. Raises `WriteError`.

    Args:
        content: plain values, tensors that are equal in all processes, and DTensors sharded along their first dimension.
        folder: of the checkpoint; an earlier one, or a file of this name, is replaced.
        rank: of this process.
        processes: number of processes.
        together: a block of all processes, which wait for each other at its end, and have an error of any one.
    """
    beside, shards = part_of(folder), dict[str, Tensor]()

    def mark(tensor: "DTensor") -> Any:
        name = str(len(shards))
        shards[name] = _compact(tensor.to_local().detach())
        return {MARKER: name}

    common = mapped(content, mark)
    with together():
        if rank == 0:
            with naming(beside):
                remove(beside)
    with together():
        save_checkpoint(shards, beside / _file(rank, processes))
    with together():
        if rank == 0:
            save_checkpoint({PROCESSES: processes, CONTENT: common}, beside / META)  # last: a folder with this file is complete
            with naming(folder):
                _replace(folder, beside)


def _replace(folder: Path, beside: Path) -> None:
    old = part_of(folder.with_name(f"{folder.name}.old"))
    remove(old)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    remove(old)


def read_common(folder: Path) -> tuple[dict[str, Any], int]:
    """The checkpoint with a marker in the place of each sharded tensor, and the number of processes that wrote it.

    Raises:
        UserError: another folder, or a damaged file.
    """
    content = _read(folder, META)
    if not isinstance(content, dict) or not {PROCESSES, CONTENT} <= content.keys():
        raise UserError(f"{folder} is not a checkpoint of sharded training")
    return content[CONTENT], int(content[PROCESSES])


def read_shards(folder: Path, rank: int, processes: int) -> dict[str, Tensor]:
    """The shards of one process, mapped from the disk: they take memory only where they are read. Raises `UserError`."""
    return _read(folder, _file(rank, processes))  # type: ignore[no-any-return]


def filled_in(common: Any, tensor_of: Callable[[str], Any]) -> Any:
    """A checkpoint in which each marker is replaced by `tensor_of` its name: the reverse of `mapped`."""
    if isinstance(common, dict):
        if common.keys() == {MARKER}:
            return tensor_of(common[MARKER])
        return {key: filled_in(value, tensor_of) for key, value in common.items()}
    if isinstance(common, list | tuple):
        return type(common)([filled_in(value, tensor_of) for value in common])
    return common


def mapped(content: Any, change: Callable[["DTensor"], Any]) -> Any:
    """Plain containers in which each DTensor is replaced by `change` of it; other values stay."""
    if is_shard(content):
        return change(content)
    if isinstance(content, dict):
        return {key: mapped(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)([mapped(value, change) for value in content])
    return content


def whole_tensors(folder: Path, processes: int) -> Callable[[str], Tensor]:
    """Return a function: name -> the whole tensor. Raises `UserError` for a damaged file."""
    files = [read_shards(folder, rank, processes) for rank in range(processes)]
    return lambda name: torch.cat([shards[name] for shards in files])


def consolidated(folder: Path) -> dict[str, Any]:
    """The plain checkpoint of a folder of shards, without what only a resumed run reads: whole tensors on the CPU.

    Raises:
        UserError: another folder, or a damaged file.
    """
    common, processes = read_common(folder)
    kept = {key: value for key, value in common.items() if key not in TRAINING_STATE}
    return filled_in(kept, whole_tensors(folder, processes))  # type: ignore[no-any-return]


def check_same_network(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise `UserError` if a checkpoint does not hold the tensors of a network: by name and shape.

    Args:
        held: the state of the checkpoint.
        own: that of the network.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (held, own)]
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        was, now = (f"{state[name]}" if name in state else "nothing" for state in shapes)
        if was != now:
            raise UserError(
                f"this checkpoint is from another network, because {name!r} is {was} in the checkpoint, but {now} in this run: give the "
                "backbone and head of the checkpoint"
            )


def sharded_tensors(content: Any) -> "Iterator[DTensor]":
    """All DTensors in plain containers."""
    found: list[DTensor] = []
    mapped(content, found.append)
    yield from found


def _compact(local: Tensor) -> Tensor:
    """A shard on the CPU without the padding that its storage may have: `torch.save` writes the whole storage."""
    own = local.cpu()
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone()


def _file(rank: int, processes: int) -> str:
    return f"shard-{rank:05d}-of-{processes:05d}.ckpt"


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    try:
        check_zip(path)
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: restore it from a copy, or train again") from None
    except (UnpicklingError, OSError, RuntimeError, UserError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} is damaged ({why_unreadable(path, error)}): restore it from a copy, or train again") from error
