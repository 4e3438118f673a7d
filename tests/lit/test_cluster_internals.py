"""Contract: Lightning still does this, under SLURM and between processes (ftlit.lit.cluster_internals)."""

import signal
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning_net import At, Net, fit, numbers, trainer

from ftlit.lit import cluster_internals as internals

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders, logging and modes
SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}


@pytest.fixture
def slurm(monkeypatch):
    for pair in SLURM.items():
        monkeypatch.setenv(*pair)


@pytest.mark.parametrize("own", [True, False])
def test_the_trainer_takes_both_signals_under_slurm_unless_it_leaves_them(slurm, own):
    seen = []
    callback = At("on_train_batch_start", lambda _: seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]))
    running = trainer(callback, max_epochs=1)
    if own:
        internals.leave_signals(running)
    running.fit(Net(), numbers())
    assert (seen[0] == [signal.SIG_DFL] * 2) == own and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("own", [True, False])
def test_the_trainer_goes_on_from_any_checkpoint_of_slurm_unless_it_resumes_only_from_the_given_one(slurm, tmp_path, own):
    first, _ = fit(max_epochs=1, default_root_dir=tmp_path)
    first.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    second = trainer(max_epochs=2, default_root_dir=tmp_path)
    if own:
        internals.resume_only_from_given(second)
    epochs = []
    second.callbacks.append(At("on_train_epoch_start", lambda running: epochs.append(running.current_epoch)))
    second.fit(Net(), numbers())
    assert epochs == ([0, 1] if own else [1])
    third = trainer(max_epochs=2, default_root_dir=tmp_path)
    internals.resume_only_from_given(third)
    third.fit(Net(), numbers(), ckpt_path=tmp_path / "hpc_ckpt_1.ckpt")
    assert third.current_epoch == 2 and third.global_step == second.global_step


def test_waiting_is_limited_unless_the_strategy_has_a_limit_of_its_own():
    for strategy, minutes in (("ddp", 3), (DDPStrategy(timeout=timedelta(minutes=7)), 7)):
        running = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
        internals.limit_waiting(running, 3)
        assert internals.waiting_minutes(running) == minutes
    alone = trainer()
    internals.limit_waiting(alone, 3)
    assert not hasattr(alone.strategy, "_timeout")


def test_the_processes_of_a_group_share_a_store(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    internals.default_store().set("name", "value")
    assert internals.default_store().check(["name"]) and internals.default_store().get("name") == b"value"
