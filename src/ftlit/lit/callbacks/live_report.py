"""LiveReport: write the report of a run again while it trains."""

import time
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from ftlit.errors import one_line
from ftlit.printing import print_line

SHARE = 0.02  # of the time of training, at most
FIRST = 60.0  # seconds after which a page is first written: shorter runs end with their report


class LiveReport(Callback):
    """Writes `report.html` after an epoch of training, where that takes at most `SHARE` of the time.

    Args:
        folder: of the run.
        write: writes the page; takes the folder and how far training has come.
        clock: seconds.
    """

    def __init__(
        self, folder: str | Path, write: Callable[[Path, str], None] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.folder, self.write, self.clock = Path(folder), write or _write, clock
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._next = self.clock() + FIRST

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page of the epochs so far: `metrics.csv` holds all rows of an epoch when the next begins. An error is printed once."""
        started = self.clock()
        if not trainer.is_global_zero or started < self._next:
            return
        limit = f" of {trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""  # -1: limited by steps
        ended = f"{trainer.current_epoch}{limit} epochs have ended"
        try:
            self.write(self.folder, f"This run is training: {ended}. Reload the page for later ones.")
            self._next = self.clock() + (self.clock() - started) / SHARE
        except Exception as error:  # a full disk, a bug of ours: training is not affected
            print_line(f"note: the report could not be written now ({one_line(error)}); it will be written when training has ended")
            self._next = float("inf")


def _write(folder: Path, training: str) -> None:
    from ftlit.report.html import write_report  # here: matplotlib takes a second

    write_report(folder, training=training)
