"""Successive halving of a sweep: plan, errors, resuming, and a survivor that equals the job that ran without halving."""

import csv
import os
import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
import warm
from hydra import compose
from omegaconf import OmegaConf
from paths import ROOT

from ftlit import UserError
from ftlit.cli.sweep import sweep_rungs
from ftlit.cli.sweep.sweep_rungs import check_sweeper, launch_in_rungs, plan_rungs
from ftlit.recipes.checks.check_jobs import check_jobs
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.recipes.config.hydra_sweeps import compose_job
from ftlit.sweeps import running
from ftlit.sweeps.caption import caption_of, finished
from ftlit.sweeps.jobs import STOPPED, Job, jobs_of, read_job
from ftlit.sweeps.plan_file import SweepPlan, read_plan
from ftlit.sweeps.running import RunningSweep

RATES = ("1e-4", "1e-3", "1e-2")
FIXED = ("scenario=small_similar", "head=linear", "trainer.max_epochs=9")


@pytest.fixture
def halving(tmp_path):
    """The config of a sweep, with further words."""
    with initialize_hydra():
        words = ["hparams_search=halving", f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN"]
        yield lambda *more: compose("train", [*words, *more], return_hydra_config=True)


def grid(*fixed, rates=RATES[:2], seeds=(0,)):
    return [["hparams_search=halving", *(fixed or FIXED), f"optimizer.lr={rate}", f"seed={seed}"] for rate in rates for seed in seeds]


def test_the_plan_names_jobs_rungs_epochs_and_the_share_of_the_full_grid(halving):
    plan = plan_rungs(halving(), grid(rates=RATES, seeds=(0, 1)))
    assert plan.describe() == (
        "halving   6 jobs of 3 settings, 2 rungs: 3 settings to epoch 1, 1 setting to epoch 9; 41% of the steps of the full grid; "
        "settings with the highest val/accuracy go on"
    )
    swept = [[*words, f"data.batch_size={size}", "callbacks.best.monitor=val/loss"] for words in grid() for size in (8, 16)]
    plan = plan_rungs(halving("sweep.halving.first=2", "sweep.halving.reduction=2"), swept)
    assert [(rung.epochs, rung.settings) for rung in plan.rungs] == [(2, 4), (9, 2)]
    assert "% of the epochs of the full grid; settings with the lowest val/loss go on" in plan.describe()


def test_a_config_that_is_composed_already_is_not_composed_again(halving, monkeypatch):
    config, jobs, composed = halving(), grid(rates=RATES), {}
    with use_hydra_config(config):
        check_jobs(config, dict(enumerate(jobs[:2])), composed)
    asked = []
    monkeypatch.setattr("ftlit.cli.sweep.sweep_rungs.compose_job", lambda *words: asked.append(words) or compose_job(*words))
    assert plan_rungs(config, jobs, composed) == plan_rungs(config, jobs)
    assert sorted(composed) == [0, 1] and len(asked) == 1 + len(jobs)


def test_a_sweep_without_the_option_has_no_plan_and_is_launched_as_it_is(halving, tmp_path):
    config = compose("train", [f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN"], return_hydra_config=True)
    assert launch_in_rungs(config, lambda jobs, initial_job_idx: [jobs, initial_job_idx], [["seed=1"]], 3) == [[["seed=1"]], 3]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("eta=1", r"sweep\.halving\.eta=1: give a number above 1"),
        ("reduction=nan", "give a number above 1"),
        ("eta=many", r"sweep\.halving\.eta=many: give a number above 1"),
        ("first=0", "give a whole number from 1 to"),
        ("first=1.5", "a whole number"),
        ("first=9", r"first=9: give epochs from 1 to 8, below trainer\.max_epochs=9"),
    ],
)
def test_an_option_out_of_its_range_is_one_line(option, message, halving):
    with pytest.raises(UserError, match=message) as error:
        plan_rungs(halving(f"sweep.halving.{option}"), grid())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (grid(rates=("1e-3",), seeds=(0, 1)), "compares settings, but this command has only one: give an option several values"),
        (grid("head=linear"), r"job 0 \(optimizer.lr=1e-4 seed=0\): the number of epochs must be known before the jobs begin"),
        (grid("scenario=small_similar"), "head=linear_probe with schedule=head_only is fitted without epochs"),
        (grid("scenario=large_similar", "recipe=probe"), "recipe=probe has no epochs to stop after"),
        (grid(*FIXED, "final=true"), "final=true has no val"),
        (grid(*FIXED, "+trainer.max_steps=5"), "rungs are counted in epochs: give trainer.max_epochs"),
        (grid(*FIXED, "trainer.limit_val_batches=0"), "without val settings cannot be compared"),
        (grid(*FIXED, "logger.csv=null"), "logger.csv=null leaves no metrics.csv, by which settings are compared"),
        (grid(*FIXED, "callbacks.last=null"), "leaves no checkpoint from which a job could go on"),
        (grid(*FIXED, "trainer.devices=2"), "jobs with several processes cannot stop at a rung"),
        (
            grid(*FIXED, "trainer.check_val_every_n_epoch=2"),
            r"first=1: give epochs from 2 \(trainer.check_val_every_n_epoch\) to ",
        ),
        ([*grid(), *grid(*FIXED[:2])], "trainer.max_epochs is 9 in job 0 and 20 in job 2: give trainer.max_epochs=... one value"),
        ([*grid(), *grid(*FIXED, "callbacks.best.monitor=val/loss")], "callbacks.best is val/accuracy in job 0 and val/loss in job 2"),
    ],
)
def test_a_job_that_cannot_stop_at_a_rung_is_one_line(jobs, message, halving):
    with pytest.raises(UserError, match=message) as error:
        plan_rungs(halving(), jobs)
    assert "\n" not in str(error.value)


