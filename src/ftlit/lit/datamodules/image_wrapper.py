"""The part of a data module that it leaves to the `ImageData` in it."""

from ftlit.data.pixels import Normalization
from ftlit.lit.datamodules.device_normalization import NormalizesOnDevice
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.module_internals import share_hyperparameters


class WrapsImageData(NormalizesOnDevice):
    """A data module around image data, whose hooks, position in the epoch and batch size are those of the image data."""

    images: ImageData

    def prepare_data(self) -> None:
        """Prepare the image data module."""
        self.images.prepare_data()

    def setup(self, stage: str) -> None:
        """Attach the trainer to the image data module, and set that up."""
        self.images.trainer = self.trainer
        self.images.setup(stage)
        share_hyperparameters(self, self.images)

    def teardown(self, stage: str) -> None:
        """Tear down the image data module."""
        self.images.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the image data module."""
        self.images.on_exception(exception)

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch, which Lightning stores in checkpoints."""
        return self.images.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from this position."""
        self.images.load_state_dict(state_dict)

    @property
    def normalization(self) -> Normalization | None:
        """Of the images."""
        return self.images.normalization

    @property
    def batch_size(self) -> int:
        """Images in a batch of one process."""
        return self.images.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.images.batch_size = size
