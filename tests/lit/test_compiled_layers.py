"""Layers run compiled through a stage change: nothing falls back, and the features that they compute have a key of their own."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, TensorDataset

from ftlit import FineTuner, Schedule, Stage, StagedFinetuning, load_backbone
from ftlit.features.keys import VALUES, feature_keys
from ftlit.features.spec import FeatureSpec
from ftlit.lit.module_internals import recompile_limit
from ftlit.lit.strategies import RECOMPILED, compile_layers, compiled_layers_allowed
from ftlit.models.heads import LinearHead

pytestmark = [pytest.mark.slow, pytest.mark.zoo]


class Limit(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        self.limit = recompile_limit()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16"])
def test_layers_stay_compiled_through_a_stage_change(name):
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    backbone = load_backbone(name, weights=None, input_spec={"size": 32})
    head = LinearHead(backbone.num_features, 2)
    key = partial(feature_keys, backbone, [FeatureSpec(backbone.cuts[-1], "average")], view=VALUES, size=(3, 32, 32), dtype=torch.float32)
    plain = key()
    compile_layers(backbone, head, backend="aot_eager")
    model = FineTuner(backbone, head, num_classes=2, optimizer=partial(torch.optim.SGD, lr=1e-3))
    data = DataLoader(TensorDataset(torch.randn(7, 3, 32, 32), torch.arange(7) % 2), 4)  # the last batch is smaller
    stages = [Stage(["head"]), Stage([f"backbone.{backbone.cuts[-2]}", "head"], epoch=1), Stage(["*"], epoch=2)]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    limit, before = Limit(), recompile_limit()
    with compiled_layers_allowed(model):
        trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[StagedFinetuning(Schedule(stages)), limit], **quiet)
        trainer.fit(model, data, data)
    assert counters["unimplemented"] == {} and counters["graph_break"] == {}
    assert counters["stats"]["unique_graphs"] > len(backbone.cuts) and counters["recompile_limit"] == {}
    assert limit.limit == RECOMPILED * (len(backbone.cuts) + 1) and recompile_limit() == before
    compiled = key()
    assert {spec: one.digest for spec, one in compiled.items()} != {spec: one.digest for spec, one in plain.items()}
    torch.compiler.reset()
