"""The output of a sweep: what a job prints goes to its log, notes are printed once, and a job that ended well has one line."""

import json
import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
from hydra import compose
from omegaconf import OmegaConf

from ftlit import UserError
from ftlit.cli import train
from ftlit.cli.sweep import sweep_jobs
from ftlit.cli.sweep.sweep_output import (
    BEGAN,
    LOG,
    PRINTED,
    TOTAL,
    VARYING,
    _not_printed,
    _time_left,
    begin_sweep,
    job_log,
    print_job,
    print_stopped,
)
from ftlit.lit.stop_signals import STOP_SIGNALS
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.recipes.config.overrides import COMMAND
from ftlit.recipes.processes.job_process import JobExit
from ftlit.sweeps import running, summary
from ftlit.sweeps.halving import Monitor
from ftlit.sweeps.jobs import STOPPED, Job, read_job
from ftlit.sweeps.plan_file import SweepPlan
from ftlit.sweeps.running import RunningSweep, tell_estimate, wait_for_running

PLAN = "data      train 188\nnote      val taken from train by a hash\n          of each example\nhead      linear probe\n"


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path_factory):
    printed = tmp_path_factory.mktemp("printed") / "notes"
    printed.touch()
    monkeypatch.setenv(PRINTED, str(printed))
    monkeypatch.setenv(TOTAL, "")


def hydra_node(choices=None):
    return {"runtime": {"choices": choices or {}}, "overrides": {"hydra": []}}


def job(folder, text):
    folder.mkdir(exist_ok=True)
    with job_log(folder):
        print(text, end="")


def test_a_job_prints_to_its_log_and_each_note_reaches_the_console_once_in_one_line(tmp_path, capsys):
    job(tmp_path / "0", PLAN)
    job(tmp_path / "1", f"{PLAN}doctor  a frozen pooler\nwarning: disk\nepoch 0 (head): notes\n")
    job(tmp_path / "1", PLAN)  # resumed
    assert capsys.readouterr().out.splitlines() == [
        "note      val taken from train by a hash of each example",
        "doctor  a frozen pooler",
        "warning: disk",
    ]
    assert (tmp_path / "0" / LOG).read_text() == PLAN and (tmp_path / "1" / LOG).read_text().count("note  ") == 2


def test_a_note_of_jobs_in_several_processes_reaches_the_console_once(tmp_path):
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        printed = list(processes.map(_not_printed, [["note a", "note b"], ["note b", "note c"], ["note a"]]))
    assert sorted(line for lines in printed for line in lines) == ["note a", "note b", "note c"]
    os.environ[PRINTED] = str(tmp_path / "on another machine")  # the fixture restores it
    assert _not_printed(["note a", "note a"]) == ["note a"]


def begun_job(folder, number, seconds):
    """Begin a job whose plan estimates these seconds."""
    Job(number, (f"seed={number}",)).write(folder / str(number))
    with job_log(folder / str(number)):
        tell_estimate(seconds)


@pytest.mark.parametrize(
    ("statuses", "epochs", "seconds", "printed"),
    [
        ([], 0, 240.0, ("4 min", "18", "72 min")),
        ([0, 2, None], 0, 240.0, ("4 min", "16", "64 min")),
        ([], 0, 59.0, None),
        ([0] * 3 + [None] + [0] * 14, 0, 240.0, None),
        ([], 9, 240.0, None),
    ],
    ids=["sweep", "after a finished and a failed job", "short", "one job left", "halving"],
)
def test_the_first_plan_of_a_sweep_estimates_the_jobs_that_remain(statuses, epochs, seconds, printed, tmp_path, capsys):
    SweepPlan(18, [], "", epochs=epochs).write(tmp_path)
    for number, status in enumerate(statuses):
        (tmp_path / str(number)).mkdir()
        Job(number, (f"seed={number}",), status=status).write(tmp_path / str(number))
    begun_job(tmp_path, 3, seconds)
    begun_job(tmp_path, 4, seconds)
    tell_estimate(seconds)  # of a run by itself
    line = "estimate  job 3 (seed=3) takes about {}; {} jobs like this one, one after another, about {}, less where features are stored"
    assert capsys.readouterr().out == (f"{line.format(*printed)} already\n" if printed else "")


