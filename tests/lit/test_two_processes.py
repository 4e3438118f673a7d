"""Invariant 6: after every epoch two processes hold the same bits, and they equal one process on the same global batch."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from paths import ROOT, python_path
from paths import SUPPORT as FOLDER

pytestmark = [pytest.mark.e2e, pytest.mark.ddp]

CASES = ["epoch", "step", "metric", "accumulation and clipping", "frozen statistics", "affine", "layer parts", "features", "probe head"]
SHARDED = ["fsdp2"] if hasattr(torch.cpu.Stream, "record_event") else []  # torch 2.6 cannot shard on CPUs


def launch(folder: Path, devices: int, *cases: str) -> dict[str, list]:
    """Run tests/support/ddp_program.py; return the notes of each process, by case."""
    out = folder / f"{devices}"
    out.mkdir()
    command = [sys.executable, str(FOLDER / "ddp_program.py"), str(out), *cases]
    done = warm.run(command, env={**os.environ, "DEVICES": str(devices)}, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return {case: [torch.load(out / f"{case}.{rank}", weights_only=True) for rank in range(devices)] for case in cases}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(
        tmp_path_factory.mktemp("two"),
        2,
        *CASES,
        "average",
        "metrics",
        "uneven",
        "plain loaders",
        "delayed values",
        "BackboneFinetuning",
        *SHARDED,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("one"), 1, *CASES, "average", "metrics", "uneven", "plain loaders", *SHARDED)


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_bits_after_every_epoch(two, case):
    first, second = two[case]
    assert len(first["weights"]) == 4 and first["stages"] == second["stages"]
    assert all(distance(a, b) == 0 for a, b in zip(first["weights"], second["weights"], strict=True))


def test_two_processes_hold_the_same_average_which_equals_that_of_one(two, one):
    first, second = (notes["weights"][-1] for notes in two["average"])
    alone = one["average"][0]["weights"]
    assert distance(first, second) == 0 and distance(first, alone[-1]) < 1e-12
    assert distance(alone[-1], alone[-2]) > 1e-6  # training ended with other weights


@pytest.mark.parametrize("case", [*CASES, *SHARDED])
def test_two_processes_equal_one_after_every_epoch(two, one, case):
    together, alone = two[case][0], one[case][0]
    assert together["stages"] == alone["stages"]
    assert all(distance(a, b) < 1e-10 for a, b in zip(together["weights"], alone["weights"], strict=True))


def test_two_processes_store_the_same_bits_of_features_as_one(two, one):
    together, alone = two["features"][0]["stored"], one["features"][0]["stored"]
    assert len(together) == 2 and together.keys() == alone.keys()
    assert all(len(rows) == 160 + 37 and torch.equal(rows, alone[key]) for key, rows in together.items())


def test_an_error_in_one_process_ends_both_with_its_message(tmp_path):
    environment = {**os.environ, "DEVICES": "2"}
    command = [sys.executable, str(FOLDER / "ddp_program.py"), str(tmp_path), "no room"]
    warm.run(command, env=environment, timeout=200)
    output = torch.load(tmp_path / "no room.0", weights_only=True)["error"]
    assert output.startswith("process 1: features need ") and "100 B are free" in output and "\n" not in output


@pytest.mark.parametrize("case", [*CASES, *SHARDED])
def test_every_case_passes_through_its_stages(two, case):
    assert two[case][0]["stages"] == [0, 1, 2, 2]


@pytest.mark.parametrize("case", CASES)
def test_only_the_gradients_of_trainable_parameters_are_sent(two, case):
    run = two[case][0]
    sizes = [{name: p.numel() * p.element_size() for name, p in weights.items()} for weights in run["weights"]]
    expected = [sum(size[name] for name in names) for size, names in zip(sizes, run["trains"], strict=True)]
    assert run["bytes"] == expected and run["bytes"][0] < run["bytes"][1] < run["bytes"][2]


def test_evaluation_metrics_of_two_processes_equal_those_of_one(two, one):
    """37 images: a padding sampler would count one of them twice."""
    together, alone = two["metrics"][0]["metrics"], one["metrics"][0]["metrics"]
    assert together.keys() == alone.keys() >= {"val/accuracy", "val/f1", "val/loss", "test/accuracy"}
    for name in together:
        assert together[name] == (pytest.approx(alone[name], rel=1e-6) if name.endswith("loss") else alone[name])


def test_two_processes_equal_one_on_images_that_they_cannot_share_evenly(two, one):
    """Weights after each epoch and training metrics, for several remainders: no image counts twice."""
    (first, second), (alone,) = two["uneven"], one["uneven"]
    assert len(alone["weights"]) == 15
    assert all(distance(a, b) < 1e-6 for a, b in zip(first["weights"], alone["weights"], strict=True))
    assert all(distance(a, b) == 0 for a, b in zip(first["weights"], second["weights"], strict=True))


def test_two_processes_equal_one_with_the_loaders_of_a_user(two, one):
    """Lightning's sampler repeats an image where the processes cannot share them evenly."""
    (first, second), (alone,) = two["plain loaders"], one["plain loaders"]
    assert first.keys() == alone.keys() and any(name.endswith("val/accuracy") for name in first)
    assert distance(first, alone) < 1e-6 and distance(first, second) == 0


