"""Errors of several processes: an error that all have is printed once, and a fault of one ends all."""

import pytest
from launches import free_port, srun, torchrun

pytestmark = [pytest.mark.e2e, pytest.mark.ddp]


@pytest.fixture
def port():
    return free_port()


def failed(processes):
    """The lines on stderr of processes that end in an error of the user."""
    errors = [process.output()[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    return [line for lines in errors for line in lines]


@pytest.mark.parametrize(
    ("start_both", "words", "message"),
    [
        (torchrun, ["optimizer.lr=-1", "hydra.run.dir=run"], "ftlit: optimizer.lr=-1: give"),  # before the processes join
        (srun, ["data=folder", "data.root=nowhere", "hydra.run.dir=run"], "nowhere"),
        (torchrun, ["epochs=3"], "ftlit: there is no option 'epochs'"),  # after they have agreed on a folder
        (srun, ["epochs=3"], "ftlit: there is no option 'epochs'"),
        (torchrun, ["data=csv", "data.csv=one.csv"], "one.csv"),  # while the others wait for the first
        (srun, ["data=csv", "data.csv=one.csv"], "one.csv"),
    ],
)
def test_an_error_that_all_processes_have_is_printed_once(tmp_path, port, start_both, words, message):
    (tmp_path / "one.csv").write_text("path,label\nnothing.png,ant\n")
    lines = failed(start_both(tmp_path, port, *words))
    assert [message in line for line in lines] == [True], lines


@pytest.mark.parametrize("start_both", [torchrun, srun])
def test_an_error_of_one_process_is_printed_by_that_process(tmp_path, port, start_both):
    (tmp_path / "mine.py").write_text(
        "import os\n\nfrom ftlit.errors import UserError\n\n\ndef head(**options):\n"
        "    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID'))\n    raise UserError(f'head of {rank}')\n"
    )
    lines = failed(start_both(tmp_path, port, "scenario=large_similar", "head._target_=mine.head", "hydra.run.dir=run"))
    assert sorted(line for line in lines if "head of" in line) == ["ftlit: head of 0", "ftlit: head of 1"]


ODD = """
import time
from lightning.pytorch import Callback

class NotANumber(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            pl_module.head.bias.data.fill_(float("nan"))

class Hang(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            time.sleep(10**6)
"""
TRAINING = ("scenario=large_similar", "schedule=all_at_once", "head=linear", "trainer.max_epochs=50", "hydra.run.dir=run")


def test_a_loss_that_is_not_finite_in_one_process_ends_both_with_one_line(tmp_path, port):
    (tmp_path / "odd.py").write_text(ODD)
    lines = failed(srun(tmp_path, port, *TRAINING, "+callbacks.odd._target_=odd.NotANumber"))
    (line,) = (line for line in lines if not line.startswith("warning: "))  # of torchmetrics
    assert line.startswith("ftlit: training stops, because the loss of step 3 in epoch 3 is not finite in 1 of 2 processes. Give ")


@pytest.mark.slow
def test_a_process_that_hangs_in_a_step_though_it_reports_ends_the_other(tmp_path, port):
    (tmp_path / "odd.py").write_text(ODD)
    first, second = srun(tmp_path, port, *TRAINING, "+callbacks.odd._target_=odd.Hang", "rank_timeout=0.2")
    try:
        _, errors = first.output(timeout=120)
    finally:
        second.kill()
        second.output()
    assert first.returncode == 1
    assert "process 0 stops: another process has not answered for 0.2 minutes (the limit set by rank_timeout). To resume: " in errors
