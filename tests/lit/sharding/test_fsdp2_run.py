"""`trainer=fsdp2` from the command line: a run that is stopped and resumed ends with the bits of one that never stopped."""

import os
import sys

import pytest
import torch
import warm
from paths import ROOT, python_path

from ftlit import load
from ftlit.lit.sharding.consolidate import consolidate
from ftlit.lit.sharding.shards import read_shards

pytestmark = [pytest.mark.e2e, pytest.mark.ddp, pytest.mark.slow]

STOPPING = """
import os, signal
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 10 and trainer.is_global_zero and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGTERM)
"""
SHARDED = ("trainer=fsdp2", "trainer.accelerator=cpu", "trainer.devices=2")
SHORT = ("scenario=large_similar", "head=linear", "schedule.epoch=1", "trainer.max_epochs=2", "data.per_class=20", "report=false")


def test_a_stopped_run_goes_on_to_the_bit_and_its_shards_can_be_consolidated(tmp_path):
    (tmp_path / "stopping.py").write_text(STOPPING)
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path)}

    def train(*words):
        command = [sys.executable, str(ROOT / "train.py"), *SHARDED, *SHORT, "data.batch_size=16", "paths.cache=cache", *words]
        return warm.run(command, cwd=tmp_path, env=environment, timeout=400)

    whole = train("hydra.run.dir=whole")
    assert whole.returncode == 0 and "memory" in whole.stdout and "fsdp2 reduce-scatters" in whole.stdout
    assert "reads features at layer4" in whole.stdout  # the head's stage: extracted before sharding
    words = ("hydra.run.dir=run", "+callbacks.stop._target_=stopping.Stop")
    stopped = train(*words)
    assert "the last checkpoint is saved" in stopped.stdout + stopped.stderr
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert load(consolidate(last)).class_names == load(tmp_path / "whole").class_names
    resumed = train(*words, "resume=true")
    assert resumed.returncode == 0 and "after 11 optimizer steps" in resumed.stdout
    assert "_target_: ftlit.lit.sharding.fsdp2.Fsdp2Strategy" in (tmp_path / "run" / "config.yaml").read_text()
    alone = train(*words, "resume=true", "trainer.devices=1")
    assert alone.returncode == 2 and "1 process cannot resume this run, which began with 2: give 2 processes" in alone.stderr
    for rank in (0, 1):
        own, other = (read_shards(tmp_path / run / "checkpoints" / "last.ckpt", rank, 2) for run in ("run", "whole"))
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
