"""A path that is no run is answered with runs that are there: a similar name, or else the newest ones."""

import os
from pathlib import Path

import pytest

from ftlit import UserError
from ftlit.run_folder import existing_run, no_run, result_checkpoint


def make_run(folder, age=0, *, checkpoints=True):
    (folder / "checkpoints" if checkpoints else folder).mkdir(parents=True)
    (folder / "config.yaml").write_text("head: {_target_: ftlit.models.heads.LinearHead}")
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(path):
    with pytest.raises(UserError) as caught:
        existing_run(path)
    return str(caught.value)


def test_a_similar_run_is_proposed_and_where_none_is_similar_the_newest_ones():
    make_run(Path("runs/fine"), age=2)
    for number in range(3):
        make_run(Path(f"runs/photos{number}"), age=-number)
    make_run(Path("runs/sweep"), age=-9, checkpoints=False)
    Path("runs/nopes").mkdir()  # not a run
    assert error_of("runs/fien") == "there is no file or folder runs/fien: did you mean runs/fine?"
    newest = "give a run, such as runs/photos2, runs/photos1, runs/photos0, ... (5 in all)"
    assert error_of("runs/nope") == f"there is no file or folder runs/nope: {newest}"
    assert error_of("nope") == f"there is no file or folder nope: {newest}"


def test_a_folder_that_is_no_run_is_answered_with_runs_that_exist():
    Path("insects").mkdir()
    assert str(no_run(Path("insects"))) == "the folder insects is not that of a run: give the folder that ftlit train printed at its end"
    make_run(Path("runs/2026-01-01/12-00-00"))
    assert str(no_run(Path("insects"))) == "the folder insects is not that of a run: give one, such as runs/2026-01-01/12-00-00"
    make_run(Path("insects/first"))
    assert str(no_run(Path("insects"))).endswith("give one, such as insects/first")


def test_the_result_is_the_last_checkpoint_only_of_an_ended_run_whose_config_keeps_no_best_epoch():
    (folder := Path("run/checkpoints")).mkdir(parents=True)
    (folder / "last.ckpt").touch()
    for best, ended, name in [("null", True, "last"), ("null", False, "best"), ("{mode: max}", True, "best")]:
        Path("run/config.yaml").write_text(f"callbacks:\n  best: {best}\ntrainer: {{}}\n")
        Path("run/result.json").write_text("{}") if ended else Path("run/result.json").unlink()
        assert result_checkpoint(Path("run")) == folder / f"{name}.ckpt"
    for text in ("callbacks: {seeding: {seed: 0}}", "callbacks: [", "callbacks:"):  # left out with ~callbacks.best; damaged files
        Path("run/config.yaml").write_text(text)
        assert result_checkpoint(Path("run")).name == ("last.ckpt" if "seed" in text else "best.ckpt")
    Path("run/config.yaml").write_text("callbacks: {best: null}")
    (folder / "best.ckpt").touch()
    assert result_checkpoint(Path("run")) == folder / "best.ckpt"
