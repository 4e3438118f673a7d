"""SplitMetrics: mean loss, accuracy and macro F1 of the images of a split, updated without waiting for the device."""

import torch
from torch import Tensor
from torchmetrics import Metric

VAL_METRICS = tuple(f"val/{name}" for name in ("accuracy", "f1", "loss"))  # that FineTuner logs before a callback or a stage reads them
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64  # mps has no float64


class SplitMetrics(Metric):
    """Counts of each class, from which `compute` takes `loss`, `accuracy` and `f1`. All sums are exact, or in float64.

    An update takes O(N + K) operations, deterministic on every device, and none that the host waits for; torchmetrics' own
    confusion matrix has K x K cells. The results equal torchmetrics' `MulticlassAccuracy(average="micro")` and
    `MulticlassF1Score(average="macro")`, or those of `Multilabel...` at the threshold 0.5.

    Args:
        num_classes: number of classes K.
        multilabel: each label counts by itself; a logit above 0 predicts it.
    """

    full_state_update = False
    loss_sum: Tensor
    images: Tensor
    hits: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, num_classes: int, *, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.add_state("loss_sum", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("hits", "predicted", "actual"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (N, K).
            targets: classes (N,) or class probabilities (N, K), of which the largest counts; labels (N, K) if `multilabel`.
            loss: mean over the batch.
        """
        self.loss_sum = self.loss_sum.to(SUM_DTYPE) + loss.to(SUM_DTYPE) * len(targets)  # a module cast to bfloat16 casts its states
        self.images = self.images + len(targets)
        if self.multilabel:
            predicted, actual = (logits > 0).long(), (targets >= 0.5).long()
            self.hits = self.hits + (predicted * actual).sum(dim=0)
            self.predicted = self.predicted + predicted.sum(dim=0)
            self.actual = self.actual + actual.sum(dim=0)
            return
        labels, found = targets.argmax(dim=1) if targets.ndim == 2 else targets, logits.argmax(dim=1)
        ones = torch.ones_like(labels)
        self.hits = self.hits.scatter_add(0, labels, (found == labels).long())
        self.predicted = self.predicted.scatter_add(0, found, ones)
        self.actual = self.actual.scatter_add(0, labels, ones)

    def compute(self) -> dict[str, Tensor]:
        """`loss`, `accuracy` and `f1`, float32; NaN without images. F1 leaves out classes that are neither present nor predicted."""
        both = self.predicted + self.actual
        f1 = 2 * self.hits / both.clamp(min=1)
        if self.multilabel:
            accuracy = 1 - (both - 2 * self.hits).sum() / (self.images * len(both))
        else:
            accuracy, f1 = self.hits.sum() / self.images, f1[both > 0]
        return {"loss": (self.loss_sum / self.images).float(), "accuracy": accuracy, "f1": f1.mean()}
