"""Training that continues in the middle of an epoch: the position that a data module has in a checkpoint."""

from lightning.pytorch import LightningDataModule

from ftlit.lit.trainer_internals import epoch_position


class ContinuesEpoch(LightningDataModule):
    """A data module that stores its position in the epoch in checkpoints. Its training loader begins there.

    Attributes:
        begin: epoch and batch from which training continues; (0, 0) without a checkpoint.
    """

    begin: tuple[int, int] = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch, which Lightning stores in checkpoints: the batches whose step is complete."""
        return epoch_position(self.trainer) if self.trainer else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from this position: the batches that the epoch has seen are left out."""
        if state_dict:
            self.begin = state_dict["epoch"], state_dict["batch"]

    def teardown(self, stage: str) -> None:
        """Forget the position of a checkpoint after one fit."""
        if stage == "fit":
            self.begin = (0, 0)
