"""A small LightningModule of a user, and its training by stages."""

from functools import partial

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from ftlit import Schedule, Stage, StagedFinetuning, build_optimizer

SCHEDULE = Schedule([Stage(["head"]), Stage(["head", "body.top"], epoch=2), Stage(["*"], epoch=3)])
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(pl.LightningModule):
    """Two layers and a head. `seen` has the mode of every module at each training step."""

    def __init__(self, scores=()):
        super().__init__()
        torch.manual_seed(0)
        self.scores = scores  # the validation score of each epoch
        low = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.body = nn.ModuleDict({"low": low, "top": nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())})
        self.head = nn.Linear(8, 3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.global_step)  # dropout masks by step, so that a resumed run has the same
        self.seen.append({name: module.training for name, module in self.named_modules()})
        return nn.functional.cross_entropy(self.head(self.body.top(self.body.low(batch[0]))), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/score", float(self.scores[self.current_epoch]) if self.scores else 0.0)

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1), [("head", 1.0), ("body", 0.1)])


class Snapshots(pl.Callback):
    """Record state, groups and stage at the end of each epoch; in between call `.train()` on the model, as other code may."""

    def __init__(self, folder=None):
        self.folder, self.states, self.groups, self.stages = folder, [], [], []

    def on_train_epoch_start(self, trainer, model):
        model.train()

    def on_validation_end(self, trainer, model):
        model.train()

    def on_train_epoch_end(self, trainer, model):
        self.stages.append(trainer.callbacks[0].index)
        self.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        self.groups.append([(group.get("name"), group["lr"], len(group["params"])) for group in trainer.optimizers[0].param_groups])
        if self.folder:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def fit(epochs, *, folder=None, ckpt_path=None, schedule=SCHEDULE, model=None, callbacks=(), **settings):
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, generator=generator), i % 3) for i in range(16)]
    model, shots = model or Net(), Snapshots(folder)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[StagedFinetuning(schedule), *callbacks, shots], **QUIET | settings
    )
    trainer.fit(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
    return model, shots


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}
