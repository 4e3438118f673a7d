"""A signal raises at once; where somebody asks between two steps it waits for that, but not for long."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from ftlit.lit import stop_signals
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.stop_signals import DEFAULTS, SIGNALS, STOP_SIGNALS, owned_signals

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals on Windows")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(STOP_SIGNALS, "_raised_at", -1000.0)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_training_a_signal_is_ctrl_c(number):
    with pytest.raises(KeyboardInterrupt), owned_signals():
        send(number)
    assert signal.getsignal(number) is DEFAULTS[number] and not STOP_SIGNALS.owned


@pytest.mark.parametrize(("number", "calls"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_ctrl_c_waits_once_for_jobs_in_other_processes_before_it_raises(number, calls, monkeypatch):
    waited = []

    def wait():
        waited.append(number)
        os.kill(os.getpid(), number)  # a second one does not wait again

    monkeypatch.setattr(STOP_SIGNALS, "wait_for_jobs", wait)
    with owned_signals(), pytest.raises(KeyboardInterrupt):
        STOP_SIGNALS._raised_at = -stop_signals.SECONDS_TO_STOP
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert len(waited) == calls


def test_while_it_is_deferred_a_first_signal_is_noted_and_a_second_raises():
    with owned_signals():
        STOP_SIGNALS.deferred = True
        send(signal.SIGUSR1)
        assert STOP_SIGNALS.requested
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        send(signal.SIGTERM)  # the program is ending: once is enough


@pytest.mark.parametrize("answers", [True, False])
def test_ctrl_c_in_training_is_answered_at_once_by_one_process(tmp_path, monkeypatch, answers):
    with (tmp_path / "err").open("w") as stream, owned_signals(answers=answers), owned_signals():
        monkeypatch.setattr(sys, "stderr", stream)
        STOP_SIGNALS.deferred = True
        send(signal.SIGINT)
    assert ("stopping after this step" in (tmp_path / "err").read_text()) == answers


def test_the_handler_of_submitit_that_only_logs_gives_way_for_a_block_and_the_one_that_requeues_does_not():
    environment = pytest.importorskip("submitit.core.job_environment")
    handler = environment.SignalHandler(None, None, None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        signal.signal(signal.SIGTERM, handler.bypass)
        signal.signal(signal.SIGUSR1, handler.checkpoint_and_try_requeue)
        with owned_signals():
            assert signal.getsignal(signal.SIGUSR1) == handler.checkpoint_and_try_requeue
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == handler.bypass
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def test_ctrl_c_stops_training_where_nobody_reads_the_answer(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as stream, owned_signals():
        monkeypatch.setattr(sys, "stderr", stream)
        STOP_SIGNALS.deferred = True
        send(signal.SIGINT)
        assert STOP_SIGNALS.requested


def test_a_signal_that_nobody_asks_for_raises_after_some_time(monkeypatch):
    monkeypatch.setattr(stop_signals, "SECONDS_TO_STOP", 0.2)
    with owned_signals(), pytest.raises(KeyboardInterrupt):
        STOP_SIGNALS.deferred = True
        send(signal.SIGTERM)
        time.sleep(1)


HIDES = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
except KeyboardInterrupt:
    pass
"""


def test_a_signal_during_an_import_raises_after_it(tmp_path, monkeypatch, capfd):
    (tmp_path / "hides_ctrl_c.py").write_text(HIDES + "end = True")
    monkeypatch.syspath_prepend(tmp_path)
    with owned_signals():
        import hides_ctrl_c

        with pytest.raises(KeyboardInterrupt):
            time.sleep(1)
    assert hides_ctrl_c.end and "stopping as soon as the libraries are loaded" in capfd.readouterr().err


def test_a_signal_in_a_function_of_ftlit_that_runs_during_an_import_raises_at_once(tmp_path, monkeypatch):
    (tmp_path / "trains_when_imported.py").write_text(f"__name__ = 'ftlit.api'\ndef run():\n    exec({HIDES!r})\nrun()\nend = True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(STOP_SIGNALS, "_hold", lambda number: pytest.fail("held"))
    with owned_signals():
        import trains_when_imported
    assert trains_when_imported.end


def test_a_second_signal_during_an_import_ends_the_program(tmp_path):
    (tmp_path / "hides_ctrl_c.py").write_text(HIDES * 2)
    program = "from ftlit.lit.stop_signals import owned_signals\nwith owned_signals(): import hides_ctrl_c"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.endswith("ftlit: interrupted\n") and "Traceback" not in done.stderr


def test_a_signal_that_is_held_when_the_block_ends_is_forgotten(tmp_path, monkeypatch):
    (tmp_path / "hides_ctrl_c_again.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    monkeypatch.syspath_prepend(tmp_path)
    with owned_signals():
        import hides_ctrl_c_again  # noqa: F401
    time.sleep(0.3)


def test_the_handler_of_a_launcher_stays():
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with owned_signals():
            send(signal.SIGUSR1)
            assert signal.getsignal(signal.SIGTERM) == STOP_SIGNALS.receive
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="only where signals can be waited for")
def test_a_forked_worker_ends_by_a_signal_of_its_parent_and_by_no_other():
    with owned_signals():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        worker.start()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


class Net(pl.LightningModule):
    """A module whose weight counts the steps, and that sends its process a signal in the third."""

    def __init__(self, number):
        super().__init__()
        self.number, self.weight = number, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            send(self.number)
        return -self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_training_with_a_checkpoint_in_a_program_that_handles_none(tmp_path, capsys, number):
    last = LastCheckpoint(tmp_path / "last.ckpt")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=[last], accelerator="cpu", **quiet)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(Net(number), DataLoader(torch.zeros(9, 1)))
    path = str(tmp_path / "last.ckpt")
    line = f"to go on: trainer.fit(module, data, ckpt_path={path!r}), or with LightningCLI: --ckpt_path {path}\n"
    assert capsys.readouterr().out.count(line) == 1
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert found["global_step"] == 3 and found["state_dict"]["weight"].item() == 3.0
    assert all(signal.getsignal(each) is DEFAULTS[each] for each in SIGNALS if each != signal.SIGINT) and not STOP_SIGNALS.owned


def test_handlers_of_the_program_stay(tmp_path):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("own"))
    try:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = pl.Trainer(max_epochs=1, callbacks=[LastCheckpoint(tmp_path / "last.ckpt")], accelerator="cpu", **quiet)
        trainer.fit(Net(signal.SIGUSR1), DataLoader(torch.zeros(9, 1)))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["own"] and torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 9
