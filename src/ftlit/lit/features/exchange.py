"""Features on several machines: what the disk of any of them holds is computed by none, and copied to those that lack it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ftlit.errors import UserError, one_line
from ftlit.features.table import FeatureTable, Rows, Writer

if TYPE_CHECKING:
    from ftlit.lit.features.extraction_pass import ExtractionRequest

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]  # (N,)
CHUNK_BYTES = 64 << 20  # that are sent at a time


def missing_everywhere(requests: Sequence["ExtractionRequest"], trainer: Trainer) -> list[list[int]]:
    """The places of the images of each request whose features at some cut no machine has. A collective operation."""
    found = []
    for request in requests:
        everywhere = np.zeros(len(request.images.hashes), bool)
        for table in request.tables.values():
            everywhere |= np.logical_and.reduce(_lacking(request, table, trainer))
        found.append(np.flatnonzero(everywhere).tolist())
    return found


def copy_between_machines(requests: Sequence["ExtractionRequest"], trainer: Trainer) -> None:
    """Write to each machine's disk the features that it lacks and another one has. A collective operation; with a shared folder nothing is
    sent.

    Raises:
        UserError: the disk of this machine is full, when all rows have been sent; or another machine cannot read its rows.
    """
    failure: UserError | None = None
    for request in requests:
        for table in request.tables.values():
            lacking = _lacking(request, table, trainer)
            own = lacking[trainer.global_rank] & (trainer.local_rank == 0)
            writer = Writer(table)
            for places, rows in _sent(request, table, lacking, trainer):
                try:
                    if failure is None and own[places].any():
                        writer.add(request.images.hashes[places[own[places]]], rows[torch.from_numpy(own[places])])
                except UserError as error:  # the others go on, and wait for this process
                    failure = error
            if failure is None:
                try:
                    writer.flush()
                except UserError as error:
                    failure = error
    if failure is not None:
        raise failure


def _lacking(request: "ExtractionRequest", table: FeatureTable, trainer: Trainer) -> Sequence[Mask]:
    """For each process, whether its disk lacks each image of a request; of equal images only the first one counts."""
    own = np.zeros(len(request.images.hashes), bool)
    own[table.missing(request.images.hashes)] = True
    packed: list[bytes] = [b""] * trainer.world_size
    torch.distributed.all_gather_object(packed, np.packbits(own).tobytes())
    return [np.unpackbits(np.frombuffer(bits, np.uint8), count=len(own)).astype(bool) for bits in packed]


def _sent(
    request: "ExtractionRequest", table: FeatureTable, lacking: Sequence[Mask], trainer: Trainer
) -> Iterator[tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Tensor]]:
    """Places and rows that some process lacks, each sent by the first process that has it to all others.

    Raises:
        Exception: of this process, where it cannot read its rows; the others raise a `UserError` with it.
    """
    needed = np.logical_or.reduce(lacking)
    source = np.argmin(np.stack(lacking), axis=0)  # the first that does not lack it
    needed &= ~np.logical_and.reduce(lacking)
    length = max(1, CHUNK_BYTES // table.row_bytes)
    for rank in range(trainer.world_size):
        places = np.flatnonzero(needed & (source == rank))
        for part in (places[begin : begin + length] for begin in range(0, len(places), length)):
            rows, failure = torch.empty((len(part), *table.shape), dtype=table.dtype), None
            if trainer.global_rank == rank:
                try:
                    rows = Rows(table, request.images.hashes[part]).read(range(len(part)))
                except Exception as error:  # the others wait for these rows
                    failure = error
            if message := trainer.strategy.broadcast(failure and f"cannot read features in {table.folder}: {one_line(failure)}", src=rank):
                raise failure or UserError(f"process {rank} {message}")
            content = rows.reshape(len(part), -1).view(torch.uint8).to(trainer.strategy.root_device)  # gloo and NCCL send any bytes
            torch.distributed.broadcast(content, src=rank)
            yield part, content.cpu().view(table.dtype).reshape(rows.shape)
