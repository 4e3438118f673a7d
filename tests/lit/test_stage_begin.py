"""What is printed when stages begin."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ftlit import Backbone, FeatureData, InputSpec, Schedule, Stage
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.lit.datamodules.image_sources import digits_data
from ftlit.lit.stage_begin import print_plan

SPEC = InputSpec(size=8)


@pytest.mark.parametrize("kind", ["images", "features", "loaders"])
def test_a_fitted_head_is_advised_only_on_image_data(kind, tmp_path):
    images = digits_data(SPEC)
    data = {"images": images, "features": FeatureData(images, tmp_path), "loaders": None}[kind]
    lines = []
    module = nn.ModuleDict({"backbone": Backbone({"low": nn.Conv2d(3, 4, 1)}, SPEC), "head": nn.Linear(4, 2)})
    module.print = lines.append
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    trainer = SimpleNamespace(optimizers=optimizers, estimated_stepping_batches=5, world_size=1, datamodule=data, callbacks=[])
    print_plan(Schedule([Stage(["*"])]), trainer, module)
    assert "gets only 5 optimizer steps" in lines[0] and ("FitProbeHead" in lines[0]) == (kind != "loaders")


def test_a_head_that_is_fitted_first_has_no_random_weights():
    lines = []
    module = nn.ModuleDict({"backbone": Backbone({"low": nn.Conv2d(3, 4, 1)}, SPEC), "head": nn.Linear(4, 2)})
    module.print = lines.append
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    for callbacks in ([], [FitProbeHead()]):
        known = {"world_size": 1, "datamodule": digits_data(SPEC), "callbacks": callbacks}
        trainer = SimpleNamespace(optimizers=optimizers, estimated_stepping_batches=5, **known)
        print_plan(Schedule([Stage(["backbone"]), Stage(["*"], epoch=1)]), trainer, module)
    assert all(text in lines[0] for text in ("gets only 5", "before head trains")) and "random weights" not in lines[1]
