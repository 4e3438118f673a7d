"""A callback that records that a process trained, for programs that run as subprocesses."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

NOTES_FOLDER = "PLANTED_NOTES"  # environment variable: the folder of the notes


class Note(Callback):
    """Write an empty file named after the number of processes and the process id."""

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        folder = Path(os.environ[NOTES_FOLDER])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{trainer.world_size}-{os.getpid()}").touch()