def test_a_part_of_the_jobs_at_a_time_is_refused(halving, tmp_path, monkeypatch):
    config = halving("hydra.sweeper.max_batch_size=1")
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep(halving=plan_rungs(config, grid()))})
    with pytest.raises(UserError, match=r"all jobs of the sweep.*give hydra.sweeper.max_batch_size=null"):
        launch_in_rungs(config, lambda *jobs: pytest.fail("launched"), grid()[:1], 0)


class Launcher:
    """Runs jobs as Hydra's launcher does, as far as their files go: the accuracy of each job rises by its number + 1 in each epoch.

    Args:
        folder: of the sweep.
        stop_at: number of the job-rung at which it is interrupted; `None` for never.
        failing: numbers of jobs that fail.
        diverging: numbers of jobs whose accuracy is NaN.
    """

    def __init__(self, folder, stop_at=None, failing=(), diverging=()):
        self.folder, self.stop_at, self.failing, self.diverging, self.ran = folder, stop_at, failing, diverging, []

    def __call__(self, jobs, initial_job_idx):
        return [self.run(words) for words in jobs]

    def run(self, words):
        values = Job(0, tuple(words)).values
        number, rung, until = int(values["hydra.sweep.subdir"]), int(values["sweep.rung"]), int(values["sweep.until"])
        folder = self.folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        before = read_job(folder) or Job(number)
        if len(self.ran) == self.stop_at:
            replace(before, status=130).write(folder)
            raise KeyboardInterrupt
        self.ran.append((number, rung))
        if number in self.failing:
            return replace(before, status=1).write(folder)
        step = nan if number in self.diverging else (number + 1) / 100
        rows = [f"{epoch},{step * (epoch + 1)},1" for epoch in range(until)]
        (folder / "metrics.csv").write_text("\n".join(["epoch,val/accuracy,val/loss", *rows, ""]))
        replace(before, status=0 if until == 9 else STOPPED, score=0.5, rung=rung, epochs=until).write(folder)
        return number


@pytest.fixture
def launched(monkeypatch):
    """Launch the planned jobs in the folder of a launcher."""
    monkeypatch.setattr(running, "SWEEPS", {})

    def launch(plan, launcher):
        running.SWEEPS[launcher.folder] = RunningSweep(halving=plan)
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(launcher.folder)}}})
        return launch_in_rungs(config, launcher, [list(job.overrides) for job in plan.jobs], 0)

    return launch


def test_an_interrupted_sweep_goes_on_by_the_same_decisions_and_runs_no_rung_of_a_job_twice(halving, launched, tmp_path):
    plan = plan_rungs(halving(), grid(rates=[f"{rate}e-4" for rate in range(1, 10)]))
    whole = Launcher(tmp_path / "whole")
    launched(plan, whole)
    assert whole.ran == [*((number, 1) for number in range(9)), (8, 2), (7, 2), (6, 2), (8, 3)]
    for stop_at in range(len(whole.ran)):
        first, second = Launcher(tmp_path / str(stop_at), stop_at), Launcher(tmp_path / str(stop_at))
        with pytest.raises(KeyboardInterrupt):
            launched(plan, first)
        assert running.SWEEPS[first.folder].has_rungs_left
        launched(plan, second)
        assert first.ran + second.ran == whole.ran and not running.SWEEPS[first.folder].has_rungs_left
        assert [read_job(first.folder / str(number)).epochs for number in range(9)] == [1] * 6 + [3, 3, 9]
    again = Launcher(whole.folder)
    assert launched(plan, again) == [] and again.ran == []


