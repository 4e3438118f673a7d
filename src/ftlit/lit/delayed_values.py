"""DelayedValues: numbers of a training step that the program reads one step later, so that it does not wait for the device."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class DelayedValues:
    """A few numbers of each process, summed over the processes, on their way from the device to the host.

    `.item()`, `bool(tensor)` and Lightning's `reduce_boolean_decision` stop the host until the device has done all that was queued, and the
    device then idles until the host has queued more. Here the sum and the copy are queued like any other operation, and the numbers are
    read one step later. By then the device has passed them, or is about to: it still has the backward pass of the earlier step to do.
    All processes read the numbers of the same step, and so decide alike.
    """

    def __init__(self) -> None:
        self._host: Tensor | None = None  # page-locked memory, used again by each step
        self._values: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def put(self, trainer: Trainer, values: Tensor) -> None:
        """Queue the sum over all processes, and the copy of it.

        Args:
            trainer: whose processes take part, each with a call.
            values: float32 (n,) on the device of this process; changed in place.
        """
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
        self._values = values
        if values.device.type == "cuda":
            if self._host is None:
                self._host = torch.empty(values.shape, pin_memory=True)
            self._values = self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def take(self) -> list[float]:
        """The sums that were put last. Empty if they have been taken, or there are none."""
        values, self._values = self._values, None
        if values is None:
            return []
        if self._copied is not None:
            self._copied.synchronize()  # waits for this one copy, not for what is queued behind it
        return values.tolist()
