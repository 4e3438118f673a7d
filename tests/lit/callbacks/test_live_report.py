"""The report is written during training, rarely enough, and never stops it."""

from types import SimpleNamespace

import pytest

from ftlit.lit.callbacks.live_report import FIRST, SHARE, LiveReport


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(callback, clock, epochs, seconds):
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=0, max_epochs=epochs)
    callback.on_train_start(trainer, None)
    for trainer.current_epoch in range(epochs):
        callback.on_train_epoch_start(trainer, None)
        clock.now += seconds


@pytest.mark.parametrize(("seconds", "cost"), [(1.0, 0.5), (10.0, 0.5), (10.0, 2.0), (600.0, 2.0)])
def test_pages_take_a_small_share_of_the_time_and_the_first_epochs_none(seconds, cost, tmp_path):
    clock, written = Clock(), []

    def write(folder, text):
        written.append((clock.now - 100, text))
        clock.now += cost

    run(LiveReport(tmp_path, write, clock), clock, 100, seconds)
    assert written[0][0] >= FIRST
    assert cost * (len(written) - 1) <= SHARE * (written[-1][0] - written[0][0])
    assert len(written) == (99 if seconds == 600 else len(written)) >= 2
    assert written[0][1].startswith(f"This run is training: {round(-(-FIRST // seconds))} of 100 epochs have ended.")


def test_an_error_is_printed_once_and_training_goes_on(tmp_path, capsys):
    clock = Clock()

    def write(folder, text):
        raise OSError("no space left")

    run(LiveReport(tmp_path, write, clock), clock, 50, 20.0)
    assert capsys.readouterr().out.count("note: the report could not be written now (") == 1


def test_other_processes_write_nothing(tmp_path):
    written = []
    callback = LiveReport(tmp_path, lambda *given: written.append(given), lambda: 1e6)
    for first in (False, True):
        callback.on_train_epoch_start(SimpleNamespace(is_global_zero=first, current_epoch=1, max_epochs=2), None)
        assert len(written) == first


@pytest.mark.parametrize("limit", [-1, None])
def test_a_run_that_is_limited_by_steps_names_no_number_of_epochs(tmp_path, limit):
    written = []
    callback = LiveReport(tmp_path, lambda folder, text: written.append(text), lambda: 1e6)
    callback.on_train_epoch_start(SimpleNamespace(is_global_zero=True, current_epoch=3, max_epochs=limit), None)
    assert written == ["This run is training: 3 epochs have ended. Reload the page for later ones."]
