"""An error in one process ends all: otherwise the others would wait for it in the next collective operation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.strategies import Strategy

from ftlit.errors import UserError
from ftlit.files import WriteError


@contextmanager
def raised_in_all(strategy: Strategy, meet: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait at the end of a block for all processes, and end all with the error of any one of them.

    All processes run the block, in which they do not wait for each other.

    Args:
        strategy: of the trainer.
        meet: waits for all processes, where the block may take longer than the timeout of a collective operation.

    Raises:
        WriteError, UserError: in all processes alike; an error that is a fault of the program keeps its class where it came from.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if meet is not None:
        meet()
    if strategy.reduce_boolean_decision(error is None, all=True):
        return
    count: int = getattr(strategy, "world_size", 1)
    own = None if error is None else (isinstance(error, WriteError), str(error))
    found = [strategy.broadcast(own, src=rank) for rank in range(count)]
    if error is not None and (count == 1 or not isinstance(error, UserError)):
        raise error
    rank, of_writing, text = next((rank, *entry) for rank, entry in enumerate(found) if entry is not None)
    raise (WriteError if of_writing else UserError)(f"process {rank}: {text}") from error
