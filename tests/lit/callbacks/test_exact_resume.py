"""Invariant 5: stop anywhere, resume, get the bits of the run that never stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import cache, partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import warm
from lanes import nightly
from lightning.pytorch.callbacks import LearningRateMonitor
from paths import ROOT, python_path
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader

from ftlit import Backbone, FeatureData, FineTuner, InputSpec, Rates, Schedule, Stage, StagedFinetuning, Until, UserError
from ftlit.data.dataset import Collection, Examples
from ftlit.finetuning.lr_schedule import any_curve, constant, cosine, linear, one_cycle, plateau
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.resumed_checkpoint import continuing
from ftlit.models.heads import MLPHead

pytestmark = pytest.mark.e2e

EPOCHS, STEPS = 5, 4  # steps an epoch
SCALES = [("head", 1.0), ("*", 0.3)]
UNTIL = Until("val/loss", "min", patience=1)
RATES = {
    "constant": partial(Rates, curve=constant),
    "cosine": partial(Rates, curve=cosine, warmup=0.2),
    "linear": partial(Rates, curve=linear, restart=True, warmup=0.2),
    "one_cycle": partial(Rates, curve=one_cycle),
    "step": partial(Rates, curve=partial(any_curve, scheduler=partial(StepLR, step_size=2)), unit="epoch"),
    "plateau": partial(Rates, curve=partial(plateau, patience=0), unit="epoch", monitor="val/loss"),
    "exponential": partial(Rates, curve=partial(any_curve, scheduler=partial(ExponentialLR, gamma=0.9))),
}


@cache
def picture(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 7).resize((12, 12)).convert("RGB")


def data(**options) -> ImageData:
    splits = {s: Examples(range(n), [(i % 3,) for i in range(n)], picture) for s, n in (("train", 15), ("val", 7), ("test", 4))}
    settings = {"batch_size": 4, "num_workers": 0, "augment": "photo", **options}
    return ImageData(Collection(splits, list("abc")), InputSpec(size=8), **settings)


def model(rates) -> FineTuner:
    torch.manual_seed(0)
    low = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
    high = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    backbone = Backbone({"low": low, "high": high}, InputSpec(size=8))
    head = MLPHead(4, 3, hidden=[8], dropout=0.3)
    optimizer = partial(torch.optim.AdamW, lr=0.02)
    return FineTuner(backbone, head, num_classes=3, optimizer=optimizer, lr_scale=SCALES, lr_scheduler=rates)


class Copies(pl.Callback):
    """Copy the folder when a step begins: the state that a killed run leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        shutil.copytree(self.folder, self.folder.with_name(f"killed{trainer.fit_loop.epoch_loop.total_batch_idx}"))


def fit(folder: Path, rates, *, resume=False, copies=False, last_stage=14, data_options=None, views=None, **settings) -> dict:
    """Train; return the final weights, optimizer, rates, metrics and stages."""
    last = folder / "last.ckpt"
    stages = [Stage(["head"]), Stage(["head", "backbone.high"], epoch=2, until=UNTIL), Stage(["*"], step=last_stage)]
    staging = StagedFinetuning(Schedule(stages, SCALES))
    best = BestCheckpoint(folder)
    callbacks = [
        staging,
        LastCheckpoint(last, every_n_steps=1),
        *([Copies(folder)] if copies else []),
        SeedEachStep(7),
        LearningRateMonitor(),
        best,
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, logger=MetricsFile(folder), log_every_n_steps=1, **quiet | settings
    )
    module = model(rates)
    source = data(**{**(data_options or {}), "views": views or 0})
    if views is not None:
        if resume:
            shutil.rmtree(folder / "store")  # pruned features are computed again with the same bits
        source = FeatureData(source, folder / "store")
    trainer.fit(module, source, ckpt_path=last if resume else None)
    return {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "rates": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "metrics": (folder / "metrics.csv").read_text(),
        "stages": (staging.index, staging.trigger.decided),
        "best": (best.best_model_score, Path(best.best_model_path).name, best.best_epoch, best.state_dict()["best_loss"]),
    }


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b


def differences(a: dict, b: dict) -> set[str]:
    return {name for name in a if not same(a[name], b[name])}


