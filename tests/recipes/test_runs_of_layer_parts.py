"""Runs that train biases, norms or LoRA: a small checkpoint, a plain network when it is loaded."""

import os
import sys

import pytest
import torch
import warm
from composed_configs import error_text
from paths import ROOT

from ftlit import UserError, load
from ftlit.export.hand_over import export_run
from ftlit.recipes.config.hydra_internals import fresh_hydra

pytestmark = pytest.mark.e2e

COMMAND = (
    "trainer=cpu", "data.per_class=5", "data.num_workers=0", "scenario=large_similar", "head=linear", "schedule=lora", "schedule.rank=2",
    "schedule.epoch=1", "report=false", "cache=none",
)  # fmt: skip


def train(folder, *arguments):
    done = warm.run([sys.executable, str(ROOT / "train.py"), *COMMAND, *arguments], cwd=folder, env=dict(os.environ), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    printed = train(folder, "trainer.max_epochs=3", "hydra.run.dir=whole")
    (folder / "printed").write_text(printed)
    return folder


def test_the_checkpoint_holds_the_head_and_the_matrices_only(folder):
    state = torch.load(folder / "whole/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert {name.rpartition(".")[2] for name in state if name.startswith("backbone.")} == {"a", "b"}
    assert "head + LoRA" in (folder / "printed").read_text() and "checkpoint=slim" in (folder / "printed").read_text()


def test_the_loaded_network_has_plain_weights_and_its_export_agrees(folder, tmp_path):
    network = load(folder / "whole")
    assert not any("parametrizations" in name for name in network.backbone.state_dict())
    exported, _ = export_run(folder / "whole", "torch", tmp_path / "net.pt2")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.head(network.backbone.pool(network.backbone(2 * images - 1)))  # it normalises with mean and std .5
        assert torch.allclose(torch.export.load(exported).module()(images), expected, atol=1e-4)


def test_lora_of_the_head_is_a_line(monkeypatch):
    with fresh_hydra():
        words = ("head=linear", "schedule=explicit", "schedule.stages=[{train:[{head:lora}]}]", "data.per_class=4", "trainer=cpu")
        message = error_text(monkeypatch, *words)
    assert (
        message == "`train` has head (lora), but only layers of the backbone get LoRA matrices: give head without lora, to train all of it"
    )


@pytest.mark.parametrize("record", [{"rank": "8", "alpha": None, "targets": []}, {"rank": 8}, 3])
def test_a_damaged_record_is_an_error(folder, tmp_path, record):
    checkpoint = torch.load(folder / "whole/checkpoints/best.ckpt", weights_only=True)
    checkpoint["ftlit"]["lora"] = record
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError, match="its field lora needs a rank, an alpha and names of weights"):
        load(tmp_path / "damaged.ckpt")
