"""Loggers are used beside metrics.csv, several at once; a missing package is a one-line error with the extra that installs it."""

import csv
import inspect
import os
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import warm
from hydra import compose
from hydra.utils import get_object
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from paths import ROOT

from ftlit.errors import UserError
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.run.loggers import PACKAGES, begin_loggers, build_loggers

pytestmark = pytest.mark.e2e

STAGED = ("scenario=large_similar", "schedule=top_down", "trainer.max_epochs=6", "report=false")


@pytest.fixture(autouse=True)
def hydra():
    with fresh_hydra():
        yield


def loggers(choice, folder):
    return compose("train", overrides=[f"logger={choice}", f"paths.run={folder}"]).logger


@pytest.mark.parametrize("choice", ["csv", "tensorboard", "[csv,tensorboard]", "[tensorboard,wandb,mlflow]"])
def test_the_csv_logger_is_always_chosen_and_each_logger_binds_to_its_config(choice, tmp_path):
    chosen = loggers(choice, tmp_path)
    assert set(chosen) == {"csv", *choice.strip("[]").split(",")}
    for node in chosen.values():
        inspect.signature(get_object(node._target_)).bind(**{str(key): node[key] for key in node if key != "_target_"})


def train_with_tensorboard(folder, trainer):
    """A run in `folder / "run"`."""
    command = [sys.executable, str(ROOT / "train.py"), f"trainer={trainer}", "logger=tensorboard", "data.per_class=5", "head=linear"]
    environment = {**os.environ, "FTLIT_CACHE": str(folder / "store")}
    done = warm.run([*command, *STAGED, "hydra.run.dir=run"], cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_the_values_of_metrics_csv_in_the_folder_of_the_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_with_tensorboard(tmp_path, "cpu")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    held = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for curve in ("val/accuracy", "train/loss", "lr-AdamW/head", "lr-AdamW/backbone.layer4"):
        curve_rows = [row for row in rows if row.get(curve) and (row["epoch"] or curve.startswith("lr-"))]  # not that of the result
        logged = {int(row["step"]): float(row[curve]) for row in curve_rows}
        assert len(logged) > 1
        assert {point.step: point.value for point in held.Scalars(curve)} == pytest.approx(logged)
    (result,) = held.Scalars("result/val/accuracy")  # no seventh point of val/accuracy
    assert len(held.Scalars("val/accuracy")) == 6 == len(held.Scalars("val/loss"))
    assert [result.value] == pytest.approx([float(row["val/accuracy"]) for row in rows if row["val/accuracy"] and not row["epoch"]])
    assert len(held.Scalars("speed/examples_per_second")) == 6 and not any(name.startswith("speed/") for name in rows[0])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_one_of_two_processes_writes_the_memory_of_both(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_with_tensorboard(tmp_path, "ddp_cpu")
    written = tmp_path / "run" / "tensorboard"
    assert len({file.name.rsplit(".", 2)[1] for file in written.glob("events*")}) == 1  # the number of the process
    held = EventAccumulator(str(written)).Reload()
    assert all(len(held.Scalars(name)) >= 6 for name in ("speed/memory_gib/0", "speed/memory_gib/1", "speed/data_wait", "val/accuracy"))


def test_a_missing_package_is_a_one_line_error_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "TensorBoardLogger", "no_such_package")
    with pytest.raises(UserError, match=r'^logger\.tensorboard needs the package no_such_package: pip install "ftlit\[no_such_package\]"$'):
        build_loggers(loggers("tensorboard", tmp_path))
    assert len(build_loggers(loggers("csv", tmp_path))) == 1


class Unreachable(Logger):
    """A logger whose server does not answer."""

    def __init__(self, port: int = 0) -> None:
        if port < 0:
            raise RuntimeError(f"no port {port}")

    name = version = "unreachable"

    @property
    def experiment(self):
        raise ConnectionError("no answer\nfrom the server")

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...


def test_a_logger_that_cannot_connect_is_a_one_line_error_before_training():
    node = {"custom": {"_target_": f"{__name__}.Unreachable"}}
    with pytest.raises(UserError, match=r"^Unreachable cannot connect: no answer"):
        begin_loggers(build_loggers(OmegaConf.create(node)), again=False)
    node["custom"]["port"] = -1
    with pytest.raises(UserError, match=r"^logger\.custom cannot be built: RuntimeError: no port -1$"):
        build_loggers(OmegaConf.create(node))


@pytest.mark.parametrize("again", [True, False])
def test_a_run_that_begins_again_replaces_its_own_rows_without_a_warning(again, tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1.0\n")
    logger = MetricsFile(tmp_path)
    begin_loggers([logger], again=again)
    logger.log_metrics({"loss": 2.0}, 0)
    with nullcontext() if again else pytest.warns(UserWarning, match="replacing the rows of an earlier run"):
        logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["loss,step", "2.0,0"]


def test_every_package_of_a_logger_is_an_extra_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in PACKAGES.values())
    assert OmegaConf.is_config(compose("train").logger.csv)
