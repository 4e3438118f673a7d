"""Training that continues in the middle of an epoch: the position that a data module has in a checkpoint."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from ftlit.errors import UserError
from ftlit.formatting import count
from ftlit.lit.trainer_internals import datamodule_of, epoch_position, process_share

GLOBAL_BATCH = "global_batch"  # key in a checkpoint: examples of a batch in all processes together
SEED = "seed"  # key in a checkpoint: of the order of the examples


class ContinuesEpoch(LightningDataModule):
    """A data module that stores its position in the epoch in checkpoints. Its training loader begins there.

    The position is a number of batches of all processes together, so that another number of processes may continue, with a batch size for
    which the processes read the same examples in each step.

    Attributes:
        begin: epoch and batch from which training continues; (0, 0) without a checkpoint.
        batch_size: examples in a batch of one process.
        seed: of the order of the examples.
    """

    begin: tuple[int, int] = (0, 0)
    batch_size: int
    seed: int

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch, which Lightning stores in checkpoints: the batches whose step is complete."""
        if not self.trainer:
            return {}
        return {**epoch_position(self.trainer), GLOBAL_BATCH: self.batch_size * process_share(self.trainer)[0], SEED: self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue training from this position: the batches that the epoch has seen are left out. Validation and test read everything.

        Raises:
            UserError: the order had another seed; or it is in the middle of an epoch, whose batches had another size in all processes
                together.
        """
        if not state_dict or not self.trainer or self.trainer.state.fn != "fit":
            return
        if (seed := state_dict.get(SEED, self.seed)) != self.seed:
            raise UserError(
                f"the checkpoint was written with seed={seed} of {type(self).__name__}, but this run has seed={self.seed}, which gives the "
                f"examples another order: give seed={seed}, or start a new run"
            )
        processes = process_share(self.trainer)[0]
        before, now = state_dict.get(GLOBAL_BATCH), self.batch_size * processes
        if state_dict["batch"] and before is not None and before != now:
            size = (
                f"give batch_size={before // processes}"
                if before % processes == 0
                else f"use a number of processes that divides {before}; batch_size is then {before} divided by this number"
            )
            raise UserError(
                f"the checkpoint was written within an epoch with a global batch of {before}, but "
                f"{count(processes, 'process')} with batch_size={self.batch_size} have a global batch of {now}: {size}"
            )
        self.begin = state_dict["epoch"], state_dict["batch"]

    def teardown(self, stage: str) -> None:
        """Forget the position of a checkpoint after one fit."""
        if stage == "fit":
            self.begin = (0, 0)


def follow_data_module(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Continue from the position of another data module: Lightning stores it by the name of the class, and `FeatureData` may be put around
    data, or left out, when training is resumed.
    """
    data: LightningDataModule | None = datamodule_of(trainer)
    position = next((own for own in checkpoint.values() if isinstance(own, dict) and GLOBAL_BATCH in own), None)
    inner = getattr(data, "images", getattr(data, "data", data))  # of FeatureData
    if data is not None and isinstance(inner, ContinuesEpoch) and position is not None and type(data).__qualname__ not in checkpoint:
        data.load_state_dict(position)
