"""A sweep that is resumed: jobs keep their numbers when values are added to any option, and a refusal comes before the first job."""

import os
import sys
from dataclasses import replace

import pytest
import warm
from hydra import compose
from omegaconf import OmegaConf, open_dict
from paths import ROOT

from ftlit import UserError
from ftlit.cli.sweep import sweep_jobs
from ftlit.cli.sweep.sweep_resume import count_done, in_order, new_job
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.recipes.config.hydra_sweeps import compose_job
from ftlit.sweeps import running
from ftlit.sweeps.jobs import Job, read_job
from ftlit.sweeps.plan_file import FILE, SweepPlan
from ftlit.sweeps.running import RunningSweep


@pytest.fixture
def config(tmp_path):
    with initialize_hydra():
        yield compose("train", [f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN"], return_hydra_config=True)


def product(seeds, scenarios, *fixed):
    return [[f"seed={seed}", f"scenario={scenario}", *fixed] for seed in seeds for scenario in scenarios]


def run(config, folder, planned, numbers, status=0):
    """Leave the state of these jobs as a sweep leaves it."""
    for number in numbers:
        job = compose_job(config, planned[number])
        job.hydra.job.num = number
        with use_hydra_config(job), open_dict(job):
            del job["hydra"]
            replace(new_job(job), overrides=tuple(planned[number]), status=status, reason="").write(folder / str(number))


FIRST = product([1, 2], ["small_similar", "large_similar"])


@pytest.mark.parametrize(
    "grown",
    [
        product([1, 2, 3], ["small_similar", "large_similar"]),
        product([1, 2], ["small_similar", "small_different", "large_similar"]),
        product([3, 2, 1], ["large_similar", "small_different", "small_similar"]),
    ],
    ids=["first option", "last option", "another order"],
)
def test_jobs_keep_their_numbers_whatever_option_gets_another_value(config, tmp_path, grown):
    run(config, tmp_path, FIRST, range(4))
    ordered = in_order(config, grown)
    assert ordered[:4] == FIRST and sorted(ordered) == sorted(grown)
    assert ordered[4:] == [words for words in grown if words not in FIRST]  # in the order of the command line


def test_jobs_that_never_began_fill_the_gaps(config, tmp_path):
    run(config, tmp_path, FIRST, [1, 3])
    assert in_order(config, FIRST) == FIRST


def test_a_sweep_whose_jobs_are_all_done_launches_none_and_has_its_table(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "SWEEPS", {})
    OmegaConf.update(config, "sweep.resume", True)
    run(config, tmp_path, FIRST, [0, 1, 2])
    assert sweep_jobs.plan_jobs(config, FIRST) == FIRST  # one is left
    run(config, tmp_path, FIRST, [3], status=2)
    assert sweep_jobs.plan_jobs(config, FIRST) == FIRST
    run(config, tmp_path, FIRST, [3])
    assert sweep_jobs.plan_jobs(config, FIRST) == []
    grown = product([1, 2, 3], ["small_similar", "large_similar"])
    assert len(sweep_jobs.plan_jobs(config, grown)) == 6
    capsys.readouterr()
    sweep_jobs.plan_jobs(config, FIRST)
    assert sweep_jobs.end_sweep() == 0
    assert "sweep.csv" in capsys.readouterr().out


def test_a_job_that_is_given_twice_is_refused(config):
    twice = [["seed=1", "head=linear"], ["seed=2", "head=linear"], ["seed=1", "head=linear"]]
    with pytest.raises(UserError, match=r"^two jobs of this sweep would be the same \(seed=1 head=linear\): give each value of an option"):
        in_order(config, twice)


def test_a_sweep_is_not_resumed_without_its_folder(tmp_path):
    with initialize_hydra():
        config = compose("train", [f"paths.runs={tmp_path}", "sweep.resume=true", "hydra.mode=MULTIRUN"], return_hydra_config=True)
        named = compose("train", [f"hydra.sweep.dir={tmp_path}", "sweep.resume=true", "hydra.mode=MULTIRUN"], return_hydra_config=True)
    message = "sweep.resume=true needs the folder of the sweep to resume: give hydra.sweep.dir="
    with pytest.raises(UserError, match=rf"^{message}\.\.\.$"):
        count_done(config)
    older, newer = tmp_path / "sweeps" / "mine", tmp_path / "sweeps" / "2030-01-31" / "12-00-00"
    for second, folder in enumerate((older, newer)):
        SweepPlan(2, [], "").write(folder)
        os.utime(folder / FILE, (second, second))
    with pytest.raises(UserError, match=rf"^{message}FOLDER, such as {newer}, {older}$"):
        count_done(config)
    assert count_done(named) == 0  # a script may give the same command at its first start


def test_an_option_that_had_its_default_may_get_several_values(config, tmp_path):
    before = [words[1:] for words in FIRST[:2]]
    run(config, tmp_path, before, range(2))
    grown = [["seed=0", *before[0]], ["seed=1", *before[0]], ["seed=0", *before[1]], ["seed=1", *before[1]]]  # 0 is the default
    assert in_order(config, grown) == [grown[0], grown[2], grown[1], grown[3]]


@pytest.mark.parametrize(
    ("planned", "change"),
    [
        (
            product([1], ["small_similar", "large_similar"]),
            r"seed=2, but none of the jobs of this command has these values",
        ),
        (
            product([1, 2, 3], ["small_similar"]),
            r"scenario=large_similar seed=1, but none of the jobs of this command has these values",
        ),
        (product([1, 2, 3], ["small_similar", "large_similar"], "decay_all=false"), r"but decay_all was True and is now False"),
    ],
)
def test_a_command_without_a_job_or_with_another_setting_is_refused(config, tmp_path, planned, change):
    run(config, tmp_path, FIRST, range(4))
    with pytest.raises(UserError, match=rf"belongs to a different sweep: it is job \d with .*{change}: .*give its settings again"):
        in_order(config, planned)


def test_a_sweep_that_is_refused_is_not_resumed(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "SWEEPS", {})
    OmegaConf.update(config, "sweep.resume", True)
    run(config, tmp_path, FIRST, range(4))
    with pytest.raises(UserError, match="belongs to a different sweep"):
        sweep_jobs.plan_jobs(config, product([1, 2, 3], ["small_similar"]))
    assert capsys.readouterr().out == ""
    sweep_jobs.plan_jobs(config, FIRST)
    assert capsys.readouterr().out == f"resuming the sweep in {tmp_path}: skipping 4 finished jobs\n"


def test_what_may_change_on_resume_and_a_value_that_failed_early_may_change(config, tmp_path):
    run(config, tmp_path, FIRST, [0, 1])
    run(config, tmp_path, FIRST, [2], status=2)  # no config.yaml: training had not begun
    planned = [[*words, "data.num_workers=1"] for words in product([1, 4], ["small_similar", "large_similar"])]
    assert in_order(config, planned) == planned


def test_too_few_jobs_for_the_numbers_in_the_folder(config, tmp_path):
    run(config, tmp_path, FIRST, [3])
    with pytest.raises(UserError, match=r"has at least 4 jobs, but this command makes only 1: to resume that sweep, give its settings"):
        in_order(config, [FIRST[3]])


@pytest.mark.e2e
def test_a_sweep_grows_in_its_last_option_and_runs_only_what_is_missing(config, tmp_path):
    fixed = ["data.per_class=5", "scenario=small_similar", "trainer=cpu"]
    run(config, tmp_path, [[*fixed, f"seed={seed}", "probe.poolings=[average]"] for seed in (1, 2)], range(2))
    grown = [*fixed, "seed=1,2", "probe.poolings=[average],[2x2]", "sweep.resume=true", f"hydra.sweep.dir={tmp_path}"]
    done = warm.run([sys.executable, ROOT / "train.py", "-m", *grown], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "\njob 0 (" not in done.stdout and "skipping 2 finished jobs" in done.stdout, done.stderr
    jobs = [read_job(tmp_path / str(number)) for number in range(4)]
    assert [(job.values["seed"], job.status) for job in jobs] == [("1", 0), ("2", 0), ("1", 2), ("2", 2)]
    assert all(job.reason.startswith("probe.poolings=['2x2']: head=linear_probe needs") for job in jobs[2:])


def test_jobs_that_never_began_are_listed_at_the_end(tmp_path, monkeypatch, capsys):
    Job(0, ("seed=1", "head=linear"), status=0, reason="", score=0.5).write(tmp_path / "0")
    planned = [[f"seed={seed}", "head=linear"] for seed in (1, 2, 3)]
    monkeypatch.setattr(running, "SWEEPS", {tmp_path: RunningSweep(planned)})
    assert sweep_jobs.end_sweep() == 1
    waiting, again = capsys.readouterr().err.splitlines()
    assert waiting == "ftlit: 2 jobs never began" and again.endswith(" sweep.resume=true")
