"""A slim checkpoint holds the tensors that differ from the pretrained weights, and can be used like a full one."""

import os
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import warm
from lightning_net import Stop
from paths import ROOT
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ftlit
from ftlit import FineTuner, LastCheckpoint, StagedFinetuning, UserError, load, load_backbone
from ftlit.finetuning.presets import head_only, lora, top_down
from ftlit.inference.record import record_of
from ftlit.inference.slim import base_record, digests, filled, slimmed
from ftlit.models.heads import LinearHead
from ftlit.recipes.run.parts import add_schedule_lora

pytestmark = pytest.mark.e2e

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
GLYPH = Path(ftlit.__file__).parent / "zoo" / "glyph.safetensors"
STAGED = (
    "trainer=cpu", "data.per_class=5", "data.num_workers=0", "scenario=large_similar", "head=linear", "schedule=last_k", "schedule.k=1",
    "report=false", "cache=none",
)  # fmt: skip


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), *STAGED, *arguments]
    return warm.run(command, cwd=folder, env=dict(os.environ), timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train twice from weights in a file: with full and with slim checkpoints."""
    folder = tmp_path_factory.mktemp("slim")
    shutil.copy(GLYPH, folder / "glyph.safetensors")
    for name in ("full", "slim"):
        arguments = ("backbone.weights=glyph.safetensors", "trainer.max_epochs=3", f"checkpoint={name}", f"hydra.run.dir={name}")
        done = train(folder, *arguments)
        assert done.returncode == 0, done.stderr
    return folder


def state_of(file):
    return torch.load(file, weights_only=True)["state_dict"]


def test_a_slim_checkpoint_holds_trained_layers_and_gives_the_network_of_the_full_one(runs):
    full, slim = (runs / name / "checkpoints/best.ckpt" for name in ("full", "slim"))
    held = {name.split(".")[1] for name in state_of(slim) if name.startswith("backbone.")}
    assert held == {"layer4"} and slim.stat().st_size < full.stat().st_size
    whole, again = load(runs / "full"), load(runs / "slim")
    assert again.class_names == whole.class_names
    for name, tensor in whole.backbone.state_dict().items():
        assert torch.equal(tensor, again.backbone.state_dict()[name]), name
    assert torch.equal(whole.head.weight, again.head.weight)


@pytest.mark.parametrize("make", [partial(top_down, every=2), partial(lora, rank=2)], ids=["layers", "lora"])
@pytest.mark.parametrize("step", [2, 8])  # in the stage of the head, and in a later one
def test_a_run_resumed_from_a_slim_checkpoint_ends_with_the_same_bits(tmp_path, step, make):
    def run(*, stop=None, resume_from=None, slim=True):
        torch.manual_seed(0 if resume_from is None else 7)  # other random weights, which the checkpoint replaces
        backbone = load_backbone("glyph")
        schedule, base = make(backbone.layers_with_parameters), base_record(backbone) if slim else None
        facts = {"class_names": list("abc"), "multilabel": False, "affine": False, "lora": add_schedule_lora(backbone, schedule)}
        record = {
            **record_of(backbone, {}, {"_target_": "ftlit.models.heads.LinearHead"}, **facts),
            "base": base,
        }
        rates = {"lr_scale": schedule.lr_scale, "optimizer": partial(torch.optim.AdamW, lr=1e-3)}
        model = FineTuner(backbone, LinearHead(128, 3), num_classes=3, record=record, slim=slim, **rates)
        draw = torch.Generator().manual_seed(1)
        data = DataLoader(TensorDataset(torch.randn(6, 3, 32, 32, generator=draw), torch.arange(6) % 3), 3)
        callbacks = [StagedFinetuning(schedule), LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=1), Stop(stop)]
        trainer = pl.Trainer(max_epochs=11, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
        with nullcontext() if stop is None else pytest.raises(InterruptedError):
            trainer.fit(model, data, ckpt_path=resume_from)
        return model.state_dict()

    whole = run(slim=False)
    run(stop=step)
    assert len(state_of(tmp_path / "last.ckpt")) < len(whole) / 2
    resumed = run(resume_from=tmp_path / "last.ckpt")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_other_base_weights_are_an_error_with_both_digests(runs, tmp_path):
    weights = load_file(GLYPH)
    name = next(name for name in weights if name.endswith("conv1.weight") or "weight" in name)
    weights[name] = weights[name] * 1.5
    here = runs / "glyph.safetensors"
    kept = here.read_bytes()
    old = torch.load(runs / "slim/checkpoints/best.ckpt", weights_only=True)["ftlit"]["base"]["digest"]
    try:
        save_file(weights, here)
        with pytest.raises(UserError, match="restore the weights with digest") as caught:
            load(runs / "slim")
        new = base_record(load_backbone("glyph", weights=here))["digest"]
        assert old in str(caught.value) and new in str(caught.value) and old != new and "\n" not in str(caught.value)
        here.unlink()
        with pytest.raises(UserError, match=r"glyph\.safetensors"):
            load(runs / "slim")
    finally:
        here.write_bytes(kept)
    assert load(runs / "full")  # full checkpoints do not need the file


def test_changed_tensors_are_kept_and_omitted_ones_are_restored():
    backbone = load_backbone("glyph")
    base = digests(backbone)
    state = {f"backbone.{name}": tensor.clone() for name, tensor in backbone.state_dict().items()} | {"head.weight": torch.zeros(2)}
    assert set(slimmed(state, base)) == {"head.weight"}
    name = next(name for name in state if name.endswith("running_mean"))
    state[name][0] += 1e-7
    assert set(slimmed(state, base)) == {"head.weight", name}
    again = filled(slimmed(state, base), load_backbone("glyph"))
    assert again.keys() == state.keys() and all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_reinitialized_layers_are_always_kept():
    backbone = load_backbone("glyph", reinit=["layer4"])
    assert not any(name.startswith("backbone.layer4") for name in digests(backbone))
    assert base_record(backbone)["digest"] == base_record(load_backbone("glyph", reinit=["layer4"]))["digest"]


def test_a_slim_checkpoint_of_a_head_on_resnet50_is_small(tmp_path):
    """Under 1 MB without the optimizer's state, under 3 MB with it: 100 x 2,048 weights, and twice as much for Adam."""
    torch.manual_seed(0)
    torch.save({name: tensor for name, tensor in load_backbone("resnet50", weights=None).state_dict().items()}, tmp_path / "resnet50.pth")
    backbone = load_backbone("resnet50", weights=tmp_path / "resnet50.pth", input_spec={"size": 32})
    facts = {"class_names": [str(i) for i in range(100)], "multilabel": False, "affine": False}
    record = {**record_of(backbone, {}, {"_target_": "ftlit.models.heads.LinearHead"}, **facts), "base": base_record(backbone)}
    model = FineTuner(
        backbone,
        LinearHead(2048, 100),
        num_classes=100,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        record=record,
        slim=True,
    )
    data = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4)), 2)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[StagedFinetuning(head_only(backbone.layers_with_parameters))], **QUIET)
    trainer.fit(model, data)
    for name, weights_only, most in (("slim", True, 1_000_000), ("all", False, 3_000_000)):
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt", weights_only=weights_only)
        assert (tmp_path / f"{name}.ckpt").stat().st_size < most
    network = load(tmp_path / "slim.ckpt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network.logits(images), model.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("backbone.weights=null", "checkpoint=slim"), "these weights are random: use checkpoint=full"),
        (("checkpoint=slm",), "checkpoint=slm: give auto, full or slim"),
    ],
)
def test_a_run_without_base_weights_or_a_misspelt_option_is_a_one_line_error(tmp_path, given, message):
    done = train(tmp_path, *given)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_custom_backbone_cannot_be_slim():
    backbone = ftlit.Backbone({"one": nn.Linear(2, 2)}, ftlit.InputSpec(8))
    with pytest.raises(UserError, match="not part of ftlit"):
        base_record(backbone)
