"""FineTuner: the LightningModule that joins a backbone and a head."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from ftlit.data.dataset import SPLITS
from ftlit.data.samplers import counted_images
from ftlit.errors import UserError
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.param_groups import EVERYTHING, Group, build_optimizer
from ftlit.inference.record import KEY, base_of, read_record
from ftlit.inference.slim import digests, filled, slimmed
from ftlit.lit.metrics import VAL_METRICS, SplitMetrics
from ftlit.lit.module_internals import load_state_of_metric, only_shards, share_of_sum, state_of_metric, trainer_of
from ftlit.lit.sharding.memory import ProcessMemory, process_memory
from ftlit.lit.sharding.sharded import is_sharded
from ftlit.lit.sharding.shards import check_same_network
from ftlit.lit.sharding.units import shard_layers, units_of
from ftlit.lit.strategies import reshard
from ftlit.lit.trainer_internals import callbacks_of, datamodule_of, running_loader, training_length
from ftlit.models.backbone import Backbone
from ftlit.models.feature_batch import FeatureBatch
from ftlit.models.heads import features_for, logits_of

WEIGHTS = ("state_dict", "current_model_state")  # keys of weights in a checkpoint; the second is Lightning's WeightAveraging's
DOUBLE = "64-true"
COUNTS = "train_counts"  # key in a checkpoint: of each process; earlier releases kept other metrics, as `train_metrics`


class FineTuner(LightningModule):
    """Images -> backbone -> features -> head -> logits. Logs loss, accuracy and macro F1 for each split, as `val/accuracy` and so on.

    The weights of both are laid out in memory with channels last, in place.

    Args:
        backbone: images (N, 3, S, S) -> features.
        head: pooled features, or raw ones if it has `takes_map = True` -> logits (N, num_classes).
        num_classes: number of classes, at least 2 (at least 1 if `multilabel`).
        optimizer: called with parameter groups, returns an optimizer, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scale: (pattern, factor) on the optimizer's rate; the first pattern that covers a parameter wins.
        lr_scheduler: called with the optimizer and the length of training in `steps` and `epochs`, returns the learning-rate schedule,
            such as `partial(Rates, curve=cosine)`; `None` for constant rates.
        decay_all: `False`: no weight decay for biases and norms; see `ftlit.param_groups`.
        loss: of (logits, targets); cross-entropy by default.
        multilabel: targets are floats (N, num_classes), 0 or 1 each, and the metrics count each label by itself.
        record: plain values that `ftlit.load` builds the network from, kept in checkpoints; see `ftlit.inference.record.record_of`.
        slim: checkpoints keep only the tensors that differ from the backbone's weights as they are now; loading takes the others from
            the base weights that `record` names; see `ftlit.inference.slim`.

    Attributes:
        val_metrics: the metrics that each validation logs.
    """

    val_metrics = VAL_METRICS

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        num_classes: int,
        optimizer: Callable[[list[Group]], Optimizer],
        lr_scale: Sequence[tuple[str, float]] = EVERYTHING,
        lr_scheduler: Callable[..., Rates] | None = None,
        decay_all: bool = True,
        loss: nn.Module | None = None,
        multilabel: bool = False,
        record: Mapping[str, Any] | None = None,
        slim: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.loss = loss or nn.CrossEntropyLoss()
        self._optimizer, self._lr_scale, self._lr_scheduler = optimizer, lr_scale, lr_scheduler
        self._decay_all, self._multilabel = decay_all, multilabel
        # the loss is among them: a mean over images, in batches and processes of any number, kept in checkpoints
        self.metrics = nn.ModuleDict({f"{split}_metrics": SplitMetrics(num_classes, multilabel=multilabel) for split in SPLITS})
        self._record, self._base = record, digests(backbone) if slim else None
        self.to(memory_format=torch.channels_last)  # convolutions are faster in this layout, on CPU (up to three times) and GPU

    def update_record(self, values: Mapping[str, Any]) -> None:
        """Replace entries of the record in later checkpoints."""
        if self._record is not None:
            self._record = {**self._record, **values}

    def forward(self, images: Tensor | FeatureBatch, *, with_features: bool = False) -> Any:
        """Images (N, 3, S, S), normalised by the backbone's input spec, or features at a cut -> logits (N, num_classes).

        With `with_features` also the features at the highest cut that the head reads, pooled: (logits, features (N, C)).
        """
        features = features_for(self.head, self.backbone, images)
        logits = logits_of(self.head, features)
        return (logits, self.backbone.pool(features[-1])) if with_features else logits

    @only_shards
    def configure_model(self) -> None:
        """Under FSDP2 (`Fsdp2Strategy`, `ModelParallelStrategy`) shard each layer of the backbone, the head and the module, in place.

        Before that, while each process has all weights, the data module and then the callbacks may read them: those that have a method
        `before_sharding` are called with the trainer and this module. A no-op under other strategies.
        """
        trainer = trainer_of(self)
        if trainer is None or not isinstance(strategy := trainer.strategy, ModelParallelStrategy):
            return
        if is_sharded(self):
            return reshard(self)  # an optimizer is built over the shards
        if trainer.state.fn == "fit":
            readers = [part for part in (datamodule_of(trainer), *callbacks_of(trainer)) if hasattr(part, "before_sharding")]
            if readers:
                strategy.precision_plugin.convert_module(self.to(strategy.root_device))
            for part in readers:
                part.before_sharding(trainer, self)
        shard_layers(self, self.backbone, self.head, strategy.device_mesh["data_parallel"])

    def on_train_epoch_end(self) -> None:
        """Log loss and metrics of the epoch."""
        self._log("train")

    def on_validation_epoch_start(self) -> None:
        """Count from 0: `trainer.validate` leaves inference tensors, which `fit` cannot change."""
        self._metrics("val").reset()

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Log loss and metrics."""
        self._log("test")

    def training_step(self, batch: tuple[Tensor | FeatureBatch, Tensor], batch_idx: int) -> Tensor:
        """Loss of (images, targets), which may be labels or class probabilities. Images that fill a batch do not count."""
        images, targets = batch
        loss, counted, together, processes = self._step("train", self(images), targets, batch_idx)
        return loss if processes == 1 else loss * (counted * processes / together)  # processes are averaged, with any number of images

    def validation_step(self, batch: tuple[Tensor | FeatureBatch, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Log loss and metrics of a validation batch. Returns what `test_step` returns, of the images that count."""
        images, targets = batch
        logits, features = self(images, with_features=True)
        counted = self._step("val", logits, targets, batch_idx)[1]
        return {"logits": logits[:counted], "features": features[:counted], "targets": targets[:counted]}

    def test_step(self, batch: tuple[Tensor | FeatureBatch, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Log loss and metrics of a test batch. Returns `logits` (N, num_classes), pooled `features` at the highest cut that the head reads
        (N, C), and `targets`.
        """
        images, targets = batch
        logits, features = self(images, with_features=True)
        self._step("test", logits, targets, batch_idx)
        return {"logits": logits, "features": features, "targets": targets}

    def predict_step(self, batch: tuple[Tensor | FeatureBatch, Tensor], batch_idx: int) -> Tensor:
        """Logits (N, num_classes)."""
        return self(batch[0])  # type: ignore[no-any-return]

    def process_memory(self, trains: Sequence[Collection[str]], processes: int) -> ProcessMemory | None:
        """Predict the bytes in each process under `Fsdp2Strategy`, before anything is sharded. `None`: not known for this optimizer.

        Args:
            trains: the names of the parameters that train, for each stage.
            processes: number of processes, 1 or more.
        """
        units = units_of(self.backbone, self.head)
        return process_memory(dict(self.named_parameters()), trains, self._optimizer, processes, units)

    def build_optimizer(self) -> Optimizer:
        """A new optimizer over all parameters, frozen or not, in named groups."""
        return build_optimizer(self, self._optimizer, self._lr_scale, decay_all=self._decay_all)

    def build_scheduler(self, optimizer: Optimizer, steps: int, epochs: int) -> Any:
        """A new scheduler for training of this length; `None` without one."""
        return None if self._lr_scheduler is None else self._lr_scheduler(optimizer, steps=steps, epochs=epochs)

    def configure_optimizers(self) -> Any:
        """The optimizer, built once, and its rates."""
        optimizer = self.build_optimizer()
        if self._lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.build_scheduler(optimizer, *training_length(self.trainer)).config}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record that builds the network again, and the state of each process's training metrics of this epoch."""
        if self._record is not None:
            checkpoint[KEY] = dict(self._record)
        checkpoint |= {key: self.kept_in_checkpoints(checkpoint[key]) for key in WEIGHTS if key in checkpoint}
        own = state_of_metric(self._metrics("train"))
        checkpoint[COUNTS] = [own]
        if self.trainer.world_size > 1:
            checkpoint[COUNTS] = [own] * self.trainer.world_size
            torch.distributed.all_gather_object(checkpoint[COUNTS], own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill a slim checkpoint from its base weights; on resuming, restore the training metrics: with other processes, their sum.

        Raises:
            UserError: a checkpoint of another network, or a slim one whose base weights are not found.
        """
        record = read_record(checkpoint) if KEY in checkpoint else {}
        if record.get("base"):
            base = base_of(record)
            checkpoint |= {key: filled(checkpoint[key], base) for key in WEIGHTS if key in checkpoint}
        trainer = trainer_of(self)
        if trainer is None or trainer.state.fn != "fit":
            return
        if str(trainer.precision) == DOUBLE:  # before the weights are loaded: the trainer converts the module after, from float32
            self.double()
        if "state_dict" in checkpoint:  # ModelParallelStrategy has loaded and removed it
            check_same_network(checkpoint["state_dict"], self.state_dict())
        kept = checkpoint.get(COUNTS, [])
        if kept:
            metrics, rank = self._metrics("train"), trainer.global_rank
            load_state_of_metric(metrics, kept[rank] if len(kept) == trainer.world_size else share_of_sum(metrics, kept, rank))

    def kept_in_checkpoints(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a state of this module that its checkpoints keep: all, or of slim ones those that differ from the base."""
        return dict(state) if self._base is None else slimmed(state, self._base)

    def _metrics(self, split: str) -> SplitMetrics:
        return cast(SplitMetrics, self.metrics[f"{split}_metrics"])

    def _log(self, split: str) -> None:
        """Log the metrics of all processes, and count from 0 again. Nothing without a batch, where training resumes after its end."""
        metrics = self._metrics(split)
        if not metrics.update_called:
            return
        self.log_dict({f"{split}/{name}": value for name, value in metrics.compute().items()}, prog_bar=True, sync_dist=True)
        metrics.reset()

    def _step(self, split: str, logits: Tensor, targets: Tensor, batch_idx: int) -> tuple[Tensor, int, int, int]:
        """Score the images that count. Returns their mean loss, and the result of `counted_images`."""
        counted, together, processes = counted_images(running_loader(trainer_of(self)), batch_idx, len(targets))
        return self._score(split, logits[:counted], targets[:counted]), counted, together, processes

    def _score(self, split: str, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, 0 without images, and an update of the metrics."""
        loss: Tensor = self.loss(logits, targets) if len(targets) else logits.sum()
        if loss.ndim:
            raise UserError(
                f"the loss {type(self.loss).__name__} returned shape {tuple(loss.shape)}: it must return one number, the mean of the batch"
            )
        self._metrics(split).update(logits.detach(), targets, loss.detach())
        return loss
