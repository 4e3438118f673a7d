"""The options of the group `pretrain`, and one layer's unsupervised training for Lightning's Trainer; see `ftlit.finetuning.layerwise_objectives`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ftlit.errors import UserError
from ftlit.finetuning.layerwise_objectives import Reconstruction, RestrictedBoltzmann

Objective = Callable[[nn.Module, nn.Module | None, Tensor], nn.Module]  # of a layer, the one below, and features that the layer is given
Recipe = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Pretraining:
    """How each layer learns.

    Args:
        objective: called for each layer; see `ftlit.finetuning.layerwise_objectives`.
        optimizer: called with the parameters of each objective.
        epochs: over all images, of each layer.
    """

    objective: Objective
    optimizer: Recipe
    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"pretrain.epochs={self.epochs}: give a whole number, 1 or more")


def autoencoder(optimizer: Recipe, *, noise: float = 0.0, epochs: int = 10) -> Pretraining:
    """An option of the group `pretrain`: see `ftlit.finetuning.layerwise_objectives.Reconstruction`."""
    return Pretraining(partial(Reconstruction, noise=noise), optimizer, epochs)


def rbm(optimizer: Recipe, *, k: int = 1, epochs: int = 20) -> Pretraining:
    """An option of the group `pretrain`: see `ftlit.finetuning.layerwise_objectives.RestrictedBoltzmann`."""
    return Pretraining(partial(RestrictedBoltzmann, k=k), optimizer, epochs)


class LayerPretrainer(LightningModule):
    """Batches of features (N, *shape) below a layer, or images -> the objective's loss. Logs `val/error`, and as `train/error` that
    of what it was trained on, noise and all.

    Args:
        objective: with `loss`, `error` and `finish`, such as `ftlit.finetuning.layerwise_objectives.Reconstruction`; it holds the layer.
        optimizer: recipe for the optimizer, called with the parameters.
    """

    def __init__(self, objective: nn.Module, optimizer: Recipe) -> None:
        super().__init__()
        self.objective: Any = objective
        self._optimizer = optimizer

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of features, or of images with targets, which are ignored."""
        features = batch if isinstance(batch, Tensor) else batch[0]
        loss: Tensor
        loss, error = self.objective.loss(features)
        self.log("train/error", error, on_step=False, on_epoch=True, batch_size=len(features))
        return loss

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        """Log the error of a batch."""
        features = batch if isinstance(batch, Tensor) else batch[0]
        self.log("val/error", self.objective.error(features), batch_size=len(features))

    def configure_optimizers(self) -> Optimizer:
        """Over all parameters: those of the layer, and the decoder's or the visible units'."""
        return self._optimizer(self.objective.parameters())


class Curve(Callback):
    """The errors of each epoch, printed a line each.

    Args:
        layer: its name, for the line.
    """

    def __init__(self, layer: str) -> None:
        self.layer, self.epochs = layer, list[tuple[float, float]]()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch's, and say them."""
        train, val = (float(trainer.callback_metrics[f"{split}/error"]) for split in ("train", "val"))
        self.epochs.append((train, val))
        print(f"{self.layer}, epoch {len(self.epochs) - 1}: train/error {train:.4f} val/error {val:.4f}", flush=True)
