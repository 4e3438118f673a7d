"""The LightningModule that joins a backbone and a head."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy, MultilabelF1Score

from ftlit.backbone import Backbone
from ftlit.grouping import EVERYTHING, Group, build_optimizer


class FineTuner(LightningModule):
    """Images -> backbone -> codes -> head -> logits. Logs loss, accuracy and macro F1 for each split, as `val/accuracy` and so on.

    Args:
        backbone: gives codes for images (N, 3, S, S).
        head: gives logits (N, num_classes) for pooled codes, or for raw codes where it has `takes_map = True`.
        num_classes: number of classes, at least 2 (at least 1 if `multilabel`).
        optimizer: recipe for the optimizer, called with parameter groups, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scale: (pattern, factor) on the optimizer's rate; the first pattern that covers a parameter wins.
        lr_scheduler: recipe for a scheduler, called with the optimizer, stepped once an epoch; `None` for constant rates.
        loss: of (logits, targets); cross-entropy by default.
        multilabel: targets are floats (N, num_classes), 0 or 1 each, and the metrics count each label by itself.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        num_classes: int,
        optimizer: Callable[[list[Group]], Optimizer],
        lr_scale: Sequence[tuple[str, float]] = EVERYTHING,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss: nn.Module | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = loss or nn.CrossEntropyLoss()
        self._optimizer, self._lr_scale, self._lr_scheduler = optimizer, lr_scale, lr_scheduler
        self._multilabel = multilabel
        metrics = _metrics(num_classes, multilabel)
        self.metrics = nn.ModuleDict({f"{split}_metrics": metrics.clone(prefix=f"{split}/") for split in ("train", "val", "test")})

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), normalised as the backbone's input spec says -> logits (N, num_classes)."""
        codes = self.backbone(images)
        return self.head(codes if getattr(self.head, "takes_map", False) else self.backbone.pool(codes))  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of (images, targets); targets may be labels or class probabilities."""
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and metrics of a validation batch."""
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and metrics of a test batch."""
        self._step("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Logits (N, num_classes)."""
        return self(batch[0])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        """All parameters, frozen or not, in named groups; built once."""
        optimizer = build_optimizer(self, self._optimizer, self._lr_scale)
        return optimizer if self._lr_scheduler is None else ([optimizer], [self._lr_scheduler(optimizer)])

    def _step(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        logits = self(images)
        loss: Tensor = self.criterion(logits, targets)
        metrics = cast(MetricCollection, self.metrics[f"{split}_metrics"])
        metrics.update(logits.detach(), self._hard(targets))
        training = split == "train"
        self.log(f"{split}/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=not training)
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def _hard(self, targets: Tensor) -> Tensor:
        """Targets as the metrics want them: mixup and cutmix give class probabilities, of which the likeliest counts."""
        if self._multilabel:
            return (targets >= 0.5).int()
        return targets.argmax(dim=1) if targets.ndim == 2 else targets


def _metrics(num_classes: int, multilabel: bool) -> MetricCollection:
    if multilabel:
        return MetricCollection(
            {"accuracy": MultilabelAccuracy(num_classes, average="micro"), "f1": MultilabelF1Score(num_classes, average="macro")}
        )
    return MetricCollection(
        {"accuracy": MulticlassAccuracy(num_classes, average="micro"), "f1": MulticlassF1Score(num_classes, average="macro")}
    )
