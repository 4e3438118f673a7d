"""A callback by which each process of a program that was started from outside says that it trained."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

RAN = "PLANTED_RAN"  # in the environment: the folder of the notes


class Note(Callback):
    """Leaves a file for each process and number of processes."""

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        folder = Path(os.environ[RAN])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{trainer.world_size}-{os.getpid()}").touch()
