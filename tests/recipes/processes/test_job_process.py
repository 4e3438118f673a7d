"""A sweep runs exactly its jobs, each in its own folder up to its test metrics, with any number of processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import warm
from paths import ROOT, python_path

from ftlit.recipes.config.overrides import quote

pytestmark = [pytest.mark.e2e, pytest.mark.ddp]

TRAIN = (str(ROOT / "train.py"),)
MODULE = ("-m", "ftlit.cli.train")
FTLIT = ("-m", "ftlit.cli.main", "train")
FAST = ("debug=fast", "trainer.max_epochs=1", "data.num_workers=0")


def run(folder, program, *arguments, **environment):
    command = [sys.executable, *program, *arguments, "hydra.sweep.dir=sweep"]
    return warm.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=300)


def assert_jobs(folder, result, good, bad=(), plans=None):
    """Exactly the jobs `good` and `bad` ran, and only `good` wrote metrics, and plan and table to their logs, once each."""
    folders = {path.name for path in (folder / "sweep").iterdir() if path.is_dir()}
    assert folders == {str(number) for number in (*good, *bad)}, result.stderr
    done = {int(path.parent.name): json.loads(path.read_text()) for path in folder.rglob("result.json")}
    assert set(done) == set(good), result.stderr
    assert all(0 <= metrics["test/accuracy"] <= 1 for metrics in done.values())
    logs = {number: (folder / f"sweep/{number}/train.log").read_text() for number in (*good, *bad)}
    assert sum(log.count("shipped glyph.safetensors") for log in logs.values()) == (plans or len(good))
    assert sum(log.count(" checkpoint, metrics.csv") for log in logs.values()) == len(good)
    assert "shipped glyph.safetensors" not in result.stdout and " checkpoint, metrics.csv" not in result.stdout
    assert not (folder / "runs").exists()  # the folder of a single run
    for number in good:
        assert logs[number].count(f"config.yaml: {folder}/sweep/{number}\n") == 1
        line = rf"^{number + 1} of {len(logs)}, job {number} \(.*\): val accuracy 0.\d+, "
        assert len(re.findall(line, result.stdout, re.MULTILINE)) == 1


def failures(result):
    return [line for line in result.stderr.splitlines() if line.startswith("ftlit: ")]


def test_each_job_of_a_sweep_can_have_two_processes(tmp_path):
    arguments = ("scenario=small_similar,large_similar", "trainer=ddp_cpu", "trainer.devices=2")
    result = run(tmp_path, TRAIN, "-m", *arguments, *FAST, "trainer.max_epochs=3")
    assert result.returncode == 0, result.stderr
    assert_jobs(tmp_path, result, good=(0, 1))


@pytest.mark.slow
def test_a_job_of_one_process_can_be_followed_by_a_job_of_two(tmp_path):
    result = run(tmp_path, TRAIN, "-m", "trainer=ddp_cpu", "trainer.devices=1,2", "scenario=small_similar", *FAST)
    assert result.returncode == 0, result.stderr
    assert_jobs(tmp_path, result, good=(0, 1))


BROKEN = """
import os
from ftlit.models.heads import LinearHead

class Head(LinearHead):
    def forward(self, features):
        if self.training and os.environ.get("LOCAL_RANK") == "1":
            raise RuntimeError("this process is lost")
        return super().forward(features)
"""


def test_a_lost_process_ends_only_its_job(tmp_path):
    (tmp_path / "users_conf/head").mkdir(parents=True)
    (tmp_path / "users_conf/head/broken.yaml").write_text("_target_: broken.Head\n")
    (tmp_path / "broken.py").write_text(BROKEN)
    # the jobs differ in the timeout too, which changes no result
    arguments = ("trainer=cpu", "rank_timeout=9,10", "trainer.devices=1,2", "head=broken", "scenario=small_similar", *FAST)
    result = run(tmp_path, FTLIT, "--config-dir", "users_conf", "-m", *arguments, PYTHONPATH=python_path(tmp_path))
    assert result.returncode == 1, result.stderr
    assert_jobs(tmp_path, result, good=(0, 2), bad=(1, 3), plans=4)
    *lines, again = failures(result)
    assert again.startswith("ftlit: to run the jobs that have not finished: ftlit train --config-dir users_conf -m trainer=cpu")
    for number, lost, summary in zip((1, 3), lines[:2], lines[2:], strict=True):
        assert lost.startswith("ftlit: process 0 stops: another process failed")
        assert f"job {number} (" in summary and f"{tmp_path}/sweep/{number}" in summary
    first, third = (json.loads((tmp_path / f"sweep/{number}/result.json").read_text()) for number in (0, 2))
    assert first == third  # a failed job has no effect on the next one
    for number in range(4):
        log = " ".join((tmp_path / f"sweep/{number}/train.log").read_text().split())
        assert log.count("resume ftlit train --config-dir users_conf trainer=cpu") == 1


def test_a_user_error_is_one_line_with_its_job(tmp_path):
    result = run(tmp_path, MODULE, "-m", "trainer=cpu,ddp_cpu", "scenario=small_similar", "probe.poolings=[2x2]")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert_jobs(tmp_path, result, good=(), bad=(0, 1))
    lines = failures(result)
    for number, error, summary in zip((0, 1), lines[:2], lines[2:4], strict=True):
        assert f"job {number} (" in error and "needs probe.poolings=[average]" in error
        assert f"job {number} (" in summary and "failed with status 2" in summary
    assert lines[4] == "ftlit: jobs 0, 1 fail again until the option or file that the error names is changed"


def test_ctrl_c_ends_the_sweep_and_every_process_of_its_job(tmp_path):
    arguments = (
        "-m",
        "trainer=ddp_cpu",
        "trainer.devices=2",
        "scenario=large_similar",
        "head=linear",
        "data.per_class=4",
        "trainer.limit_val_batches=1",
        "seed=0,1",
        "trainer.max_epochs=500",
        "hydra.sweep.dir=sweep",
    )
    with (tmp_path / "out").open("w") as out:
        process = warm.start([sys.executable, *TRAIN, *arguments], cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        last, deadline = tmp_path / "sweep/0/checkpoints/last.ckpt", time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130, (tmp_path / "out").read_text()
    assert last.exists() and not (tmp_path / "sweep/1").exists()
    output = (tmp_path / "out").read_text()
    assert "To resume: " in (tmp_path / "sweep/0/train.log").read_text() and "Traceback" not in output
    assert "ftlit: to run the jobs that have not finished: " in output
    assert re.search(r"ftlit: job 0 \(.*\) was interrupted, its folder", output) and "failed with" not in output
    assert not list(running(tmp_path))


def running(folder):
    """Yield the processes whose current folder is this one."""
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # ended meanwhile
            if path.readlink() == folder:
                yield path


def test_resume_in_a_folder_without_a_run_is_a_user_error(tmp_path):
    result = warm.run([sys.executable, *TRAIN, "resume=true"], cwd=tmp_path, timeout=100)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{tmp_path}/runs/" in result.stderr and "holds no run: give hydra.run.dir=... with the folder of the run" in result.stderr
    result = warm.run([sys.executable, *TRAIN, "resume=auto"], cwd=tmp_path, timeout=100)
    assert result.returncode == 2 and "the default is a new one each time: give hydra.run.dir=" in result.stderr


def test_a_folder_with_special_characters_is_quoted():
    assert quote("it's, a=b") == r"'it\'s, a=b'"