def test_a_failed_job_keeps_its_output_and_its_notes(tmp_path, capsys):
    with pytest.raises(RuntimeError):
        with job_log(tmp_path):
            print(PLAN + "note      at the very end")
            raise RuntimeError
    print("after")
    assert capsys.readouterr().out.splitlines()[1:] == ["note      at the very end", "after"]
    assert "after" not in (tmp_path / LOG).read_text()


@pytest.mark.parametrize(
    ("score", "result", "shown"),
    [
        (0.5, {"val/accuracy": 0.5, "test/accuracy": 0.25}, "val accuracy 0.5000, test accuracy 0.2500"),
        (
            0.5,
            [{"held_out/accuracy": 0.5, "test/accuracy": 0.25, "cut": "layer3"}],
            "val accuracy 0.5000, test accuracy 0.2500, cut layer3",
        ),
        (
            0.5,
            [{"held_out/accuracy": 0.5, "held_out/by": "cross-validation", "test/accuracy": 0.25, "cut": "layer3"}],
            "cross-validated accuracy 0.5000, test accuracy 0.2500, cut layer3",
        ),
        (0.00125, None, "score 0.00125"),
        (0.75, {"val/accuracy": 0.5, "test/accuracy": 0.25}, "score 0.75, val accuracy 0.5000, test accuracy 0.2500"),
        (
            0.75,
            {"val/accuracy": 0.5, "test/accuracy": 0.25, "trained/val/accuracy": 0.75, "linear_probe/val/accuracy": 0.5},
            "val accuracy 0.5000, test accuracy 0.2500, linear probe kept (best epoch: val 0.7500)",
        ),
        (
            0.25,
            {
                "val/accuracy": 0.5,
                "test/accuracy": 0.25,
                "trained/val/accuracy": 0.25,
                "linear_probe/val/accuracy": 0.5,
                "linear_probe/augmentation/plain": 0.4,  # of the probe only
            },
            "val accuracy 0.5000, test accuracy 0.2500, linear probe kept (best epoch: val 0.2500)",
        ),
    ],
)
def test_a_job_has_one_line_with_settings_result_and_seconds(score, result, shown, tmp_path, capsys):
    with initialize_hydra():
        cfg = compose("train", ["seed=3", "hydra.mode=MULTIRUN"], return_hydra_config=True)
    OmegaConf.set_readonly(cfg, False)
    cfg.hydra.job.num = 1
    Job(1, ("seed=3",), status=0, reason="", score=score, seconds=12.3).write(tmp_path)
    if result is not None:
        (tmp_path / "result.json").write_text(json.dumps(result))
    with use_hydra_config(cfg):
        print_job(tmp_path)
        begin_sweep(tmp_path, 4)
        print_job(tmp_path)
        Job(1, ("seed=3",), status=0, reason="", score=score, seconds=12.3, rung=3, epochs=9).write(tmp_path)
        print_job(tmp_path)
    one, begun, other, last = capsys.readouterr().out.splitlines()
    assert last == f"job 1 (seed=3), rung 3, trained to the end: {shown}, 12 s"
    assert one == f"job 1 (seed=3): {shown}, 12 s" and other == f"2 of 4, job 1 (seed=3): {shown}, 12 s"
    assert begun == f"sweep of 4 jobs: each prints to train.log in its folder, {tmp_path}/NUMBER"


def test_a_swept_option_of_which_jobs_ignore_two_values_is_noted_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARYING, "optimizer.lr seed")
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        Job(number, (f"optimizer.lr={number}",), status=0, reason="", seconds=1.0).write(tmp_path / str(number))
        (tmp_path / str(number) / "result.json").write_text('{"val/accuracy": 0.5, "ignored": ["optimizer.lr", "loss"]}')
        print_job(tmp_path / str(number))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["job", "job", "note", "job"]
    assert "ignore optimizer.lr: jobs that differ in it alone have equal results" in lines[2] and "head=linear" in lines[2]


