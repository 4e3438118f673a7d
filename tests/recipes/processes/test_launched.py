"""Processes that torchrun or srun starts are one run, or refused in one line."""

import json
import os
import signal
import time

import pytest
from launches import by_lightning, free_port, srun, start

from ftlit import UserError
from ftlit.recipes.processes import launched

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
FOLDER = "hydra.run.dir=here"
LONG = ("scenario=large_similar", "head=linear", "schedule=all_at_once", "trainer.max_epochs=5000", "trainer.limit_val_batches=1")


@pytest.fixture
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")) or name == "LOCAL_RANK"]:
        monkeypatch.delenv(name)
    return lambda values: [monkeypatch.setenv(*pair) for pair in values.items()]


def test_a_process_by_itself_keeps_its_words(environment):
    environment({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert launched.launched() is None and launched.complete(["seed=1"]) == ["seed=1"]


@pytest.mark.parametrize("values", [TORCHRUN, SRUN])
def test_the_processes_there_are_become_devices_and_nodes(environment, values):
    environment(values)
    assert launched.complete([FOLDER]) == [FOLDER, "++trainer.devices=2", "++trainer.num_nodes=2"]
    assert launched.complete([FOLDER, "trainer.devices=2", "trainer.num_nodes=2"]) == [FOLDER, "trainer.devices=2", "trainer.num_nodes=2"]


@pytest.mark.parametrize(
    ("values", "words", "message"),
    [
        (
            TORCHRUN,
            ["trainer.devices=3"],
            "trainer.devices=3, but torchrun started the processes for trainer.devices=2: leave trainer.devices out",
        ),
        (SRUN, ["trainer.num_nodes=1"], "trainer.num_nodes=1, but srun started the processes for trainer.num_nodes=2"),
        (TORCHRUN, ["-m", "seed=0,1"], "a sweep starts the processes of its jobs itself: leave torchrun out, and give trainer.devices=2"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, [], "not the same number on each machine: give srun --ntasks-per-node=..."),
        ({"SLURM_NTASKS": "many"}, [], "SLURM_NTASKS='many', which is not a whole number"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, [], "this SLURM job has 4 tasks, but srun did not start this process"),
    ],
)
def test_what_cannot_be_one_run_is_refused(environment, values, words, message):
    environment(values)
    with pytest.raises(UserError, match=message):
        launched.complete([FOLDER, *words])


def test_resume_auto_without_a_folder_is_an_error(environment):
    environment(TORCHRUN)
    with pytest.raises(UserError, match=r"a new one each time: give hydra.run.dir="):
        launched.complete(["resume=auto"])


def test_a_recipe_of_one_process_names_the_launcher(environment):
    environment(TORCHRUN)
    with pytest.raises(UserError, match="recipe=probe runs in one process, but torchrun started 4: leave torchrun out"):
        launched.check_alone("probe")


@pytest.fixture
def port():
    return free_port()


@pytest.mark.e2e
@pytest.mark.ddp
def test_two_tasks_of_srun_take_the_advice_of_the_first_and_leave_one_run(tmp_path, port):
    output = [process.output(timeout=300) for process in srun(tmp_path, port)]
    results = list(tmp_path.glob("runs/*/*/result.json"))
    assert len(results) == 1, output
    assert json.loads(results[0].read_text())["test/accuracy"] > 0 and output[1][0].count("scenario=auto") == 0
    assert sum(out.count("scenario=auto: ") for out, _ in output) == 1


SLOW_DIGITS = """
import time

from ftlit.lit.datamodules import image_sources


def digits(input_spec, **options):
    time.sleep(18)
    return image_sources.digits_data(input_spec, **options)
"""


@pytest.mark.e2e
@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("start_both", [srun, by_lightning])
def test_processes_that_read_their_data_for_longer_than_the_limit_are_waited_for(tmp_path, port, start_both):
    (tmp_path / "slow.py").write_text(SLOW_DIGITS)
    words = ("scenario=large_similar", "schedule=all_at_once", "head=linear", "trainer.max_epochs=1", "data._target_=slow.digits")
    output = [process.output() for process in start_both(tmp_path, port, *words, "rank_timeout=0.25", "hydra.run.dir=run")]
    assert (tmp_path / "run/result.json").is_file(), output


@pytest.mark.e2e
@pytest.mark.ddp
def test_a_signal_to_one_of_two_processes_ends_both_with_a_checkpoint(tmp_path, port):
    words = (*LONG, "hydra.run.dir=run")
    first, second = srun(tmp_path, port, *words)
    best, deadline = tmp_path / "run/checkpoints/best.ckpt", time.monotonic() + 300
    while not best.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    second.send_signal(signal.SIGUSR1)
    output = [process.output(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (130, 0), output
    assert output[0][0].count("interrupted; the last checkpoint is saved. To resume: ") == 1 and "Traceback" not in output[0][1]


@pytest.mark.e2e
@pytest.mark.ddp
def test_a_silent_process_ends_the_other_with_a_line_after_the_timeout(tmp_path, port):
    words = (*LONG, "hydra.run.dir=run")
    first, second = srun(tmp_path, port, *words, "rank_timeout=0.25")
    best, deadline = tmp_path / "run/checkpoints/best.ckpt", time.monotonic() + 300
    while not best.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    second.send_signal(signal.SIGSTOP)
    try:
        _, errors = first.output(timeout=120)
    finally:
        second.kill()
        second.output()
    assert (
        first.returncode == 1
        and "process 0 stops: another process has not answered for 0.25 minutes (the limit set by rank_timeout)" in errors
    )
    assert "Traceback" not in errors and "resume=true" in errors


@pytest.mark.e2e
@pytest.mark.ddp
def test_a_job_of_one_task_starts_the_processes_of_its_run_and_never_its_neighbours_checkpoint(tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("of another job")
    slurm = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    process = start(tmp_path, "trainer=ddp_cpu", "scenario=small_similar", "hydra.run.dir=run", SLURM_JOB_NAME="train", **slurm)
    out, errors = process.output(timeout=300)
    assert process.returncode == 0, errors
    assert "accuracy" in out and (tmp_path / "run/result.json").exists()


@pytest.mark.e2e
def test_a_signal_to_all_processes_of_a_job_spares_those_that_load_images(tmp_path):
    words = (*LONG, "hydra.run.dir=run")
    process = start(tmp_path, *words, "data.num_workers=2", "cache=none")
    best, deadline = tmp_path / "run/checkpoints/best.ckpt", time.monotonic() + 300
    while not best.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    out, errors = process.output(timeout=120)
    assert process.returncode == 130 and out.splitlines()[-1].startswith("interrupted; the last checkpoint is saved. To resume: "), errors
    assert "DataLoader" not in errors and "Traceback" not in errors
