"""StagedFinetuning in a LightningModule that knows nothing of it: frozen means frozen, groups never change, resuming finds the stage."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ftlit import Schedule, Stage, StagedFinetuning, UserError, build_optimizer

SCHEDULE = Schedule([Stage(["head"]), Stage(["head", "body.top"], epoch=2), Stage(["*"], epoch=3)])


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        low = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.body = nn.ModuleDict({"low": low, "top": nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())})
        self.head = nn.Linear(8, 3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.global_step)  # dropout by step, so that a resumed run draws the same
        self.seen.append({name: module.training for name, module in self.named_modules()})
        return nn.functional.cross_entropy(self.head(self.body.top(self.body.low(batch[0]))), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1), [("head", 1.0), ("body", 0.1)])


class Snapshots(pl.Callback):
    """The state, the groups and the modes at the end of each epoch; `.train()` called on everything in between, as others might."""

    def __init__(self, folder=None):
        self.folder, self.states, self.groups = folder, [], []

    def on_train_epoch_start(self, trainer, model):
        model.train()

    def on_validation_end(self, trainer, model):
        model.train()

    def on_train_epoch_end(self, trainer, model):
        self.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        self.groups.append([(group["name"], group["lr"], len(group["params"])) for group in trainer.optimizers[0].param_groups])
        if self.folder:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def fit(epochs, *, folder=None, ckpt_path=None, schedule=SCHEDULE, model=None):
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, generator=generator), i % 3) for i in range(16)]
    model, shots = model or Net(), Snapshots(folder)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[StagedFinetuning(schedule), shots], **quiet)
    trainer.fit(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
    return model, shots


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return *fit(5, folder=folder), folder


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_head_moves_in_its_stage_statistics_included(run):
    _, shots, _ = run
    start = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    assert moved(start, shots.states[1]) == {"head.weight", "head.bias"}


def test_each_stage_moves_exactly_its_layers(run):
    _, shots, _ = run
    assert {name.rsplit(".", 2)[0] for name in moved(shots.states[1], shots.states[2])} == {"head", "body.top"}
    assert {name.rsplit(".", 2)[0] for name in moved(shots.states[2], shots.states[3])} == {"head", "body.top", "body.low"}


def test_frozen_modules_stay_in_evaluation_mode_dropout_too(run):
    model, _, _ = run
    head_stage, last_stage = model.seen[5], model.seen[-1]
    assert not any(head_stage[name] for name in ("body.low", "body.low.1", "body.low.2", "body.top.2"))
    assert head_stage["head"] and all(last_stage.values())


def test_groups_are_built_once_and_keep_their_rates(run):
    _, shots, _ = run
    assert all(groups == [("head", pytest.approx(0.1), 2), ("body", pytest.approx(0.01), 8)] for groups in shots.groups)


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_resumed_run_ends_with_the_bits_of_the_run_that_never_stopped(run, epoch):
    _, whole, folder = run
    _, resumed = fit(5, ckpt_path=folder / f"{epoch}.ckpt")
    assert moved(whole.states[-1], resumed.states[-1]) == set()


def test_a_second_fit_starts_at_the_first_stage():
    model, _ = fit(4)
    _, shots = fit(4, model=model)
    assert moved(shots.states[0], shots.states[1]) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("schedule", [Schedule([Stage(["haed"])]), Schedule([Stage(["head"]), Stage(["*"], epoch=9)])])
def test_a_mistake_stops_before_training(schedule):
    model = Net()
    with pytest.raises(UserError) as error:
        fit(5, schedule=schedule, model=model)
    assert "\n" not in str(error.value) and model.seen == []