@pytest.mark.parametrize(
    ("monitor", "shown"),
    [
        (Monitor("val/accuracy", lowest=False), "val accuracy 0.7500, val/loss 0.4000"),
        (Monitor("val/f1", lowest=False), "val/f1 0.5000, val/loss 0.6000"),
        (Monitor("val/loss", lowest=True), "val/loss 0.4000"),
        (Monitor("val/auroc", lowest=False), ""),
    ],
)
def test_a_job_at_a_rung_shows_the_metric_that_ranks_it(monitor, shown, tmp_path, capsys):
    Job(0, ("optimizer.lr=1",), status=STOPPED, seconds=1.0, rung=1, epochs=2).write(tmp_path)
    rows = ["epoch,val/accuracy,val/f1,val/loss", "0,0.5,0.5,0.6", "1,0.75,0.25,0.4", "2,0.9,0.9,0.1", ""]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    print_stopped(tmp_path, monitor)
    assert capsys.readouterr().out == f"job 0 (optimizer.lr=1), rung 1: 2 epochs{shown and ', '}{shown}, 1 s\n"


def test_a_job_records_the_metric_that_ranks_at_each_rung(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,val/accuracy,val/loss\n0,0.5,0.6\n1,0.75,0.4\n2,0.7,0.1\n")
    Job(0, status=STOPPED, rung=1, epochs=1).write(tmp_path)
    sweep_jobs._record_rung(tmp_path, Monitor("val/accuracy", False))
    replace(read_job(tmp_path), status=0, rung=2, epochs=3).write(tmp_path)
    sweep_jobs._record_rung(tmp_path, Monitor("val/accuracy", False))
    assert read_job(tmp_path).at_rungs == ((1, 0.5), (3, 0.75)) and read_job(tmp_path).at_last_rung == 0.75


def test_a_second_sweep_in_the_folder_of_one_that_runs_is_refused(tmp_path):
    running.lock(tmp_path)
    other = running.LOCKS.pop(tmp_path)  # as of another process
    with pytest.raises(UserError, match=r"another sweep runs in .*: wait until it ends, stop it, or give another hydra.sweep.dir="):
        running.lock(tmp_path)
    os.close(other)
    running.lock(tmp_path)
    running.unlock()
    assert not running.LOCKS


def test_a_search_has_the_number_of_its_trials_and_no_colours_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "")  # so that it is removed afterwards
    del os.environ["NO_COLOR"]
    monkeypatch.setattr(running, "SWEEPS", {})
    monkeypatch.setattr(sweep_jobs.sweep_resume, "count_done", lambda config: 0)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "sweeper": {"n_trials": 20}, **hydra_node()}})
    sweep_jobs.SweepCallback().on_multirun_start(config)
    assert os.environ[TOTAL] == "20" and capsys.readouterr().out.startswith("sweep of 20 jobs: ")
    assert os.environ["NO_COLOR"]  # the tests have no terminal


def test_a_sweep_whose_jobs_run_in_other_processes_is_interrupted_as_a_sweep(monkeypatch, tmp_path, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_train", interrupted)
    monkeypatch.setattr("sys.argv", ["train.py", "-m"])
    monkeypatch.setenv(COMMAND, "null")  # so that it is removed afterwards
    again = "began: give the same command to start again"
    Job(0, ("seed=1",), status=130).write(tmp_path / "begun" / "0")
    for folder, text in (
        (None, f"before a run {again}"),
        ("new", f"before the first job of the sweep {again}"),
        ("begun", "the sweep was"),
    ):
        monkeypatch.setattr(running, "SWEEPS", {tmp_path / folder: RunningSweep()} if folder else {})
        with pytest.raises(SystemExit) as caught:
            train._run_hydra()
        assert caught.value.code == 130 and text in capsys.readouterr().err


@pytest.mark.parametrize(("total", "state"), [(1, "its job has finished"), (2, "1 of 2 jobs has finished")])
def test_a_signal_during_the_table_names_the_command_that_makes_it_and_leaves_no_earlier_one(total, state, monkeypatch, tmp_path, capsys):
    def interrupted(jobs, width):
        raise KeyboardInterrupt

    Job(0, ("seed=1",), status=0, score=0.5).write(tmp_path / "0")
    SweepPlan(total, (), "again").write(tmp_path)
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep()})
    summary.report(tmp_path)
    assert (tmp_path / "sweep.csv").is_file()
    capsys.readouterr()
    monkeypatch.setattr(summary, "printed_table", interrupted)
    with pytest.raises(SystemExit) as caught:
        sweep_jobs.end_sweep()
    assert caught.value.code == 130 and not list(tmp_path.glob("sweep*.[cmp]*")) and not (tmp_path / "settings.csv").exists()
    line = f"ftlit: interrupted before the table of the sweep was complete; {state}. To make the table: ftlit report {tmp_path}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("minimize", "best"), [(False, 1), (True, 2)])
