"""Loggers stand beside metrics.csv, several at once; one whose package is missing is one line with the extra that brings it."""

import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from ftlit.errors import UserError
from ftlit.recipes.limits import LOGGERS, check_installed


@pytest.fixture(autouse=True)
def hydra():
    GlobalHydra.instance().clear()
    with initialize_config_module("ftlit.conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def loggers(choice, folder):
    return compose("train", overrides=[f"logger={choice}", f"paths.run={folder}"]).logger


@pytest.mark.parametrize("choice", ["csv", "tensorboard", "[csv,tensorboard]", "[tensorboard,wandb,mlflow]"])
def test_csv_is_always_there_and_each_takes_what_conf_gives_it(choice, tmp_path):
    chosen = loggers(choice, tmp_path)
    assert set(chosen) == {"csv", *choice.strip("[]").split(",")}
    for node in chosen.values():
        inspect.signature(get_object(node._target_)).bind(**{str(key): node[key] for key in node if key != "_target_"})


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_holds_what_is_logged_in_the_folder_of_the_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = instantiate(loggers("tensorboard", tmp_path).tensorboard)
    for step in range(3):
        logger.log_metrics({"val/accuracy": step / 2, "lr-AdamW/head": 0.1}, step)
    logger.finalize("success")
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.value for point in curves.Scalars("val/accuracy")] == [0.0, 0.5, 1.0]
    assert {"val/accuracy", "lr-AdamW/head"} <= set(curves.Tags()["scalars"])


def test_a_missing_package_is_one_line_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "TensorBoardLogger", "no_such_package")
    with pytest.raises(UserError, match=r'^logger\.tensorboard needs the package no_such_package: pip install "ftlit\[no_such_package\]"$'):
        check_installed(loggers("tensorboard", tmp_path))
    check_installed(loggers("csv", tmp_path))


def test_every_extra_of_a_logger_is_one_of_the_project():
    told = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in told for extra in LOGGERS.values())
    assert OmegaConf.is_config(compose("train").logger.csv)
