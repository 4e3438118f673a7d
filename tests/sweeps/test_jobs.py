"""Jobs of a sweep: exit status, interruption, resuming, and sweeps with every launcher and sweeper."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm
from hydra import compose
from omegaconf import open_dict
from paths import ROOT

from ftlit import UserError
from ftlit.cli.command_words import complete
from ftlit.cli.sweep import sweep_jobs
from ftlit.data.loading import usable_cores
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.recipes.config.overrides import command_environment
from ftlit.recipes.processes.process_state import process_state
from ftlit.run_folder import write_advice
from ftlit.sweeps import running
from ftlit.sweeps.jobs import Job, jobs_of, read_job
from ftlit.sweeps.running import RunningSweep

pytestmark = pytest.mark.e2e

TINY = ("data=digits", "data.per_class=5", "scenario=small_similar", "head=linear", "trainer=cpu", "trainer.max_epochs=1")


def needs(package):
    return pytest.mark.skipif(find_spec(f"hydra_plugins.{package}") is None, reason=f"{package} is not installed")


def jobs_in(folder):
    return [job for _, job in jobs_of(folder)]


def sweep(folder, *arguments):
    command = [sys.executable, ROOT / "train.py", *arguments, "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return warm.run(command, cwd=folder, env=environment, timeout=500)


@pytest.fixture
def hydra(tmp_path):
    """The config of job 0 of a sweep, whose folder is tmp_path."""
    with initialize_hydra():
        cfg = compose("train", ["seed=1", "hydra.job.num=0", f"hydra.runtime.output_dir={tmp_path}"], return_hydra_config=True)
    with use_hydra_config(cfg):
        with open_dict(cfg):
            del cfg["hydra"]
        yield cfg


@pytest.mark.parametrize(("code", "status", "reason"), [(None, 0, ""), (0, 0, ""), (3, 3, "3"), ("full disk", 1, "full disk")])
def test_a_job_that_exits_has_the_exit_status_of_its_process(hydra, tmp_path, code, status, reason):
    assert sweep_jobs.run_job(hydra, partial(sys.exit, code)) is None
    ended = read_job(tmp_path)
    assert (ended.status, ended.reason) == (status, reason)


def test_an_interruption_ends_the_sweep_and_a_resumed_job_adds_up_its_seconds(hydra, tmp_path):
    with pytest.raises(SystemExit):
        sweep_jobs.run_job(hydra, partial(sys.exit, 130))
    before = read_job(tmp_path)
    assert (before.status, before.reason) == (130, "interrupted")
    replace(before, seconds=100.0).write(tmp_path)
    sweep_jobs.run_job(hydra, lambda: 0.5)
    assert read_job(tmp_path).seconds < 100  # no config.yaml: nothing to resume
    replace(before, seconds=100.0).write(tmp_path)
    (tmp_path / "config.yaml").touch()
    sweep_jobs.run_job(hydra, lambda: 0.5)
    assert 100 <= read_job(tmp_path).seconds < 200


def test_an_interrupted_job_is_no_failed_one_and_the_command_that_resumes_its_sweep_is_the_typed_one(tmp_path, monkeypatch, capsys):
    Job(0, ("seed=1",), status=130, reason="interrupted").write(tmp_path / "0")
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep()})
    typed = ["seed=1,2", "hparams_search=optuna", "sweep.resume=true", f"hydra.sweep.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    with process_state(environment=command_environment()):
        sys.argv[1:] = complete(typed)  # adds hydra.mode=MULTIRUN
        assert sweep_jobs.end_sweep() == 1
    job, again = capsys.readouterr().err.splitlines()
    assert job.startswith("ftlit: job 0 (seed=1) was interrupted, its folder: ")
    assert again.endswith(f" seed=1,2 hparams_search=optuna hydra.sweep.dir={tmp_path} sweep.resume=true")


def test_a_job_that_is_resumed_by_itself_is_done_in_the_table_of_its_sweep(hydra, tmp_path):
    assert sweep_jobs.finish_alone(0.5) == 0.5 and not list(tmp_path.iterdir())  # a run without a sweep
    with pytest.raises(SystemExit):
        sweep_jobs.run_job(hydra, partial(sys.exit, 130))
    replace(read_job(tmp_path), rung=1, epochs=3).write(tmp_path)  # of successive halving
    sweep_jobs.finish_alone(0.5)
    ended = read_job(tmp_path)
    assert (ended.status, ended.reason, ended.score, ended.rung_in_words) == (0, "", 0.5, "-")


def test_a_job_stays_the_same_where_a_later_release_adds_a_setting_and_is_another_where_the_user_changes_one(hydra, tmp_path):
    sweep_jobs.run_job(hydra, lambda: 0.5)
    before = read_job(tmp_path)
    del before.config["settings"]["decay_all"]
    before.write(tmp_path)
    assert sweep_jobs.run_job(hydra, lambda: 0.0) == 0.5  # done already
    hydra.decay_all = False
    with pytest.raises(UserError, match=r"different sweep: .*, but decay_all was None and is now False"):
        sweep_jobs.run_job(hydra, lambda: 0.0)


def test_a_job_that_failed_before_training_may_be_corrected_and_no_other(hydra, tmp_path):
    sweep_jobs.run_job(hydra, partial(sys.exit, 2))
    (tmp_path / "config.yaml").touch()  # training had begun
    hydra.decay_all = False
    with pytest.raises(UserError, match=rf"decay_all was True and is now False.*, remove {tmp_path} to begin this job with the new"):
        sweep_jobs.run_job(hydra, lambda: 0.5)
    (tmp_path / "config.yaml").unlink()
    assert sweep_jobs.run_job(hydra, lambda: 0.5) == 0.5
    ended = read_job(tmp_path)
    assert (ended.status, ended.reason) == (0, "") and ended.config["settings"]["decay_all"] is False
    hydra.decay_all = True
    with pytest.raises(UserError, match="decay_all was False and is now True"):
        sweep_jobs.run_job(hydra, lambda: 0.5)


def test_a_corrected_job_does_not_keep_the_advice_and_the_curve_of_the_failed_one(hydra, tmp_path):
    def fail():
        write_advice(tmp_path, {"scenario": "large_similar"}, None)
        for name in ("lr_find.csv", "lr_find.png", "reason.txt"):
            (tmp_path / name).touch()
        print("failed")
        sys.exit(2)

    sweep_jobs.run_job(hydra, fail)
    (tmp_path / "notes.txt").touch()  # of the user
    hydra.decay_all = False
    sweep_jobs.run_job(hydra, lambda: print("corrected") or 0.5)
    assert read_job(tmp_path).advised == "" and {path.name for path in tmp_path.iterdir()} == {"job.json", "notes.txt", "train.log"}
    assert (tmp_path / "train.log").read_text() == "corrected\n"


def test_a_sweep_resumes_its_unfinished_jobs_on_request_only(tmp_path):
    arguments = ("-m", "seed=1,2", *TINY)
    first = sweep(tmp_path, *arguments)
    assert first.returncode == 0 and "test accuracy" in first.stdout, first.stderr
    ended = {number: (tmp_path / f"sweep/{number}/result.json").stat().st_mtime_ns for number in (0, 1)}
    replace(read_job(tmp_path / "sweep/1"), status=None, score=None).write(tmp_path / "sweep/1")
    refused = sweep(tmp_path, *arguments)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "give sweep.resume=true" in refused.stderr
    resumed = sweep(tmp_path, *arguments, "sweep.resume=true")
    assert resumed.returncode == 0 and "skipping 1 finished job\n" in resumed.stdout, resumed.stderr
    assert "resuming from" in (tmp_path / "sweep/1/train.log").read_text()
    words = " ".join(arguments[1:]).replace("seed=1,2", "seed=1")
    assert f"\njob 0 ({words})" not in resumed.stdout  # without sweep.resume=true, which is no setting of the job
    now = {number: (tmp_path / f"sweep/{number}/result.json").stat().st_mtime_ns for number in (0, 1)}
    assert now[0] == ended[0] and now[1] > ended[1]
    assert [job.status for job in jobs_in(tmp_path / "sweep")] == [0, 0]
    other = sweep(tmp_path, "-m", "seed=3,2", *TINY, "sweep.resume=true")
    assert other.returncode == 2 and other.stderr.count("\n") == 1, other.stderr
    assert "belongs to a different sweep: it is job 0 with seed=1, but none" in other.stderr and "job 0" not in other.stdout
    assert jobs_in(tmp_path / "sweep")[0].values["seed"] == "1"


@needs("hydra_joblib_launcher")
def test_parallel_jobs_give_the_same_table(tmp_path):
    done = sweep(tmp_path, "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "backbone.in_chans=3,4", *TINY)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    good, bad = jobs_in(tmp_path / "sweep")
    assert (good.status, bad.status) == (0, 2) and "backbone.in_chans=4" in bad.reason
    assert "test accuracy" in done.stdout and "ftlit: job 1 (backbone.in_chans=4" in done.stderr
    assert re.search(r"^1 of 2, job 0 \(backbone.in_chans=3\): val accuracy ", done.stdout, re.MULTILINE)
    command = f"python {ROOT / 'train.py'}"  # not that of the launcher's processes
    assert f"not finished: {command} -m hydra/launcher=joblib" in done.stderr and "hydra.sweep.dir=sweep sweep.resume=true" in done.stderr
    (resume,) = re.findall(r"^resume +(.*)$", (tmp_path / "sweep/0/train.log").read_text(), re.MULTILINE)
    assert resume.startswith(command) and "launcher" not in resume


@needs("hydra_submitit_launcher")
def test_slurm_without_its_programs_is_one_line_that_names_them_and_the_local_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = sweep(tmp_path, "-m", "hydra/launcher=submitit_slurm", "seed=1,2", *TINY)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "hydra/launcher=submitit_slurm needs srun and sbatch" in refused.stderr and "hydra/launcher=submitit_local" in refused.stderr
    assert not (tmp_path / "sweep/0").exists()


@needs("hydra_optuna_sweeper")
def test_an_optuna_search_gives_the_table_and_a_failed_trial_does_not_end_it(tmp_path):
    schedule = ("schedule=all_at_once", "hydra.sweeper.n_trials=3", "scenario=large_similar", "backbone.cut=choice(layer4,nope)")
    done = sweep(tmp_path, "hparams_search=optuna", *(word for word in TINY if not word.startswith("scenario=")), *schedule)
    assert done.returncode == 2 and "optimizer.lr" in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert "A new study created" in done.stderr and "\x1b[" not in done.stderr  # of Optuna, without colours in a file
    assert {job.status for job in jobs_in(tmp_path / "sweep")} == {0, 2}
    assert done.stdout.startswith("sweep of 3 jobs: ") and re.search(r" of 3, job \d \(.*\): (score [\d.]+, )?val accuracy ", done.stdout)
    best = max(jobs_in(tmp_path / "sweep"), key=lambda job: (job.score or 0.0, -job.number))  # the first of equals
    found = (tmp_path / "sweep/optimization_results.yaml").read_text()
    rate = best.values["optimizer.lr"]
    assert re.search(
        rf"^best of \d finished jobs?: .*optimizer.lr={rate}.*, score {best.score:.4g}, folder sweep/{best.number}$", done.stdout, re.M
    )
    assert f"best_value: {best.score}\n" in found and f"optimizer.lr: {rate}\n" in found and float(rate) == float(f"{float(rate):.3g}")


LAUNCHERS = [  # with two jobs at a time
    pytest.param(("joblib", "hydra.launcher.n_jobs=2"), marks=needs("hydra_joblib_launcher"), id="joblib"),
    pytest.param(("submitit_local", "hydra.launcher.timeout_min=10"), marks=needs("hydra_submitit_launcher"), id="submitit_local"),
    pytest.param(
        ("ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"),
        marks=needs("hydra_ray_launcher"),
        id="ray",
    ),
]
SHOW = """
import os
from pathlib import Path
import torch
from lightning.pytorch import Callback