def test_both_processes_read_the_sums_of_the_step_before(two):
    """Each process put (rank 0: the step, rank 1: ten times the step; 1)."""
    sums = [[], [11.0, 2.0], [22.0, 2.0], [33.0, 2.0], []]
    assert [notes["taken"] for notes in two["delayed values"]] == [sums, sums]


def test_under_backbone_finetuning_of_lightning_the_weights_diverge(two):
    """Negative control (Lightning#20340): if this test fails, rewrapping is no longer needed."""
    first, second = two["BackboneFinetuning"]
    assert distance(first["weights"][-1], second["weights"][-1]) > 1e-6


DYING = """
import os, signal
from lightning.pytorch import Callback

class Die(Callback):
    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def read_once(path, start):
    """Return the text of a file when a line begins with `start`, at the latest after 60 s."""
    deadline = time.monotonic() + 60
    while not re.search(rf"^{start}.*\n", path.read_text(), re.MULTILINE) and time.monotonic() < deadline:
        time.sleep(0.1)
    return path.read_text()


SHORT = ("trainer=ddp_cpu", "scenario=large_similar", "trainer.max_epochs=3", "data.per_class=20", "data.batch_size=16", "report=false")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_with_a_one_line_message(tmp_path, rank):
    (tmp_path / "dying.py").write_text(DYING)
    callback = ["+callbacks.die._target_=dying.Die", f"+callbacks.die.rank={rank}"]
    command = [sys.executable, str(ROOT / "train.py"), *SHORT, *callback]
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path)}
    with (tmp_path / "err").open("w") as err:
        run = warm.start(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=err)
    assert run.wait(240) in (1, -signal.SIGKILL)
    output = read_once(tmp_path / "err", "ftlit: ")
    (line,) = [line for line in output.splitlines() if line.startswith("ftlit: ")]
    assert line.startswith(f"ftlit: process {1 - rank} stops: another process failed") and "resume=true" in line
    assert "Traceback" not in output


def test_ctrl_c_ends_both_processes_and_the_run_can_be_resumed(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *SHORT, "hydra.run.dir=run"]
    with (tmp_path / "out").open("w") as out:
        run = warm.start(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    last = tmp_path / "run/checkpoints/last.ckpt"
    while not last.exists() and run.poll() is None:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert run.wait(240) == 130
    output = (tmp_path / "out").read_text()
    assert "resume=true" in output and "Traceback" not in output
    done = warm.run([*command, "resume=true"], cwd=tmp_path, timeout=400)
    assert done.returncode == 0 and "resuming from" in done.stdout and "trained in" in done.stdout