def test_a_search_ends_with_the_values_the_score_and_the_folder_of_its_best_job(minimize, best, tmp_path, monkeypatch, capsys):
    scores = (0.5, 0.75, 0.25, 0.75, None)
    for number, score in enumerate(scores):
        (tmp_path / str(number)).mkdir()
        words = (f"optimizer.lr={10 - number}", "data.per_class=5")
        Job(number, words, status=1 if score is None else 0, reason="", score=score).write(tmp_path / str(number))
    line = f"best of 4 finished jobs: optimizer.lr={10 - best}, score {scores[best]}, folder {tmp_path}/{best}"
    for is_minimized, lines in ((minimize, [line]), (None, [])):
        monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep(minimizes=is_minimized)})
        sweep_jobs.end_sweep()
        assert [text for text in capsys.readouterr().out.splitlines() if text.startswith("best of")] == lines


def test_a_search_without_a_finished_job_says_so_in_its_table_and_its_last_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "0").mkdir()
    Job(0, ("optimizer.lr=1",), status=2, reason="no").write(tmp_path / "0")
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep(minimizes=False)})
    assert sweep_jobs.end_sweep() == 2
    text = capsys.readouterr().out
    assert "No job of this sweep has finished" in " ".join(text.split()) and "std" not in text and "job 0: no" in text
    assert text.splitlines()[-1] == "the search has no finished job, so there is no best one"


@pytest.mark.parametrize(("launcher", "waits"), [("joblib", True), ("basic", False)])
def test_a_sweep_with_joblib_waits_for_its_jobs_at_ctrl_c(launcher, waits, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SWEEPS", {})
    monkeypatch.setattr(STOP_SIGNALS, "wait_for_jobs", None)
    choices = {"hydra/launcher": launcher}
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, **hydra_node(choices)}})
    sweep_jobs.SweepCallback().on_multirun_start(config)
    assert (STOP_SIGNALS.wait_for_jobs is not None) == waits
    assert not waits or STOP_SIGNALS.wait_for_jobs() is None  # no job runs: at once


def test_the_wait_ends_with_the_jobs_that_ran_at_its_begin_or_after_its_time(tmp_path):
    for number, status in enumerate((None, 0)):
        (tmp_path / str(number)).mkdir()
        Job(number, (f"seed={number}",), status=status, reason="").write(tmp_path / str(number))
    begin = time.monotonic()
    wait_for_running(tmp_path, 0.5)
    assert 0.5 <= time.monotonic() - begin < 5

    def end_one_and_begin_another():
        Job(1, ("seed=1",)).write(tmp_path / "1")  # its process took the next job
        Job(0, ("seed=0",), status=130, reason="interrupted").write(tmp_path / "0")

    timer = threading.Timer(0.3, end_one_and_begin_another)
    timer.start()
    wait_for_running(tmp_path, 60)
    timer.join()
    assert 0.8 <= time.monotonic() - begin < 30


def test_the_exit_of_a_job_reaches_another_process():
    end = pickle.loads(pickle.dumps(JobExit(130, "interrupted")))
    assert isinstance(end, JobExit) and (end.code, end.reason) == (130, "interrupted")


@pytest.mark.parametrize(
    ("ended", "done", "elapsed", "text"),
    [(1, 0, 60.0, "; about 8 min left at this rate"), (5, 4, 10.0, "; about 40 s left at this rate"), (4, 4, 1.0, ""), (9, 0, 9.0, "")],
)
def test_the_time_that_is_left_is_that_of_the_jobs_of_this_start(monkeypatch, ended, done, elapsed, text):
    monkeypatch.setenv(BEGAN, f"{time.time() - elapsed} {done}")
    assert _time_left(ended, 9, 60.0) == text
    monkeypatch.delenv(BEGAN)
    assert _time_left(ended, 9, 60.0) == ""


def test_the_time_that_is_left_counts_the_start_of_the_program_once(monkeypatch):
    monkeypatch.setenv(BEGAN, f"{time.time() - 100} 2")
    assert _time_left(3, 13, 6.0) == "; about 60 s left at this rate"
    assert _time_left(4, 13, 6.0) == "; about 27 s left at this rate"  # the second job took no time
