"""SplitMetrics: torchmetrics' values, at a cost that does not grow with the square of the classes, without waiting for a device."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy, MultilabelF1Score

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.lit.metrics import SplitMetrics
from ftlit.lit.module import FineTuner
from ftlit.lit.module_internals import state_of_metric
from ftlit.models.backbone import Backbone

WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::bincount"}


def drawn_batches(seed, classes, sizes, multilabel):
    generator = torch.Generator().manual_seed(seed)
    shape = (classes,) if multilabel else ()
    for size in sizes:
        logits = torch.randn(size, classes, generator=generator)
        targets = torch.randint(2 if multilabel else classes, (size, *shape), generator=generator)
        yield logits, targets.float() if multilabel else targets, torch.rand((), generator=generator)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("multilabel", [False, True])
@given(seed=st.integers(0, 2**32), classes=st.integers(2, 12), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_values_are_those_of_torchmetrics(multilabel, seed, classes, sizes):
    batches = list(drawn_batches(seed, classes, sizes, multilabel))
    of_labels = (MultilabelAccuracy, MultilabelF1Score) if multilabel else (MulticlassAccuracy, MulticlassF1Score)
    accuracy, f1 = of_labels[0](classes, average="micro"), of_labels[1](classes, average="macro")
    own = SplitMetrics(classes, multilabel=multilabel)
    for logits, targets, loss in batches:
        own.update(logits, targets, loss)
        for metric in (accuracy, f1):  # probabilities: torchmetrics takes logits that are all in [0, 1] for probabilities
            metric.update(logits.double().sigmoid() if multilabel else logits, targets.int())
    mean = sum(loss * len(targets) for _, targets, loss in batches) / sum(sizes)
    expected = {"loss": mean, "accuracy": accuracy.compute(), "f1": f1.compute()}
    torch.testing.assert_close(own.compute(), expected)


def test_the_largest_class_probability_counts():
    logits, targets, loss = next(drawn_batches(0, 5, [16], multilabel=False))
    of_classes, of_probabilities = SplitMetrics(5), SplitMetrics(5)
    of_classes.update(logits, targets, loss)
    of_probabilities.update(logits, 0.6 * torch.nn.functional.one_hot(targets, 5) + 0.08, loss)
    assert of_classes.compute() == of_probabilities.compute()


@pytest.mark.parametrize("multilabel", [False, True])
def test_an_update_waits_for_no_device_and_takes_the_memory_of_its_batch(multilabel):
    classes = 10_000
    logits, targets, loss = next(drawn_batches(0, classes, [32], multilabel))
    metric = SplitMetrics(classes, multilabel=multilabel)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        metric.update(logits, targets, loss)
    operations = recorded.key_averages()
    assert not WAITS & {operation.key for operation in operations}
    assert sum(max(0, operation.self_cpu_memory_usage) for operation in operations) < 64 * 32 * classes


def test_sums_stay_exact_in_a_module_of_half_precision():
    metric = SplitMetrics(2).to(torch.bfloat16)
    for _ in range(1000):
        metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), torch.tensor(0.001))
    assert metric.compute()["loss"] == pytest.approx(0.001)


def test_a_batch_without_images_changes_nothing():
    metric = SplitMetrics(3)
    metric.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), torch.tensor(0.0))
    metric.update(torch.eye(3), torch.arange(3), torch.tensor(2.0))
    assert metric.compute() == {"loss": 2.0, "accuracy": 1.0, "f1": 1.0}


def test_a_loss_that_returns_a_value_per_image_is_an_error():
    backbone = Backbone({"layer": nn.Flatten()}, InputSpec(size=1))
    loss = nn.CrossEntropyLoss(reduction="none")
    module = FineTuner(backbone, nn.Linear(3, 2), num_classes=2, optimizer=torch.optim.SGD, loss=loss)
    with pytest.raises(
        UserError, match=r"the loss CrossEntropyLoss returned shape \(4,\): it must return one number, the mean of the batch"
    ):
        module.training_step((torch.rand(4, 3, 1, 1), torch.zeros(4, dtype=torch.long)), 0)


@pytest.mark.parametrize(("key", "images"), [("train_counts", 8), ("train_metrics", 0)])
def test_a_resumed_epoch_goes_on_from_the_counts_of_this_release_only(key, images):
    """Earlier releases kept other metrics, under another key."""
    backbone = Backbone({"layer": nn.Flatten()}, InputSpec(size=1))
    module = FineTuner(backbone, nn.Linear(3, 2), num_classes=2, optimizer=torch.optim.SGD)
    module._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1, global_rank=0, precision="32-true")
    counted = SplitMetrics(2)
    counted.update(*next(drawn_batches(0, 2, [8], multilabel=False)))
    module.on_load_checkpoint({key: [state_of_metric(counted)]})
    assert module.metrics["train_metrics"].images == images