def killed(folder: Path, step: int) -> Path:
    """Return the folder of the run as a kill in this step leaves it."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(folder.with_name(f"killed{step}"), folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    return fit(folder, RATES["cosine"], copies=True), folder


def test_the_run_passes_all_stages_and_a_metric_begins_one(whole):
    end, _ = whole
    assert end["stages"] == (2, {1: 2}) and end["metrics"].count("\n") > EPOCHS * STEPS


@pytest.mark.parametrize("step", range(EPOCHS * STEPS))
def test_a_run_killed_in_any_step_and_resumed_ends_with_the_same_bits(whole, step):
    end, folder = whole
    with warnings.catch_warnings():
        for text in (
            "your dataloader is not resumable",
            "is not empty",
            "replacing the rows",
        ):  # what Lightning says of other loaders and files
            warnings.filterwarnings("error", f"(?s)(?!Checkpoint directory).*{text}")
        resumed = fit(killed(folder, step), RATES["cosine"], resume=True)
    assert differences(end, resumed) == set()


def test_a_run_that_ended_goes_on_in_further_epochs_with_all_of_their_batches(tmp_path):
    last = tmp_path / "last.ckpt"
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    for epochs, ckpt_path in ((1, None), (2, last)):
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[LastCheckpoint(last)], enable_checkpointing=False, **quiet)
        trainer.fit(model(None), data(views=0), ckpt_path=ckpt_path)
        assert trainer.global_step == epochs * STEPS


def test_that_a_loader_is_not_resumable_is_hidden_only_of_ours():
    text = "You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable."
    for loader, expected in ((data().train_dataloader(), 0), ([data().train_dataloader(), DataLoader([1])], 1), (DataLoader([1]), 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with continuing(loader):
                warnings.warn(text, stacklevel=1)
        assert len(caught) == expected


CASES = {
    "workers": {"data_options": {"num_workers": 1}},
    "mixing": {"data_options": {"mix": "both"}},
    "accumulation and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "last_stage": 7},
    "validation within the epoch": {"val_check_interval": 0.5},
    "validation every other epoch": {"check_val_every_n_epoch": 2},
    "one batch an epoch": {"limit_train_batches": 1, "last_stage": 4},
    "bf16": {"precision": "bf16-mixed"},
    "double": {"precision": "64-true"},
    "features": {"views": 0},
    "features of augmented views": {"views": 3},
}


def check(folder: Path, rates, steps, **case) -> None:
    folder.mkdir()
    end = fit(folder, rates, copies=True, **case)
    for step in steps:
        if folder.with_name(f"killed{step}").is_dir():
            assert (step, differences(end, fit(killed(folder, step), rates, resume=True, **case))) == (step, set())


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_with_the_same_bits_under_every_setting(tmp_path, name):
    if name == "one batch an epoch":
        return check(tmp_path / "run", RATES["cosine"], [0, 2, 4], **CASES[name])
    return check(tmp_path / "run", RATES["cosine"], [0, 6, 13, 16], **CASES[name])


@pytest.mark.parametrize("name", RATES)
def test_a_resumed_run_ends_with_the_same_bits_under_every_scheduler(tmp_path, name):
    check(tmp_path / "run", RATES[name], [5, 8, 14])


@pytest.mark.slow
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_with_the_same_bits_under_every_scheduler_and_setting_from_every_step(tmp_path, rates, case):
    if (rates, case) == ("plateau", "validation every other epoch"):
        pytest.skip("Lightning refuses a plateau scheduler in an epoch without its metric")
    check(tmp_path / "run", RATES[rates], range(EPOCHS * STEPS), **CASES[case])


TRAIN = [sys.executable, str(ROOT / "train.py"), "hydra.run.dir=run"]
COMMAND = [
    *(*TRAIN, "head=mlp", "head.dropout=0.3", "data.augment=photo", "data.per_class=12", "data.batch_size=16"),
    *("scenario=large_similar", "trainer.max_epochs=4", "schedule.epoch=1", "callbacks.last.every_n_steps=1", "report=false"),
    *("trainer.limit_val_batches=4", "trainer.limit_test_batches=4"),
]
SLOWLY = """
import time
from lightning.pytorch import Callback

class Slowly(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(0.05)
"""


def final_state(folder: Path) -> dict:
    """Return the last checkpoint and the results of a finished run."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    kept = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")}
    return kept | {name: (folder / name).read_text() for name in ("metrics.csv", "result.json")}


@pytest.mark.parametrize("trainer", nightly(["cpu", "ddp_cpu"], ["ddp_cpu"]))
def test_the_command_killed_by_sigkill_and_resumed_ends_with_the_same_bits(tmp_path, trainer):
    command = [*COMMAND, f"trainer={trainer}"]
    folder = tmp_path / "run"
    warm.run(command, cwd=tmp_path).check_returncode()
    end = final_state(folder)
    shutil.rmtree(folder)
    (tmp_path / "slowly.py").write_text(SLOWLY)
    slow = [*command, "+callbacks.slowly._target_=slowly.Slowly"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = warm.start(slow, cwd=tmp_path, env={**os.environ, "PYTHONPATH": python_path(tmp_path)}, **quiet)
    while not (folder / "checkpoints/best.ckpt").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)  # somewhere in the second epoch
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists()
    warm.run([*command, "resume=true"], cwd=tmp_path).check_returncode()
    assert differences(end, final_state(folder)) == set()


def test_a_checkpoint_of_another_network_is_an_error_that_names_the_difference(whole, tmp_path):
    _, folder = whole
    wide = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    backbone = Backbone({"low": wide, "high": nn.Conv2d(5, 4, 3)}, InputSpec(size=8))
    other = FineTuner(backbone, MLPHead(4, 3, hidden=[8]), num_classes=3, optimizer=partial(torch.optim.AdamW, lr=0.02), lr_scale=SCALES)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(
        UserError,
        match=r"another network, because 'backbone.low.0.weight' is \(4, 3, 3, 3\) in the checkpoint, but \(5, 3, 3, 3\) in this run",
    ):
        trainer.fit(other, data(), ckpt_path=killed(folder, 5) / "last.ckpt")


def test_a_checkpoint_of_an_older_version_is_an_error(whole):
    _, folder = whole
    last = killed(folder, 5) / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    torch.save({**checkpoint, "resuming": checkpoint.pop("exact_resume")}, last)
    with pytest.raises(UserError, match="this checkpoint is from an older version of ftlit"):
        fit(folder, RATES["cosine"], resume=True)
