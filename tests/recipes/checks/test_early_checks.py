"""Errors that need no torch come before its import, which takes seconds, and so does the line that says what is being loaded."""

import re
import subprocess
import sys
from pkgutil import resolve_name

import pytest
from composed_configs import composed
from omegaconf import OmegaConf

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.recipes.checks.early_checks import PATHS, check_early
from ftlit.recipes.config.hydra_internals import fresh_hydra

PROGRAM = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "lightning"):
            print("torch is imported", flush=True)
            sys.exit(0)

sys.meta_path.insert(0, NoTorch())
sys.argv[0] = "train.py"
from ftlit.cli.train import main
main()
"""


def run(folder, *words):
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=folder, capture_output=True, text=True)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data=folder data.root=phots", "did you mean 'photos'"),
        ("data=csv data.csv=tabel.csv", "did you mean 'table.csv'"),
        ("data=folder", "data.root has no value: give data.root=..."),
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("head=linaer", "did you mean 'linear'"),
        ("+sede=1", "did you mean 'seed'"),
        ("optimizer.lr=-1", "optimizer.lr=-1: give a number above 0 and at most 1000"),
        ("recipe=prob", "did you mean 'probe'"),
        ("backbone.among=[resnet18,efficientnet_lite]", "no backbone 'efficientnet_lite': did you mean 'efficientnet_lite0'?"),
        ("backbone.among=[{backbone:resnet81,cut:layer3}] recipe=advise", "no backbone 'resnet81': did you mean 'resnet18'?"),
    ],
)
def test_an_error_comes_before_torch(tmp_path, words, message):
    (tmp_path / "photos").mkdir()
    (tmp_path / "table.csv").touch()
    done = run(tmp_path, *words.split())
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.e2e
def test_a_line_says_what_is_loaded_before_torch_is_and_further_processes_are_silent(tmp_path, monkeypatch):
    words = ("backbone=resnet18", "data=torchvision", "data.name=CIFAR10")
    assert (
        run(tmp_path, *words).stdout == "loading   PyTorch and Lightning, then backbone=resnet18 and data=torchvision\ntorch is imported\n"
    )
    own = run(tmp_path, "backbone._target_=my_parts.net", "data._target_=my_parts.Data").stdout
    assert "then backbone._target_=my_parts.net and data._target_=my_parts.Data\n" in own
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(tmp_path, *words).stdout == "torch is imported\n"


def test_paths_that_exist_and_paths_of_other_sources_pass(tmp_path):
    (tmp_path / "table.csv").touch()
    with fresh_hydra():
        for words in (
            ["data=folder", f"data.root={tmp_path}"],
            ["data=csv", f"data.csv={tmp_path}/table.csv"],
            ["data=torchvision", "data.name=CIFAR10", "data.root=new"],
            ["data=digits"],
        ):
            check_early(composed(*words))


@pytest.mark.parametrize("name", ["backbone.weights", "cache.folder", "paths.run"])
def test_an_empty_path_is_not_the_current_folder(name):
    with fresh_hydra(), pytest.raises(UserError, match=f"^{name} is empty: give a path"):
        check_early(composed(f"{name}="))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "callbacks.best.filename=x",
            "callbacks.best.filename=x is not supported, because ftlit predict, ftlit report and resume=true read somewhere/checkpoints",
        ),
        ("callbacks.best.dirpath=x", "leave callbacks.best.dirpath out"),
        ("callbacks.last.path=last.ckpt", "callbacks.last.path=last.ckpt is not supported, because ftlit predict"),
        ("logger.csv=null", "logger.csv=null is not supported, because ftlit report and resume=true read metrics.csv"),
        ("+callbacks.own=5", "callbacks.own=5 names no class: give callbacks.own._target_=..., or callbacks.own=null for none"),
    ],
)
def test_files_of_a_run_have_one_place_and_callbacks_a_class(override, message):
    with fresh_hydra(), pytest.raises(UserError, match=re.escape(message)):
        check_early(composed(override))


def test_the_files_of_another_run_folder_pass(tmp_path):
    with fresh_hydra():
        check_early(composed(f"paths.run={tmp_path}", "callbacks.best=null", f"callbacks.last.path={tmp_path}/checkpoints/last.ckpt"))


SEPARATED, ONE, SEVERAL = ["data=csv", "data.csv=table.csv"], "loss=cross_entropy", "loss=bce"


@pytest.mark.parametrize("words", [["data=digits"], ["data=glyphs"], ["data=folder", "data.root=."], SEPARATED, [SEPARATED[0]]])
def test_a_loss_for_another_number_of_labels_is_found_where_the_config_tells_how_many_there_are(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").touch()
    several = words == [SEPARATED[0]]
    words = [*SEPARATED, "data.label_separator='|'"] if several else words
    right, wrong = (SEVERAL, ONE) if several else (ONE, SEVERAL)
    with fresh_hydra():
        check_early(composed(*words, right))
        check_early(composed(*words, wrong, "recipe=probe"))  # which has no loss
        with pytest.raises(UserError, match=f"labels?: give {right}$"):
            check_early(composed(*words, wrong))


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "photo.png").touch()
    with fresh_hydra(), pytest.raises(UserError, match=r"photo\.png is not a folder: give the path of a folder"):
        check_early(composed("data=folder", f"data.root={tmp_path}/photo.png"))


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, (names, _) in PATHS.items() for name in names[:1]])
def test_the_data_source_raises_the_same_error(path, name, tmp_path):
    values = {name: f"{tmp_path}/missing"}
    with pytest.raises(UserError) as early:
        check_early(OmegaConf.create({"data": {"_target_": path, **values}}))
    with pytest.raises(UserError) as late:
        resolve_name(path)(InputSpec(), **values)
    assert str(early.value) == str(late.value) and "missing" in str(late.value)
