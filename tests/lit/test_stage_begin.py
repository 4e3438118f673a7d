"""What is printed when stages begin."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ftlit import Backbone, FeatureData, InputSpec, Schedule, Stage
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
    trainer = SimpleNamespace(optimizers=optimizers, estimated_stepping_batches=5, world_size=1, datamodule=data)
    print_plan(Schedule([Stage(["*"])]), trainer, module)
    assert "gets only 5 optimizer steps" in lines[0] and ("FitProbeHead" in lines[0]) == (kind != "loaders")
