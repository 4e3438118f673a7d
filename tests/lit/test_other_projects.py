"""Parts of ftlit in other projects: LightningModules that are not written for it, and a Hydra project that uses its config groups."""

import hashlib
import os
import sys
from csv import DictReader
from functools import partial
from math import cos, nan, pi
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
import warm
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from paths import ROOT, python_path
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from ftlit import Rates, Schedule, Stage, StagedFinetuning, Until, build_optimizer
from ftlit.finetuning.lr_schedule import cosine

pytestmark = pytest.mark.e2e

PACKAGE = """
from torch import nn
from ftlit import Backbone, InputSpec, WeightsOrigin

def mynet(width):
    layers = {"low": nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU()), "high": nn.Conv2d(width, width, 3)}
    return Backbone(layers, InputSpec(size=32), origin=WeightsOrigin("custom", "weights of mynet"))

class MyHead(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.logits = nn.Linear(in_features, num_classes)

    def forward(self, features):
        return self.logits(features)
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
def other_project(tmp_path):
    (tmp_path / "conf/backbone").mkdir(parents=True)
    (tmp_path / "conf/backbone/mynet.yaml").write_text("_target_: my_pkg.mynet\nwidth: 8\n")
    (tmp_path / "conf/config.yaml").write_text(CONFIG)
    (tmp_path / "my_pkg.py").write_text(PACKAGE)
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def run(folder, *command):
    env = {**os.environ, "PYTHONPATH": python_path(folder)}
    done = warm.run([sys.executable, *map(str, command)], cwd=folder, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_hydra_project_uses_the_config_groups(other_project):
    output = run(other_project, "app.py", "head.hidden=[5]")
    assert "('low', 'high')" in output and "'head + high and above', 'all'" in output and "out_features=5" in output


def test_a_backbone_and_a_head_of_another_project_train_with_train_py(other_project):
    options = ["--config-dir", other_project / "conf", "backbone=mynet", "head._target_=my_pkg.MyHead"]
    output = run(other_project, ROOT / "train.py", *options, "debug=fast", "trainer=cpu", "trainer.max_epochs=3")
    assert "weights of mynet" in output and "(MyHead)" in output and "trained in" in output
    assert "head._target_=my_pkg.MyHead" in output and "head=linear" not in output.partition("backbone  ")[0]


STEPS, EPOCHS, LAST = 3, 8, 6  # steps an epoch; epochs; when the last stage begins


class OtherModule(pl.LightningModule):
    """Base of two modules with a loss and a metric of their own, and with optimizer and rates from ftlit."""

    scales: ClassVar[dict[str, float]]  # on the learning rate, by pattern
    stages: tuple[list[str], ...]  # what each stage trains; the last one freezes layers again
    changes: tuple[tuple[str, ...], ...]  # prefixes of the names of tensors that change in each stage
    threshold: float  # the third stage begins when the loss reaches it

    def on_train_epoch_start(self):
        self.train()  # as many modules do, also on frozen layers

    def training_step(self, batch, batch_idx):
        *inputs, targets = batch
        return cross_entropy(self(*inputs), targets)

    def validation_step(self, batch, batch_idx):
        *inputs, targets = batch
        self.log("my_loss", cross_entropy(self(*inputs), targets))

    def configure_optimizers(self):
        sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.05)
        optimizer = build_optimizer(self, sgd, list(self.scales.items()))
        epochs = self.trainer.max_epochs
        return [optimizer], [Rates(optimizer, cosine, steps=epochs * STEPS, epochs=epochs).config]


class Transfer(OtherModule):
    """Transfer learning as in Lightning's documentation: the children of a ResNet in sequence, without the last one."""

    scales: ClassVar = {"classifier": 1.0, "feature_extractor.7": 0.5, "*": 0.1}
    stages = (["classifier"], ["classifier", "feature_extractor.7"], ["*"], ["classifier"])
    changes = (("classifier",), ("classifier", "feature_extractor.7"), ("",), ("classifier",))
    threshold = 0.45

    def __init__(self):
        super().__init__()
        *children, fc = resnet18(weights=None).children()
        self.feature_extractor = nn.Sequential(*children)
        self.classifier = nn.Linear(fc.in_features, 3)

    def forward(self, images):
        return self.classifier(self.feature_extractor(images).flatten(1))

    @staticmethod
    def example(i):
        return torch.randn(3, 32, 32) + i % 3, i % 3


class Tower(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.words, self.norm, self.inner = words, nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, tokens):
        return self.inner(self.norm(self.words(tokens).mean(dim=1)))


