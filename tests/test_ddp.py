"""Law 6: after a stage began, two processes hold the same bits, and equal one process on the same global batch."""

import subprocess
import sys

import pytest
import torch

PROGRAM = """
import os, sys
from functools import partial
import lightning.pytorch as pl, torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from ftlit import Schedule, Stage, StagedFinetuning, build_optimizer

ours, devices, out = sys.argv[1] == "ours", int(sys.argv[2]), sys.argv[3]

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.double()
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
    def configure_optimizers(self):
        if ours:
            return build_optimizer(self, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

generator = torch.Generator().manual_seed(1)
data = [(torch.randn(4, generator=generator).double(), i % 3) for i in range(32)]
callback = StagedFinetuning(Schedule([Stage(["head"]), Stage(["head", "backbone.2"], epoch=1), Stage(["*"], epoch=2)])) if ours else \\
    BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
trainer = pl.Trainer(max_epochs=4, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", callbacks=[callback],
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
model = Net()
rank = int(os.environ.get("LOCAL_RANK", 0))
sampler = DistributedSampler(data, num_replicas=devices, rank=rank, shuffle=False)
trainer.fit(model, DataLoader(data, batch_size=8 // devices, sampler=sampler))
torch.save(model.state_dict(), f"{out}.{trainer.global_rank}")
"""


def run(folder, whose, devices):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    out = folder / f"{whose}{devices}"
    done = subprocess.run([sys.executable, str(program), whose, str(devices), str(out)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(devices)]


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ours"), "ours", 2)


def test_both_processes_hold_the_same_bits(ours):
    assert distance(*ours) == 0


def test_two_processes_equal_one(ours, tmp_path):
    assert distance(ours[0], *run(tmp_path, "ours", 1)) < 1e-10


def test_lightnings_own_callback_drifts_apart(tmp_path):
    """The control: this comparison can fail (Lightning#20340). When it no longer does, rewrapping is no longer needed."""
    assert distance(*run(tmp_path, "theirs", 2)) > 1e-6
