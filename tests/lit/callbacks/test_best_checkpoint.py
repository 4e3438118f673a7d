"""The best epoch: ties go to the least loss, then to the last epoch; the metric gives the direction."""

from itertools import product
from math import nan

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ftlit.errors import UserError
from ftlit.finetuning.stage import mode_of
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint

LOADER = DataLoader(torch.zeros(2, 1))


class Scripted(pl.LightningModule):
    """A module whose validation logs given (accuracy, loss) pairs, one in each epoch. Its weight counts the steps."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.weight = scores, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return -self.weight.sum()

    def validation_step(self, batch, batch_idx):
        accuracy, loss = self.scores[self.current_epoch]
        self.log_dict({"val/accuracy": accuracy, "val/loss": loss})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, scores, *, val=True, ckpt_path=None, epochs=None, **options):
    best = BestCheckpoint(folder, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs or len(scores), callbacks=[best], num_sanity_val_steps=0, **quiet)
    trainer.fit(Scripted(scores), LOADER, LOADER if val else None, ckpt_path=ckpt_path)
    return best, trainer


def steps_of(best):
    return torch.load(best.best_model_path, weights_only=True)["state_dict"]["weight"].item()


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ([(1.0, 0.5), (1.0, 0.2), (1.0, 0.3)], 1),  # equal accuracy: the least loss
        ([(0.5, 0.2), (0.5, 0.2), (0.5, 0.2)], 2),  # equal in both: the last
        ([(0.9, 0.5), (0.8, 0.1), (0.7, 0.1)], 0),  # accuracy comes first
        ([(0.5, nan), (0.5, 0.7), (0.5, nan)], 1),  # a loss that is not a number is the worst
        ([(nan, nan), (0.1, 9.0), (nan, nan)], 1),
    ],
)
def test_ties_go_to_the_least_loss_then_to_the_last_epoch(tmp_path, scores, epoch):
    best, _ = fit(tmp_path, scores)
    assert best.best_epoch == epoch and steps_of(best) == 2 * (epoch + 1)  # the file is of that epoch too
    assert best.describe() == f"the results are from epoch {epoch}, the best by val/accuracy"


@settings(max_examples=5, deadline=None)
@given(scores=st.lists(st.sampled_from(list(product((0.5, 1.0), (0.1, 0.2)))), min_size=1, max_size=5))
def test_the_best_epoch_is_the_last_maximum_of_accuracy_and_negative_loss(tmp_path_factory, scores):
    expected = max(range(len(scores)), key=lambda i: (scores[i][0], -scores[i][1], i))
    assert fit(tmp_path_factory.mktemp("run"), scores)[0].best_epoch == expected


def test_the_direction_follows_from_the_metric(tmp_path):
    scores = [(0.9, 0.5), (0.8, 0.1), (0.7, 0.3)]
    assert fit(tmp_path / "loss", scores, monitor="val/loss")[0].best_epoch == 1
    assert fit(tmp_path / "given", scores, monitor="val/loss", mode="max")[0].best_epoch == 0
    assert [mode_of(f"val/{name}") for name in ("loss", "f1", "accuracy", "mean_squared_error")] == ["min", "max", "max", "min"]


def test_a_metric_of_unknown_direction_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"monitor=val/distance: give callbacks.best.mode=max if"):
        BestCheckpoint(tmp_path, monitor="val/distance")
    assert BestCheckpoint(tmp_path, monitor="val/distance", mode="min").mode == "min"


def test_without_validation_the_last_weights_are_the_best(tmp_path):
    best, _ = fit(tmp_path, [(0, 0)] * 3, val=False)
    assert best.best_epoch is None and steps_of(best) == 6 and best.describe().startswith("no epoch was validated")


def test_resumed_training_keeps_the_best_epoch_and_its_tie_break(tmp_path):
    _, trainer = fit(tmp_path, [(1.0, 0.2)])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    best, _ = fit(tmp_path, [(1.0, 0.2), (1.0, 0.3), (0.9, 0.1)], ckpt_path=tmp_path / "last.ckpt")
    assert best.best_epoch == 0 and steps_of(best) == 2


def begun_with(folder, scores, value, margin, images=0, **options):
    """A fit that begins with weights of this value, saved before."""
    first = folder / "first.ckpt"
    torch.save({"state_dict": {"weight": torch.tensor([-1.0])}}, first)
    best = BestCheckpoint(folder, **options)
    best.begin_with(first, value, margin, images=images)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=len(scores), callbacks=[best], num_sanity_val_steps=0, **quiet)
    trainer.fit(Scripted(scores), LOADER, LOADER)
    return best


@pytest.mark.parametrize(
    ("scores", "margin", "epoch"),
    [
        ([(0.7, 0.1), (0.7, 0.1)], 0.0, None),  # an equal value does not replace them, whatever the loss
        ([(0.8, 0.9), (0.7, 0.1)], 0.0, 0),
        ([(0.73, 0.1), (0.74, 0.1)], 0.05, None),  # better, but not by more than the margin
        ([(0.74, 0.1), (0.76, 0.1), (0.77, 0.1)], 0.05, 2),  # the margin is for the first epoch that replaces them
        ([(0.76, 0.5), (0.76, 0.1)], 0.05, 1),
        ([(nan, nan)], 0.0, None),
    ],
)
def test_weights_from_before_training_are_replaced_by_an_epoch_that_is_better_by_more_than_the_margin(tmp_path, scores, margin, epoch):
    best = begun_with(tmp_path, scores, 0.7, margin)
    assert best.best_epoch == epoch
    assert steps_of(best) == (-1.0 if epoch is None else float(epoch + 1) * 2)
    assert best.keeps_first == (epoch is None and best.best_of_epochs is not None)


@pytest.mark.parametrize(
    ("accuracy", "before", "images", "says"),
    [
        (
            9 / 9,
            8 / 9,
            9,
            "epoch 0, the best by val/accuracy, with 9 of 9 val images right (linear probe: 8): the difference may be chance",
        ),
        (0.99, 0.90, 300, "epoch 0, the best by val/accuracy, with 297 of 300 val images right (linear probe: 270)"),
        (
            0.70,
            0.80,
            10,
            "linear probe, because no epoch was clearly better by val/accuracy (best: 0.7000, with 7 of 10 val images right (li",
        ),
        (0.75, 0.50, 0, "epoch 0, the best by val/accuracy"),
    ],
)
def test_the_difference_to_the_weights_before_training_is_counted_in_val_images(tmp_path, accuracy, before, images, says):
    best = begun_with(tmp_path, [(accuracy, 0.1)], before, 0.0, images)
    found = best.describe()
    assert found.startswith(f"the results are from {'the ' if best.keeps_first else ''}{says}")
    assert ("may be chance" in found) == ("may be chance" in says)
    assert images or found.endswith(says)


def test_for_a_loss_the_margin_is_below_the_value(tmp_path):
    best = begun_with(tmp_path, [(0.0, 0.66), (0.0, 0.64)], 0.7, 0.05, monitor="val/loss")
    assert best.best_epoch == 1 and not best.keeps_first
    assert "epoch 1" in best.describe()