def test_failed_jobs_do_not_go_on_and_the_other_seeds_of_their_setting_do(halving, launched, tmp_path):
    launcher = Launcher(tmp_path, failing=(5, 2, 3))  # a seed of the best setting, and the second one
    launched(plan_rungs(halving("sweep.halving.reduction=1.5"), grid(rates=RATES, seeds=(0, 1))), launcher)
    assert launcher.ran == [*((number, 1) for number in range(6)), (4, 2), (0, 2), (1, 2), (4, 3)]
    assert not any(job.has_failed for path, job in jobs_of(tmp_path) if job.number not in (5, 2, 3))


def test_a_setting_without_a_score_does_not_go_on_and_a_rung_without_any_ends_the_sweep_with_an_error(halving, launched, tmp_path, capsys):
    plan = plan_rungs(halving("sweep.halving.reduction=1.5"), grid(rates=RATES))
    launcher = Launcher(tmp_path / "some", diverging=(1, 2))
    launched(plan, launcher)
    assert launcher.ran == [(0, 1), (1, 1), (2, 1), (0, 2), (0, 3)]
    launcher = Launcher(tmp_path / "none", diverging=range(3))
    with pytest.raises(
        UserError, match=r"rung 1 of 3 .* no job has a finite val/accuracy.*another metric of .*none/0/metrics.csv"
    ) as error:
        launched(plan, launcher)
    assert "\n" not in str(error.value) and launcher.ran == [(0, 1), (1, 1), (2, 1)]
    capsys.readouterr()
    launched(plan, Launcher(tmp_path / "failed", failing=range(3)))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no job reached the end of rung 1 of 3 (epoch 1), so the sweep ends here: correct the errors listed below, and resume the sweep"
    ]


def test_a_search_that_chooses_jobs_by_the_results_of_others_is_refused(halving):
    check_sweeper(halving())
    choices = {"hydra": {"runtime": {"choices": {"hydra/sweeper": "optuna"}}}, "sweep": {"halving": {}}}
    for sweeper, message in (
        ({"n_trials": 9, "n_jobs": 2}, r"with hydra.sweeper.n_jobs=2 Optuna draws 2 of 9 at a time: give hparams_search=optuna_halving"),
        ({}, r"hydra/sweeper=optuna chooses them one after another: give hparams_search=halving and values"),
    ):
        with pytest.raises(UserError, match=message) as error:
            check_sweeper(OmegaConf.merge(choices, {"hydra": {"sweeper": sweeper}}))
        assert "\n" not in str(error.value)
    check_sweeper(OmegaConf.merge(choices, {"hydra": {"sweeper": {"n_trials": 9, "n_jobs": 9}}}))


def test_jobs_that_a_search_draws_at_once_are_halved_and_only_those_that_finish_have_a_score_for_it(halving, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_rungs, "check_jobs", lambda *given: None)
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep(minimizes=False)})
    config, jobs, launcher = halving(), grid(rates=RATES), Launcher(tmp_path, failing=(1,))
    returned = launch_in_rungs(config, launcher, jobs, 0)
    assert launcher.ran == [(0, 1), (1, 1), (2, 1), (2, 2)] and running.SWEEPS[tmp_path].jobs == jobs
    assert [job.return_value for job in returned] == [None, None, 0.5]
    again = launch_in_rungs(config, launcher := Launcher(tmp_path, failing=(1,)), jobs, 0)
    assert launcher.ran == [(1, 1)] and [job.return_value for job in again] == [None, None, 0.5]


def test_a_halved_search_says_how_many_epochs_it_saved(halving, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_rungs, "check_jobs", lambda *given: None)
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep(minimizes=False)})
    SweepPlan(3, ("head",), "").write(tmp_path)  # as the search began, before it drew its jobs
    launch_in_rungs(halving(), Launcher(tmp_path), grid(rates=RATES), 0)
    assert "The jobs trained 11 of the 27 epochs of the full grid (41%), 16 fewer." in caption_of([job for _, job in jobs_of(tmp_path)])
    plan = read_plan(tmp_path)
    assert (plan.total, plan.jobs, plan.epochs) == (3, grid(rates=RATES), 9) and "optimizer.lr" in plan.swept


