"""StageProgressBar: a line for each stage that begins and for each epoch, with or without a terminal."""

import re
import sys

import pytest
from staged_net import fit

from ftlit import Schedule, Stage
from ftlit.lit.callbacks.progress_bar import StageProgressBar

STAGES = Schedule([Stage(["head"]), Stage(["*"], epoch=1)])


@pytest.mark.parametrize("terminal", [False, True])
def test_stages_and_epochs_have_a_line_each(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    fit(3, schedule=STAGES, callbacks=[StageProgressBar()], enable_progress_bar=True)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert re.findall(r"(?:stage|epoch) \d[^:\n]*(?=:)", text) == [
        "stage 0 begins at epoch 0",
        "epoch 0 (head)",
        "stage 1 begins at epoch 1",
        "epoch 1 (*)",
        "epoch 2 (*)",
    ]


def test_a_single_stage_is_not_announced(capsys):
    fit(1, schedule=Schedule([Stage(["head"])]), callbacks=[StageProgressBar()], enable_progress_bar=True)
    assert "begins" not in capsys.readouterr().out


@pytest.mark.parametrize(("epoch", "lines"), [(0, ["stage 1 begins at epoch 1: *"]), (1, [])])
def test_a_resumed_run_does_not_announce_a_stage_again_that_has_begun(capsys, tmp_path, epoch, lines):
    fit(2, schedule=STAGES, folder=tmp_path)
    capsys.readouterr()
    fit(4, schedule=STAGES, ckpt_path=tmp_path / f"{epoch}.ckpt", callbacks=[StageProgressBar()], enable_progress_bar=True)
    assert [line for line in capsys.readouterr().out.splitlines() if "stage" in line] == lines
