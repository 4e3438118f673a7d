"""docs/extending.md: each example is a module and an option that follow the contract of their group."""

import os
import re
import sys

import numpy as np
import pytest
import torch
import warm
from omegaconf import OmegaConf
from paths import ROOT, python_path
from PIL import Image
from torch import nn

from ftlit import Backbone, FineTuner, ImageData, InputSpec, Schedule, fit_probe, load
from ftlit.probes.probe_kinds import PROBE_KINDS
from ftlit.recipes.config.hydra_internals import instantiate

PAGE = (ROOT / "docs/extending.md").read_text()
MODULES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
YAML = re.findall(r"^```yaml\n# (my_conf/(\w+)/(\w+)\.yaml)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
OPTIONS = {group: text for _, group, _, text in YAML}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that builds the option of a group with the arguments of a recipe; the examples are removed afterwards."""
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(PROBE_KINDS, "_parts", dict(PROBE_KINDS))

    def built(group, **arguments):
        option = OmegaConf.create({"seed": 0, group: OmegaConf.create(OPTIONS[group])})[group]  # beside the values that it may name
        option.pop("defaults", None)  # for Hydra only: the option that this one extends
        return instantiate(option, **arguments)

    yield built
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_each_part_has_a_short_example():
    assert set(OPTIONS) == {"backbone", "head", "probe", "schedule", "data", "loss"} and len(MODULES) == len(OPTIONS) + 1
    assert all(len([line for line in text.splitlines() if line.strip()]) <= 20 for text in MODULES.values())


def test_the_examples_train_together(make):
    backbone, data = make("backbone"), make("data", input_spec=InputSpec(size=32))
    head = make("head", in_features=backbone.num_features, num_classes=data.num_classes)
    schedule, loss = make("schedule", layers=backbone.cuts), make("loss", counts=list(data.counts["train"].values()))
    assert isinstance(backbone, Backbone) and isinstance(data, ImageData) and isinstance(schedule, Schedule) and isinstance(loss, nn.Module)
    assert schedule.stages[1].train == ("head", "backbone.middle", "backbone.top")
    model = FineTuner(backbone, head, num_classes=2, optimizer=torch.optim.SGD, lr_scale=schedule.lr_scale, loss=loss)
    images, targets = next(iter(data.train_dataloader()))
    loss(model(images), targets).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_example_head_learns_in_ten_steps_at_the_learning_rate_of_a_scenario(make):
    torch.manual_seed(0)
    head, labels = make("head", in_features=128, num_classes=10), torch.arange(50) % 10
    features = torch.rand(10, 128)[labels] + 0.1 * torch.randn(50, 128)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    assert (head(features).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_the_example_probe_separates_separable_classes(make, classes):
    probes = make("probe")
    labels = torch.arange(30) % classes
    features = nn.functional.one_hot(labels, 4).double() * 5 + torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert probes.kinds == ["nearest_mean"] and list(PROBE_KINDS)[3] == "nearest_mean"
    assert fit_probe(features, labels, kind="nearest_mean", l2=1.0).accuracy(features, labels) == 1.0


def photos(folder, number):
    for i in range(number):
        values = np.random.RandomState(i).randint(0, 80, (32, 32, 3)).astype(np.uint8)
        values[..., i % 2] += 120
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / f"{('ants', 'bees')[i % 2]}_{i}.png")


@pytest.mark.e2e
@pytest.mark.parametrize("command", re.findall(r"^PYTHONPATH=\. (python train\.py \w+\._target_=.*)", PAGE, flags=re.MULTILINE))
def test_each_part_runs_from_the_command_line_and_data_of_datasets_predict_image_files(command, tmp_path):
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    photos(tmp_path / "photos/train", 20)
    photos(tmp_path / "photos/test", 6)
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path), "FTLIT_CACHE": str(tmp_path / "store")}
    scenario = [] if "scenario=" in command else ["scenario=small_similar"]
    short = [*scenario, "trainer.max_epochs=3", "trainer=cpu", "report=false", "hydra.run.dir=run"]
    done = warm.run([sys.executable, ROOT / "train.py", *command.split()[2:], *short], cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    if "data._target_" in command:
        files = sorted((tmp_path / "photos/test").iterdir())
        assert [prediction.label for prediction in load(tmp_path / "run")(files)] == [file.name.partition("_")[0] for file in files]


@pytest.mark.e2e
@pytest.mark.parametrize("recipe", ["finetune", "probe"])
def test_a_command_runs_with_all_options_of_the_page(tmp_path, recipe):
    for name, text in [*MODULES.items(), *((path, text) for path, _, _, text in YAML)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    options = [f"{group}={option}" for _, group, option, _ in YAML]
    scenario = ("scenario=large_similar", "trainer.max_epochs=3", "trainer=cpu", "report=false")
    shared = (
        "data.per_class=9",
        *(["probe.repeats=2", "probe.l2=[1.0]", "probe.cuts=[top]"] if recipe == "probe" else []),
    )  # passed on to ImageData
    inherited = ("probe.seed=1",)  # a value of softmax: the probe has it through its `defaults` line only
    command = [sys.executable, ROOT / "train.py", "--config-dir", "my_conf", *options, f"recipe={recipe}", *scenario, *shared, *inherited]
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path), "FTLIT_CACHE": str(tmp_path / "store")}
    done = warm.run([*command, "hydra.run.dir=run"], cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "run/result.json").is_file()
