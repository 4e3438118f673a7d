"""Classes of the user in modules of the current folder, by `ftlit` as by `python train.py` from any folder."""

import os
import sys

import pytest
import warm
from PIL import Image
from train_command import FAST, train

from ftlit.cli import search_current_folder

HEAD = """
from ftlit.models.heads import LinearHead

class Head(LinearHead):
    pass
"""


def ftlit(folder, *words):
    return warm.run([sys.executable, "-m", "ftlit.cli.main", *words], cwd=folder, env=dict(os.environ))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD)
    Image.new("L", (20, 30), 200).save(tmp_path / "digit.png")
    return tmp_path


OWN = ("head._target_=mine.Head", "scenario=large_similar", "hydra.run.dir=run", "report=false", *FAST)


@pytest.mark.e2e
def test_ftlit_trains_and_with_trust_predicts_and_exports_a_head_of_the_current_folder(folder):
    done = ftlit(folder, "train", *OWN)
    assert done.returncode == 0, done.stderr
    refused = ftlit(folder, "predict", "run", "digit.png")
    assert refused.returncode == 2 and "--trust" in refused.stderr
    for words in (("predict", "run", "digit.png"), ("export", "run", "--to", "torch")):
        done = ftlit(folder, *words, "--trust")
        assert done.returncode == 0, done.stderr


@pytest.mark.e2e
def test_train_py_of_another_folder_finds_it_too(folder):
    assert train(folder, *OWN).returncode == 0


def test_installed_modules_go_first_and_the_folder_is_added_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["first"])
    search_current_folder()
    search_current_folder()
    assert sys.path == ["first", str(tmp_path)]
