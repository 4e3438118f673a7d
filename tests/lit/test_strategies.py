"""Compiled modules and strategies follow the stages, or are not supported; the error gives the reason."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lanes import nightly
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceXLAStrategy, Strategy
from torch import nn
from torch.utils.data import DataLoader

from ftlit import Schedule, Stage, StagedFinetuning, UserError, build_optimizer
from ftlit.lit.module_internals import is_compiled
from ftlit.lit.sharding.fsdp2 import Fsdp2Strategy
from ftlit.lit.strategies import check_resumes, check_strategy

LAYERS = 10
TOP_DOWN = Schedule(
    [Stage(["head"])] + [Stage(["head", *(f"body.{i}" for i in range(LAYERS - n, LAYERS))], epoch=n) for n in range(1, LAYERS + 1)]
)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(LAYERS)))
        self.head = nn.Linear(4, 3)
        self.ends = []

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_train_epoch_end(self):
        self.ends.append({name: tensor.clone() for name, tensor in self.state_dict().items()})

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.1))


def fit(model, *callbacks, epochs=LAYERS + 1, schedule=TOP_DOWN, **settings):
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, generator=generator), i % 3) for i in range(16)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[StagedFinetuning(schedule), *callbacks], **{"accelerator": "cpu"} | quiet | settings)
    trainer.fit(model, DataLoader(data, batch_size=8))
    return model


def compiled_by_part(model):
    model.body.compile(backend="aot_eager")
    model.head.compile(backend="aot_eager")
    return model


def compiled_as_a_whole(model):
    return torch.compile(model, backend="aot_eager")


@pytest.mark.e2e
@pytest.mark.parametrize("compiled", nightly([compiled_by_part, compiled_as_a_whole], [compiled_as_a_whole]))
def test_compiled_training_ends_with_the_same_weights_after_more_stages_than_the_recompile_limit(compiled):
    plain, model = fit(Net()), Net()
    assert len(TOP_DOWN.stages) > 8  # torch's recompile_limit, formerly cache_size_limit
    wrapped = compiled(model)
    fit(wrapped)
    assert is_compiled(model)
    for epoch, (compiled_end, plain_end) in enumerate(zip(model.ends, plain.ends, strict=True)):
        assert all(torch.allclose(compiled_end[name], plain_end[name], atol=1e-6) for name in plain_end), epoch
    for before, after, layer in zip(model.ends, model.ends[1:], reversed(range(LAYERS)), strict=False):
        assert not torch.equal(before[f"body.{layer}.0.weight"], after[f"body.{layer}.0.weight"])


def test_a_plain_module_is_not_compiled():
    assert not is_compiled(Net())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_half_precision_each_stage_changes_exactly_its_layers(precision):
    schedule = Schedule([Stage(["head"]), Stage(["head", "body.9"], epoch=1)])
    model = fit(Net(), epochs=2, schedule=schedule, precision=precision)
    start = Net().to(torch.bfloat16 if precision == "bf16-true" else torch.float32).state_dict()
    moved = [{name.rsplit(".", 2)[0] for name in end if not torch.equal(end[name], start[name])} for end in model.ends]
    assert moved == [{"head"}, {"head", "body.9"}] or moved == [{"head.weight", "head.bias"}, {"head.weight", "head.bias", "body.9"}]


class Unfreeze(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.body[0][0].weight.requires_grad_(True)


def test_other_code_that_unfreezes_a_parameter_is_an_error():
    with pytest.raises(UserError, match=r"code other than StagedFinetuning has set requires_grad=True for 'body.0.0.weight'"):
        fit(Net(), Unfreeze())


class Trainer:
    """A trainer with a strategy whose device may be missing here."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy


def test_fsdp1_is_an_error_that_names_fsdp2():
    with pytest.raises(UserError, match=r"FSDP1.*give trainer=fsdp2 \(in Python strategy=ftlit.Fsdp2Strategy\(\)\)"):
        check_strategy(Trainer(FSDPStrategy()))
    check_strategy(Trainer(Fsdp2Strategy()))


def test_lightnings_own_strategy_cannot_resume_with_stages():
    check_resumes(Trainer(Fsdp2Strategy()))
    with pytest.raises(UserError, match=r"start a new run with strategy=ftlit\.Fsdp2Strategy"):
        check_resumes(Trainer(ModelParallelStrategy()))


def test_an_untested_strategy_is_not_supported():
    with pytest.raises(UserError, match="does not support SingleDeviceXLAStrategy"):
        check_strategy(Trainer(SingleDeviceXLAStrategy.__new__(SingleDeviceXLAStrategy)))
