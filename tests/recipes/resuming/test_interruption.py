"""The line of an interrupted program says how to go on."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from ftlit.recipes.resuming.interruption import print_interrupted


@pytest.mark.parametrize(
    ("cache", "state"), [({"folder": "/features"}, "features that are stored stay in the cache"), ({}, "there is nothing to resume")]
)
def test_interrupted_advice_names_the_same_command_and_the_stored_features(tmp_path, capsys, cache, state):
    print_interrupted(OmegaConf.create({"recipe": "advise", "paths": {"run": str(tmp_path)}, "cache": cache}))
    line = capsys.readouterr().out
    assert line.startswith(f"interrupted; {state}") and line.endswith("To start again: give the same command\n")


def test_an_interruption_before_pytorch_is_loaded_does_not_load_it():
    program = """
import sys, pytest
from omegaconf import OmegaConf
from ftlit.cli import train
cfg = OmegaConf.create({"recipe": "advise", "paths": {"run": "run"}})
with pytest.raises(SystemExit):
    train.exit_for_interruption(cfg)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
