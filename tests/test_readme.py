"""The README: its commands compose and bind, and its Python examples run."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from hydra import compose
from paths import ROOT
from PIL import Image
from split_sweep import sweep_jobs
from torch.utils.data import DataLoader

from ftlit.cli.train import RECIPES
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.recipes.config.overrides import complete
from ftlit.recipes.config.validate import bind

pytestmark = pytest.mark.e2e

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines() if line.startswith("python train.py")]


def test_the_first_two_commands_are_installation_and_tests():
    lines = [line for _, block in BLOCKS for line in block.splitlines()]
    assert lines[:2] == ["pip install -e . && python train.py", 'pip install -e ".[dev]" && pytest']


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_composes_and_binds(command):
    arguments = [argument for argument in complete(shlex.split(command)[2:]) if argument not in ("-m", "hydra.mode=MULTIRUN")]
    jobs = sweep_jobs(arguments)
    assert jobs
    with initialize_hydra():
        for job in jobs:
            cfg = compose("train", overrides=[*job, "paths.run=/tmp/run"], return_hydra_config=True)
            with use_hydra_config(cfg):
                bind(cfg)  # raises UserError for a name or value that no factory accepts
            assert cfg.recipe in RECIPES


def test_the_readme_has_commands():
    assert len(COMMANDS) > 10


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(next(block for language, block in BLOCKS if language == "python" and "class Mine" in block), namespace)
    model, trainer = namespace["Mine"](), namespace["trainer"]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    images = [(torch.randn(3, 32, 32), i % 10) for i in range(8)]
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model, DataLoader(images, batch_size=4))
    assert trainer.callbacks[0].stage.train == ("*",)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1)


def test_the_example_that_loads_a_trained_model_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (20, 30), 200).save("digit.png")
    process = subprocess.run(
        [sys.executable, ROOT / "train.py", "hydra.run.dir=runs/example", "debug=fast", "trainer=cpu"], capture_output=True
    )
    assert process.returncode == 0, process.stderr
    exec(next(block for language, block in BLOCKS if language == "python" and "ftlit.load" in block), {})
    assert re.match(r"\d [01]\.\d+ \[\('\d', ", capsys.readouterr().out)
