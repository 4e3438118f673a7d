"""Invariant 3: frozen means frozen, in ten architectures under Lightning's loops, while other code calls `.train()` in between."""

import hashlib
from dataclasses import dataclass, field
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lanes import nightly
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

from ftlit import FineTuner, Schedule, Stage, StagedFinetuning, load_backbone
from ftlit.models.heads import MLPHead

pytestmark = pytest.mark.zoo

NETS = {  # with high rates of dropout (as a module, as a function) and drop-path; batchnorms in most
    "resnet18": {},
    "densenet121": {"drop_rate": 0.5},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {"stochastic_depth_prob": 0.5},
    "convnext_tiny": {"stochastic_depth_prob": 0.3},
    "vit_b_16": {"dropout": 0.1, "attention_dropout": 0.1},
    "swin_t": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "regnet_x_400mf": {},
}
EPOCHS, STEPS = 2, 2  # steps an epoch; the second stage begins with the second epoch


def digest(module: nn.Module) -> str:
    """Return the sha256 of the names and bytes of all parameters and buffers, also of non-persistent ones."""
    found = hashlib.sha256()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


def digests(model: FineTuner) -> dict[str, str]:
    return {"head": digest(model.head)} | {name: digest(layer) for name, layer in model.backbone.items()}


class CallTrain(pl.Callback):
    """Call `.train()` on the model in every hook in which other code may, but not between the last step and the end."""

    def _train(self, trainer, model, *_):
        model.train()

    def _train_but_in_the_last_step(self, trainer, model, *_):
        if trainer.global_step < EPOCHS * STEPS - 1:
            model.train()

    on_fit_start = on_sanity_check_end = on_train_start = on_train_epoch_start = on_train_batch_start = on_validation_end = _train
    on_before_zero_grad = on_after_backward = on_train_batch_end = on_train_epoch_end = _train_but_in_the_last_step


@dataclass
class Step:
    """State at a training step; for each layer whether its features need a gradient and how many tensors it saved for it."""

    stage: int
    digests: dict[str, str]
    modes: dict[str, bool]
    output: torch.Tensor  # of the frozen layers, for the images of the first step
    needs_grad: dict[str, bool] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)


class Watch(pl.Callback):
    """Record each step, without changing a mode or a gradient."""

    def __init__(self, model: FineTuner) -> None:
        self.steps, self.x = [], torch.randn(4, 3, 32, 32)
        for name, layer in model.backbone.items():
            layer.register_forward_pre_hook(partial(self._enter, name))
            layer.register_forward_hook(partial(self._leave, name))

    def _enter(self, name, layer, args):
        if torch.is_grad_enabled():
            self.steps[-1].saved[name] = 0
            self._hooks = saved_tensors_hooks(partial(self._keep, name), lambda tensor: tensor)
            self._hooks.__enter__()

    def _keep(self, name, tensor):
        self.steps[-1].saved[name] += 1
        return tensor

    def _leave(self, name, layer, args, features):
        if torch.is_grad_enabled():
            self._hooks.__exit__(None, None, None)
            self.steps[-1].needs_grad[name] = features.requires_grad

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        stage = trainer.callbacks[1].index
        modes = {name: module.training for name, module in model.backbone.named_modules()}
        with torch.no_grad():
            output = frozen(model.backbone, stage)(self.x).clone()
        self.steps.append(Step(stage, digests(model), modes, output))


def frozen(backbone, stage):
    """Return the layers that are frozen in this stage."""
    return backbone if stage == 0 else backbone.upto(-2)


@dataclass
class Run:
    name: str
    model: FineTuner
    steps: list[Step]
    end: dict[str, str]  # digests
    changed: set[str]  # parameters that the second stage changed
    x: torch.Tensor


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: on maps of a few pixels several threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=nightly(NETS, ["efficientnet_b0", "swin_t", "shufflenet_v2_x0_5", "regnet_x_400mf"]))
def run(request, one_thread) -> Run:
    torch.manual_seed(0)
    backbone = load_backbone(request.param, weights=None, input_spec={"size": 32}, **NETS[request.param])
    top = f"backbone.{backbone.cuts[-1]}"
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
    model = FineTuner(backbone, MLPHead(backbone.num_features, 3, hidden=[8]), num_classes=3, optimizer=optimizer)
    data = DataLoader([(torch.randn(3, 32, 32), i % 3) for i in range(4 * STEPS)], batch_size=4)
    before: dict[str, torch.Tensor] = {}
    watch = Watch(model)

    class Before(pl.Callback):
        def on_train_epoch_start(self, trainer, model):
            before.update({name: p.detach().clone() for name, p in model.named_parameters()})

    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        val_check_interval=1,  # after each step
        limit_val_batches=1,
        callbacks=[CallTrain(), StagedFinetuning(Schedule([Stage(["head"]), Stage(["head", top], epoch=1)])), watch, Before()],
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
    )
    trainer.fit(model, data, data)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    return Run(request.param, model, watch.steps, digests(model), changed, watch.x)


def test_the_hash_of_frozen_parameters_and_buffers_is_unchanged(run):
    *below, top = run.model.backbone.cuts
    first, second = run.steps[0].digests, run.steps[STEPS].digests
    assert [step.stage for step in run.steps] == [0] * STEPS + [1] * STEPS
    assert {name for name in first if first[name] != second[name]} == {"head"}
    assert {name for name in first if second[name] != run.end[name]} == {"head", top}
    assert below and all(step.digests[name] == run.end[name] for step in run.steps for name in below)


def test_in_the_second_stage_exactly_the_head_and_the_top_layer_change(run):
    top = f"backbone.{run.model.backbone.cuts[-1]}."
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert run.changed == {name for name, _ in run.model.named_parameters() if name.startswith(("head.", top))}


def test_the_outputs_of_the_frozen_layers_are_bit_equal_at_every_step_and_after_training(run):
    for stage in (0, 1):
        first, *later = [step.output for step in run.steps if step.stage == stage]
        assert all(torch.equal(first, output) for output in later)
    with torch.no_grad():
        assert torch.equal(frozen(run.model.backbone, 1)(run.x), run.steps[-1].output)  # in the mode at the end of training


def test_frozen_modules_are_in_evaluation_mode_at_every_step_and_after_training(run):
    *below, top = run.model.backbone.cuts
    at_end = {name: module.training for name, module in run.model.backbone.named_modules()}
    for step in [*run.steps, Step(1, {}, at_end, run.x)]:
        held = [*below, top] if step.stage == 0 else below
        assert not any(mode for name, mode in step.modes.items() if any(name == layer or name.startswith(f"{layer}.") for layer in held))
        assert step.modes[top] == (step.stage == 1)


def test_frozen_layers_run_without_a_graph_and_keep_no_activations(run):
    *below, top = run.model.backbone.cuts
    for step in run.steps:
        assert step.needs_grad == {**dict.fromkeys(below, False), top: step.stage == 1}
        assert not any(step.saved[name] for name in below) and (step.saved[top] > 0) == (step.stage == 1)


def test_in_training_mode_statistics_or_outputs_change(run):
    """Negative control. Squeezenet is an exception: its layers have neither statistics nor dropout."""
    backbone = run.model.backbone.upto(-2).train()
    before = digest(backbone)
    with torch.no_grad():
        outputs = [backbone(run.x), backbone(run.x)]
    unchanged = digest(backbone) == before and all(torch.equal(output, run.steps[-1].output) for output in outputs)
    assert unchanged == (run.name == "squeezenet1_1")