class TwoTowers(OtherModule):
    """Two encoders that share the embedding of words, and a head on both. A stage that trains either tower trains the embedding."""

    scales: ClassVar = {"head": 1.0, "query": 0.5, "answer": 0.1}  # the embedding belongs to the first tower, by its first name
    stages = (["head"], ["head", "answer"], ["*"], ["query"])
    changes = (("head",), ("head", "answer", "query.words"), ("",), ("query", "answer.words"))
    threshold = 1.03

    def __init__(self):
        super().__init__()
        words = nn.Embedding(12, 6)
        self.query, self.answer = Tower(words), Tower(words)
        self.head = nn.Linear(12, 3)

    def forward(self, queries, answers):
        return self.head(torch.cat([self.query(queries), self.answer(answers)], dim=1))

    @staticmethod
    def example(i):
        return torch.randint(4, (5,)) + 4 * (i % 3), torch.randint(12, (5,)), i % 3


class Diary(pl.Callback):
    """Record stage, tensors and metric at the end of each epoch."""

    def __init__(self):
        self.stages, self.states, self.values = [], [], []

    def on_train_epoch_end(self, trainer, model):
        staging = next(callback for callback in trainer.callbacks if isinstance(callback, StagedFinetuning))
        self.stages.append(staging.index)
        self.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        self.values.append(float(trainer.callback_metrics.get("my_loss", nan)))


def train(kind, folder, *, ckpt_path=None):
    torch.manual_seed(0)
    model, diary = kind(), Diary()
    data = DataLoader([model.example(i) for i in range(6 * STEPS)], batch_size=6)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head, upper, everything, last = kind.stages
    until = Until("my_loss", mode="min", threshold=kind.threshold)
    stages = [Stage(head), Stage(upper, epoch=1), Stage(everything, epoch=LAST - 1, until=until), Stage(last, epoch=LAST)]
    kept = -1 if ckpt_path is None else 0  # nothing is resumed from a resumed run
    at_epoch_end = ModelCheckpoint(folder, "{epoch}", save_top_k=kept)
    after_validation = ModelCheckpoint(folder, "validated {epoch}", monitor="my_loss", save_top_k=kept, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[StagedFinetuning(Schedule(stages)), LearningRateMonitor("step"), diary, at_epoch_end, after_validation],
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        **{"enable_progress_bar": False, "enable_model_summary": False},
    )
    trainer.fit(model, data, data, ckpt_path=ckpt_path)
    return [start, *diary.states], diary


@pytest.fixture(scope="module", params=[Transfer, TwoTowers])
def whole(request, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on maps of a few pixels several threads are slower
    folder = tmp_path_factory.mktemp("other_project")
    yield request.param, *train(request.param, folder), folder
    torch.set_num_threads(threads)


def digest(tensors):
    return hashlib.sha256(b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def test_in_a_users_module_each_stage_changes_exactly_its_parameters_and_statistics(whole):
    kind, states, diary, _ = whole
    for before, after, stage in zip(states, states[1:], diary.stages, strict=False):
        changed = {name for name in before if name.startswith(kind.changes[stage])}
        assert {name for name in before if not torch.equal(before[name], after[name])} == changed
        unchanged = before.keys() - changed
        assert digest({name: before[name] for name in unchanged}) == digest({name: after[name] for name in unchanged})


def test_in_a_users_module_a_stage_waits_for_a_metric_of_the_module(whole):
    kind, _, diary, _ = whole
    reached = next(epoch for epoch, value in enumerate(diary.values) if epoch >= 1 and value <= kind.threshold)
    assert 1 < reached + 1 < LAST - 1  # the metric begins the stage, neither at once nor at the latest epoch
    assert diary.stages == [0] + [1] * reached + [2] * (LAST - reached - 1) + [3] * (EPOCHS - LAST)


def test_in_a_users_module_rates_keep_their_ratios_and_are_logged_by_name(whole):
    kind, _, _, folder = whole
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in DictReader(file) if row["lr-SGD/" + next(iter(kind.scales))]]
    assert {name for name in rows[0] if name.startswith("lr-")} == {f"lr-SGD/{name}" for name in kind.scales}
    rates = [[float(row[f"lr-SGD/{name}"]) for name in kind.scales] for row in rows]
    expected = [0.02 * (1 + cos(pi * step / (EPOCHS * STEPS))) / 2 for step in range(EPOCHS * STEPS)]
    assert rates == [pytest.approx([rate * scale for scale in kind.scales.values()]) for rate in expected]


@pytest.mark.parametrize("checkpoint", ["epoch=0", "epoch=2", "epoch=3", "epoch=5", "validated epoch=2"])
def test_in_a_users_module_a_run_resumed_from_its_checkpoint_ends_with_the_same_bits(whole, tmp_path, checkpoint):
    kind, states, diary, folder = whole
    ends, resumed = train(kind, tmp_path, ckpt_path=folder / f"{checkpoint}.ckpt")
    assert resumed.stages == diary.stages[-len(resumed.stages) :]
    assert {name for name, tensor in ends[-1].items() if not torch.equal(tensor, states[-1][name])} == set()
