"""StageProgressBar: a line for each stage that begins and for each epoch, with or without a terminal."""

import re
import sys

import lightning.pytorch as pl
import pytest
import torch
from staged_net import fit
from torch import nn
from torch.utils.data import DataLoader

from ftlit import Schedule, Stage
from ftlit.lit.callbacks.progress_bar import StageProgressBar

STAGES = Schedule([Stage(["head"]), Stage(["*"], epoch=1)])


@pytest.mark.parametrize("terminal", [False, True])
def test_stages_and_epochs_have_a_line_each(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    fit(3, schedule=STAGES, callbacks=[StageProgressBar()], enable_progress_bar=True)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert re.findall(r"(?:stage|epoch) \d[^:\n]*(?=:)", text) == [
        "stage 0 begins at epoch 0",
        "epoch 0 (head)",
        "stage 1 begins at epoch 1",
        "epoch 1 (*)",
        "epoch 2 (*)",
    ]


def test_a_single_stage_is_not_announced(capsys):
    fit(1, schedule=Schedule([Stage(["head"])]), callbacks=[StageProgressBar()], enable_progress_bar=True)
    assert "begins" not in capsys.readouterr().out


@pytest.mark.parametrize(("epoch", "lines"), [(0, ["stage 1 begins at epoch 1: *"]), (1, [])])
def test_a_resumed_run_does_not_announce_a_stage_again_that_has_begun(capsys, tmp_path, epoch, lines):
    fit(2, schedule=STAGES, folder=tmp_path)
    capsys.readouterr()
    fit(4, schedule=STAGES, ckpt_path=tmp_path / f"{epoch}.ckpt", callbacks=[StageProgressBar()], enable_progress_bar=True)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage")] == lines


class Counting(pl.LightningModule):
    """Logs the number of each epoch, of train after all hooks of callbacks, as FineTuner does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def on_train_epoch_end(self):
        self.log("train/loss", float(self.current_epoch))

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_line_of_an_epoch_has_the_metrics_of_that_epoch_and_of_val_only_if_it_was_validated(capsys):
    loader = DataLoader(torch.ones(2, 1))
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=3, check_val_every_n_epoch=2, callbacks=[StageProgressBar()], **settings).fit(Counting(), loader, loader)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")] == [
        "epoch 0 (no stages): train/loss 0.0000",
        "epoch 1 (no stages): train/loss 1.0000 val/loss 1.0000",
        "epoch 2 (no stages): train/loss 2.0000",
    ]