class Show(Callback):
    def on_fit_start(self, trainer, pl_module):
        Path(trainer.default_root_dir, "shown").write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {torch.get_num_threads()}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_side_by_side_give_the_table_each_with_its_gpu_and_its_share_of_the_cores(tmp_path, monkeypatch, launcher):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default Ray's processes wait for all others of a busy machine
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "show.py").write_text(SHOW)
    words = [*(word for word in TINY if not word.startswith("trainer=")), "+callbacks.show._target_=show.Show", "report=false"]
    done = sweep(tmp_path, "-m", f"hydra/launcher={launcher[0]}", *launcher[1:], "seed=1,2", *words)
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
    assert [job.status for job in jobs_in(tmp_path / "sweep")] == [0, 0]
    gpus, threads = zip(*((tmp_path / f"sweep/{number}/shown").read_text().split() for number in (0, 1)), strict=True)
    assert gpus == ("0", "1") and sum(map(int, threads)) <= usable_cores()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_halving_runs_with_each_launcher(tmp_path, monkeypatch, launcher):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    words = [*(word for word in TINY if "max_epochs" not in word), "trainer.max_epochs=3", "optimizer.lr=1e-3,1e-2", "report=false"]
    done = sweep(tmp_path, "-m", "hparams_search=halving", f"hydra/launcher={launcher[0]}", *launcher[1:], *words)
    assert done.returncode == 0 and "rung 1 of 2 (epoch 1) has ended: 1 of 2 settings goes on" in done.stdout, done.stderr
    assert sorted(job.epochs for job in jobs_in(tmp_path / "sweep")) == [1, 3]


