"""Parts of ftlit in projects that know nothing of it. (A stranger's LightningModule runs in test_readme.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGE = """
from torch import nn
from ftlit import Backbone, InputSpec

def mynet(width):
    layers = {"low": nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU()), "high": nn.Conv2d(width, width, 3)}
    return Backbone(layers, InputSpec(size=32), origin="a stranger")

class MyHead(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.logits = nn.Linear(in_features, num_classes)

    def forward(self, codes):
        return self.logits(codes)
"""
APP = """
import hydra
from hydra.utils import instantiate

@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    backbone = instantiate(cfg.backbone)
    schedule = instantiate(cfg.schedule, layers=backbone.cuts)
    head = instantiate(cfg.head, in_features=backbone.num_features, num_classes=7)
    print(backbone.cuts, [stage.name for stage in schedule.stages], head)

main()
"""
CONFIG = """
defaults: [{backbone: mynet}, {schedule: top_down}, {head: mlp}, _self_]
hydra: {searchpath: ["pkg://ftlit.conf"], run: {dir: out}}
"""


@pytest.fixture
def stranger(tmp_path):
    (tmp_path / "conf/backbone").mkdir(parents=True)
    (tmp_path / "conf/backbone/mynet.yaml").write_text("_target_: my_pkg.mynet\nwidth: 8\n")
    (tmp_path / "conf/config.yaml").write_text(CONFIG)
    (tmp_path / "my_pkg.py").write_text(PACKAGE)
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def run(folder, *command):
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_strangers_hydra_project_picks_our_groups(stranger):
    said = run(stranger, "app.py", "head.hidden=[5]")
    assert "('low', 'high')" in said and "'head + high and above', 'all'" in said and "out_features=5" in said


def test_a_strangers_backbone_and_head_train_here(stranger):
    own = ["--config-dir", stranger / "conf", "backbone=mynet", "head._target_=my_pkg.MyHead"]
    said = run(stranger, ROOT / "train.py", *own, "debug=fast", "trainer=cpu", "trainer.max_epochs=3")
    assert "weights: a stranger" in said and "MyHead" in said and "trained in" in said