def test_a_job_that_waits_for_the_next_rung_has_not_finished(halving, launched, tmp_path):
    plan = plan_rungs(halving("sweep.halving.reduction=1.5"), grid(rates=RATES))
    SweepPlan(3, ("optimizer.lr",), "", epochs=9).write(tmp_path)
    seen = []

    class Looking(Launcher):
        """Looks at the sweep's folder before each job, as `ftlit report` does while the sweep runs."""

        def run(self, words):
            if jobs := [job for _, job in jobs_of(tmp_path)] if self.ran else []:
                seen.append((finished(jobs), "full grid" in caption_of(jobs)))
            return super().run(words)

    launched(plan, Looking(tmp_path))
    assert [f"{text[:1]}{saved:d}" for text, saved in seen] == ["00", "00", "10", "10", "20"]
    assert finished([job for _, job in jobs_of(tmp_path)]) == ""


def train(folder, *words):
    return warm.run([sys.executable, ROOT / "train.py", *words], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)


def tensors(path):
    def leaves(node, name=""):
        if isinstance(node, dict | list | tuple):
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            return {place: value for key, inner in pairs for place, value in leaves(inner, f"{name}/{Path(str(key)).name}").items()}
        return {name: node} if isinstance(node, torch.Tensor) else {}

    return leaves(torch.load(path, weights_only=False))


@pytest.mark.e2e
def test_a_survivor_equals_the_job_without_halving_to_the_bit_and_the_table_shows_the_rungs(tmp_path):
    tiny = [*FIXED[:1], "head=mlp", "head.hidden=[16]", "trainer.max_epochs=3", "data.per_class=5", "report=false", "trainer=cpu"]
    done = train(tmp_path, "-m", "hparams_search=halving", *tiny, "optimizer.lr=1e-4,1e-3,1e-2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    jobs = {job.number: job for _, job in jobs_of(tmp_path / "sweep")}
    assert [(job.status_in_words, job.rung, job.epochs) for job in jobs.values()] == [
        ("stopped", 1, 1),
        ("stopped", 1, 1),
        ("finished", 2, 3),
    ]
    alone = train(tmp_path, *tiny, "optimizer.lr=1e-2", "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    for name in ("metrics.csv", "result.json"):
        assert (tmp_path / "sweep/2" / name).read_text() == (tmp_path / "alone" / name).read_text()
    for name in ("last", "best"):
        ours, other = (tensors(tmp_path / folder / f"checkpoints/{name}.ckpt") for folder in ("sweep/2", "alone"))
        assert ours.keys() == other.keys() and ours and all(torch.equal(ours[key], other[key]) for key in ours)
    lines, plan_line = done.stdout.splitlines(), "halving   3 jobs, 2 rungs: 3 settings to epoch 1, 1 setting to epoch 3; "
    plan = next(place for place, line in enumerate(lines) if line.startswith(plan_line))
    assert not any(line.startswith("job ") for line in lines[:plan])
    assert any(line.startswith("rung 1 of 2 (epoch 1) has ended: 1 of 3 settings goes on: job") for line in lines)
    with (tmp_path / "sweep/sweep.csv").open() as file:
        rows = [(row["status"], row["rung"], row["epochs"]) for row in csv.DictReader(file)]
    assert rows == [("stopped", "1", "1"), ("stopped", "1", "1"), ("finished", "2", "3")]
    with (tmp_path / "sweep/settings.csv").open() as file:
        assert [(row["rung"], row["best"]) for row in csv.DictReader(file)] == [("1", "0"), ("1", "0"), ("2", "1")]
    assert "1 (epoch 1)" in (tmp_path / "sweep/sweep.html").read_text() and "2 (epoch 3)" in (tmp_path / "sweep/sweep.md").read_text()
    resumed = train(tmp_path, "hparams_search=halving", *tiny, "optimizer.lr=1e-4,1e-3,1e-2", "hydra.sweep.dir=sweep", "sweep.resume=true")
    assert resumed.returncode == 0 and "\njob " not in resumed.stdout and "skipping 1 finished job" in resumed.stdout, resumed.stderr