@pytest.mark.slow
@needs("hydra_submitit_launcher")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_of_submitit_that_is_preempted_goes_on_by_itself_or_by_the_same_command(tmp_path, number):
    words = [
        *(word for word in TINY if "epoch" not in word and "scenario" not in word),
        "scenario=large_similar",
        "data.per_class=40",
        "seed=1",
    ]
    words = [
        "-m",
        "hydra/launcher=submitit_local",
        "hydra.launcher.timeout_min=10",
        "seed=1",
        *words,
        "trainer.max_epochs=6",
        "report=false",
    ]
    command = [sys.executable, ROOT / "train.py", *words, "hydra.sweep.dir=sweep"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "sweep/0/metrics.csv"
    deadline = time.monotonic() + 200
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    (controller,) = [int(path.name) for path in (tmp_path / "sweep/.submitit").iterdir() if path.name.isdigit()]
    (task,) = map(int, Path(f"/proc/{controller}/task/{controller}/children").read_text().split())
    os.kill(task, number)
    out, err = started.communicate(timeout=300)
    if number == signal.SIGTERM:
        assert started.returncode != 0 and jobs_in(tmp_path / "sweep")[0].status_in_words == "interrupted", out + err
        assert "was interrupted, its folder:" in err and "sweep.resume=true" in err
        assert sweep(tmp_path, *words, "sweep.resume=true").returncode == 0
        assert "resuming from" in (tmp_path / "sweep/0/train.log").read_text()
    else:
        assert started.returncode == 0, err
        assert "Requeued job" in (tmp_path / f"sweep/.submitit/{controller}/{controller}_0_log.out").read_text()
    assert [job.status for job in jobs_in(tmp_path / "sweep")] == [0]


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_settings_that_optuna_draws_at_once_are_halved(tmp_path):
    words = [*(word for word in TINY if not word.startswith(("scenario", "trainer.max", "head"))), "trainer.max_epochs=3", "report=false"]
    done = sweep(tmp_path, "hparams_search=optuna_halving", "hydra.sweeper.n_trials=3", "backbone.cut=layer4", *words)
    assert done.returncode == 0 and "Failed" not in done.stderr, done.stderr
    assert "rung 1 of 2 (epoch 1) has ended: 1 of 3 settings goes on" in done.stdout and "best of 1 finished job: " in done.stdout
    assert sorted(job.epochs for job in jobs_in(tmp_path / "sweep")) == [1, 1, 3]


@pytest.mark.parametrize("file", ["job.json", "result.json", "advice.json"])
def test_a_damaged_file_of_a_job_is_one_line_at_the_end_of_its_sweep(tmp_path, monkeypatch, capsys, file):
    Job(0, ("seed=1",), status=0, reason="", score=0.5).write(tmp_path / "0")
    (tmp_path / "0" / file).write_text("{")
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep()})
    assert sweep_jobs.end_sweep() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path}/0/{file} is damaged" in error
