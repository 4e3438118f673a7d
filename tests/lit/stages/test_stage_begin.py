"""What is printed when stages begin."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ftlit import Backbone, FeatureData, InputSpec, Rates, Schedule, Stage, fit_probe
from ftlit.finetuning.lr_schedule import constant
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.lit.datamodules.image_sources import digits_data
from ftlit.lit.stages.stage_begin import print_plan

SPEC = InputSpec(size=8)
HEAD_LATE = Schedule([Stage(["backbone"]), Stage(["*"], epoch=1)])
HEAD_LATE_IN_ENCODER = Schedule([Stage(["encoder"]), Stage(["*"], epoch=1)])


def trainer_of(optimizers, datamodule=None, **known):
    usual = {"world_size": 1, "callbacks": [], "ckpt_path": None, "global_step": 0, "fast_dev_run": 0, "max_steps": -1, "max_epochs": 5}
    usual |= {
        "train_dataloader": None,
        "enable_validation": False,
        "val_check_batch": 1,
        "num_training_batches": 1,
        "lr_scheduler_configs": [],
    }
    return SimpleNamespace(optimizers=optimizers, estimated_stepping_batches=5, datamodule=datamodule, **{**usual, **known})


@pytest.mark.parametrize("kind", ["images", "features", "loaders"])
def test_a_fitted_head_is_advised_only_on_image_data(kind, tmp_path):
    images = digits_data(SPEC)
    data = {"images": images, "features": FeatureData(images, tmp_path), "loaders": None}[kind]
    lines = []
    module = nn.ModuleDict({"backbone": Backbone({"low": nn.Conv2d(3, 4, 1)}, SPEC), "head": nn.Linear(4, 2)})
    module.print = lines.append
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    trainer = trainer_of(optimizers, data)
    print_plan(Schedule([Stage(["*"])]), trainer, module, whole=True)
    assert "gets only 5 optimizer steps" in lines[0] and ("FitProbeHead" in lines[0]) == (kind != "loaders")


def test_a_head_that_is_fitted_first_has_no_random_weights():
    lines = []
    module = nn.ModuleDict({"backbone": Backbone({"low": nn.Conv2d(3, 4, 1)}, SPEC), "head": nn.Linear(4, 2)})
    module.print = lines.append
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    for known in ({}, {"callbacks": [FitProbeHead()]}, {"ckpt_path": "last.ckpt"}, {"global_step": 3}):
        print_plan(HEAD_LATE, trainer_of(optimizers, digits_data(SPEC), **known), module, whole=True)
    assert all(text in lines[0] for text in ("gets only 5", "before head trains"))
    assert len(lines) == 4 and not any("random weights" in line for line in lines[1:])


def test_the_plan_shows_the_rates_with_which_each_stage_begins():
    lines = []
    module = nn.ModuleDict({"low": nn.Conv2d(3, 4, 1), "head": nn.Linear(4, 2)})
    module.print = lines.append
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    rates = Rates(optimizer, constant, steps=5, epochs=5, stage_factors=[1, 0.3])
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=1)])
    print_plan(schedule, trainer_of([optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=rates)]), module, whole=True)
    assert "learning rate 1.0e-01 in 0, 3.0e-02 in 1\n" in lines[0] and "trains in stage 1; learning rate 3.0e-02\n" in lines[0]


def fitted():
    return fit_probe(torch.randn(12, 4), torch.arange(12) % 2).as_head()


@pytest.mark.parametrize(
    ("head", "is_random"),
    [
        (lambda: nn.Linear(4, 2), True),
        (fitted, False),
        (lambda: nn.Sequential(nn.Dropout(), fitted()), False),
        (lambda: copy.deepcopy(fitted()), False),
        (lambda: fit_probe(torch.randn(12, 4), torch.arange(12) % 2, pooling="max").as_head(), False),
    ],
    ids=["new", "fitted", "in a sequence", "copied", "with pooling"],
)
def test_a_head_of_fit_probe_has_no_random_weights(head, is_random):
    lines = []
    module = nn.ModuleDict({"encoder": nn.Conv2d(3, 4, 1), "head": head()})
    module.print = lines.append
    print_plan(HEAD_LATE_IN_ENCODER, trainer_of([torch.optim.SGD(module.parameters(), lr=0.1)]), module, whole=True)
    assert [text in lines[0] for text in ("gets only 5", "before head trains")] == [is_random, is_random]
