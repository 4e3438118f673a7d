"""LayerPretrainer: the unsupervised training of one layer for Lightning's Trainer; and the options of the group `pretrain`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ftlit.errors import UserError
from ftlit.finetuning.layerwise_objectives import LayerObjective, Reconstruction, RestrictedBoltzmann

MakeObjective = Callable[[nn.Module, nn.Module | None, Tensor], LayerObjective]  # from a layer, the layer below, and some of its inputs
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Pretraining:
    """How each layer learns.

    Args:
        objective: called with each layer, the layer below (`None` for the lowest) and some of its inputs; returns what the layer learns.
        optimizer: called with the parameters of each objective; returns an optimizer.
        epochs: passes over all images for each layer, at least 1.

    Raises:
        UserError: fewer epochs.
    """

    objective: MakeObjective
    optimizer: MakeOptimizer
    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"pretrain.epochs={self.epochs}: give a whole number, 1 or more")


def autoencoder(optimizer: MakeOptimizer, *, noise: float = 0.0, epochs: int = 10) -> Pretraining:
    """An option of the config group `pretrain`; see `ftlit.finetuning.layerwise_objectives.Reconstruction`."""
    return Pretraining(partial(Reconstruction, noise=noise), optimizer, epochs)


def rbm(optimizer: MakeOptimizer, *, k: int = 1, epochs: int = 20) -> Pretraining:
    """An option of the config group `pretrain`; see `ftlit.finetuning.layerwise_objectives.RestrictedBoltzmann`."""
    return Pretraining(partial(RestrictedBoltzmann, k=k), optimizer, epochs)


class LayerPretrainer(LightningModule):
    """Trains one layer on batches of its inputs: features (N, *shape) of the layer below, or images.

    Logs `val/error`, and as `train/error` the error during training, with noise if the objective adds some.

    Args:
        objective: what the layer learns; it holds the layer.
        optimizer: called with the parameters; returns an optimizer.
    """

    def __init__(self, objective: LayerObjective, optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.objective = objective
        self._make_optimizer = optimizer

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of features, or of images with targets, which are ignored."""
        features = _inputs(batch)
        loss, error = self.objective.loss(features)
        self.log("train/error", error, on_step=False, on_epoch=True, batch_size=len(features))
        return loss

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        """Log the error of a batch."""
        features = _inputs(batch)
        self.log("val/error", self.objective.error(features), batch_size=len(features))

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over the parameters of the layer, and of the decoder or the visible units."""
        return self._make_optimizer(self.objective.parameters())


def _inputs(batch: Tensor | list[Tensor]) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


class ErrorsByEpoch(Callback):
    """Records the errors of each epoch on train and val, and prints a line for each.

    Args:
        layer: name of the layer, for the line.

    Attributes:
        errors: (error on train, error on val) by epoch.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.errors: list[tuple[float, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record and print the errors of this epoch."""
        train, val = (float(trainer.callback_metrics[f"{split}/error"]) for split in ("train", "val"))
        self.errors.append((train, val))
        print(f"{self.layer}, epoch {len(self.errors) - 1}: train/error {train:.4f} val/error {val:.4f}", flush=True)
