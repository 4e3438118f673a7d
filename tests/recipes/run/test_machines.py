"""Several machines are one run: two agents of torchrun on this one, each with a process, a working folder, and a cache or a shared one."""

import hashlib
import json
import os
import signal
import time

import pytest
from launches import free_port, torchrun_nodes
from omegaconf import OmegaConf
from PIL import Image

from ftlit import UserError
from ftlit.recipes.processes.launched import SRUN, TORCHRUN, Launched, launched
from ftlit.recipes.run import machines

COUNTING = """
import os
from pathlib import Path

from lightning.pytorch import Callback
from ftlit.features import fill, image_hashes
from ftlit.lit.features import extraction_pass


def noted(kind, function, number):
    def call(*arguments, **options):
        result = function(*arguments, **options)
        with Path(__file__).with_name(f"{kind}.{os.environ['RANK']}").open("a") as file:
            print(number(result), file=file)
        return result

    return call


extraction_pass.fill = noted("features", fill.fill, int)
image_hashes.content_hash = noted("hashes", image_hashes.content_hash, lambda _: 1)


class Count(Callback):
    pass


def folder(input_spec, **options):
    from ftlit.lit.datamodules.image_sources import folder_data

    return folder_data(input_spec, **options)
"""
ODD = """
import os, signal
from pathlib import Path

from lightning.pytorch import Callback

class Odd(Callback):
    def __init__(self, number):
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            Path("pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), getattr(signal, self.number))
"""


@pytest.fixture
def folders(tmp_path):
    found = [tmp_path / name for name in ("first", "second")]
    for folder in found:
        folder.mkdir()
        (folder / "counting.py").write_text(COUNTING)
        (folder / "odd.py").write_text(ODD)
    return found


def run(folders, *words, caches=None):
    """Both agents, after they have ended: status, and what they printed."""
    agents = torchrun_nodes(folders, free_port(), *words, caches=caches)
    output = [agent.output(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], output
    return output


def counted(folders, kind):
    """The sum of what each process has noted."""
    files = [folder / f"{kind}.{rank}" for rank, folder in enumerate(folders)]
    return [sum(map(int, file.read_text().split())) if file.is_file() else 0 for file in files]


FIT = ("scenario=small_similar", "data.per_class=4", "+callbacks.count._target_=counting.Count")


@pytest.mark.e2e
@pytest.mark.ddp
def test_machines_with_a_cache_each_compute_each_feature_once_and_hold_all(folders, tmp_path):
    caches = [folder / "cache" for folder in folders]
    run(folders, *FIT, f"hydra.run.dir={tmp_path}/run", caches=caches)
    shares = counted(folders, "features")
    assert json.loads((tmp_path / "run/result.json").read_text())["test/accuracy"] > 0
    assert sum(shares) == 40 + 359 + 368 and min(shares) > 0
    sizes = [sum(file.stat().st_size for file in cache.glob("*/*.safetensors")) for cache in caches]
    assert min(sizes) > 0.9 * max(sizes)


@pytest.mark.e2e
@pytest.mark.ddp
@pytest.mark.slow
def test_machines_with_one_cache_take_the_advice_of_the_first_and_compute_each_feature_once(folders, tmp_path):
    words = ("data.per_class=4", "trainer.max_epochs=1", "+callbacks.count._target_=counting.Count", f"hydra.run.dir={tmp_path}/run")
    (first, _), (second, _) = run(folders, *words, caches=[tmp_path / "cache"] * 2)
    assert first.count("scenario=auto: ") == 1 and "scenario=auto" not in second
    assert "2 x CPU" in first
    assert sum(counted(folders, "features")) <= 40 + 359 + 368  # the advice has computed some before the callback counts


@pytest.mark.e2e
@pytest.mark.ddp
@pytest.mark.slow
def test_each_machine_hashes_its_files_once(folders, tmp_path):
    for i in range(30):
        (tmp_path / f"photos/{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 8 * i).save(tmp_path / f"photos/{'ab'[i % 2]}/{i}.png")
    words = ("scenario=small_similar", "data=folder", f"data.root={tmp_path}/photos", f"hydra.run.dir={tmp_path}/run")
    run(folders, *words, "data._target_=counting.folder", caches=[folder / "cache" for folder in folders])
    assert counted(folders, "hashes") == [30, 30]


def environment_of(monkeypatch, values):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")) or name == "LOCAL_RANK"]:
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("rank", "local", "leader"), [(0, 0, 0), (1, 1, 0), (2, 0, 2), (3, 1, 2)])
def test_the_first_process_of_a_machine_is_known(monkeypatch, rank, local, leader):
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    environment_of(monkeypatch, torchrun)
    assert launched() == Launched(TORCHRUN, rank, 4, 2, leader)
    slurm = {"SLURM_STEP_ID": 0, "SLURM_NTASKS": 4, "SLURM_PROCID": rank, "SLURM_STEP_NUM_NODES": 2, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    environment_of(monkeypatch, {**slurm, "SLURM_LOCALID": local, "SLURM_NODEID": rank // 2})
    assert launched() == Launched(SRUN, rank, 4, 2, leader)


def test_processes_that_srun_deals_out_in_turn_wait_for_no_other_machine(monkeypatch):
    """With `--distribution=cyclic` processes 0 and 2 are on the first machine."""
    slurm = {"SLURM_STEP_ID": 0, "SLURM_NTASKS": 4, "SLURM_STEP_NUM_NODES": 2, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    leaders = {}
    for rank in range(4):
        environment_of(monkeypatch, {**slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank // 2, "SLURM_NODEID": rank % 2})
        leaders[rank] = launched().leader
    assert all(leaders[leader] == leader for leader in leaders.values())  # each that is waited for goes ahead


SAME = f"{hashlib.sha256(b'seed: 0' + bytes([10])).hexdigest()} "  # the folder of the run is shared
RECORD = {"class_names": ["a", "b"], "splits": {split: {"images": 4, "digest": "a"} for split in ("train", "val", "test")}}


@pytest.mark.parametrize(
    ("wrote", "message"),
    [
        (
            "0" * 64 + " {}",
            r"process 1 does not see in .*run what process 0 wrote there: give hydra",
        ),
        (
            SAME + json.dumps({**RECORD, "splits": {**RECORD["splits"], "val": {"images": 5, "digest": "a"}}}),
            r"process 1 reads other data than process 0 \(data.root=photos, val: 5 examples in process 0, 4 here\): copy the same files",
        ),
        (SAME + json.dumps({**RECORD, "splits": {**RECORD["splits"], "train": {"images": 4, "digest": "b"}}}), "train: other content or l"),
        (SAME + json.dumps({**RECORD, "class_names": ["b", "a"]}), "other classes"),
    ],
)
def test_a_folder_that_is_not_shared_and_other_data_are_errors(monkeypatch, tmp_path, wrote, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed: 0\n")
    monkeypatch.setattr(machines, "APPEAR_SECONDS", 0.0)
    monkeypatch.setattr(machines, "launched", lambda: Launched(TORCHRUN, 1, 2, 2, 1))
    monkeypatch.setattr(machines, "record_of", lambda data: RECORD)
    monkeypatch.setattr(machines, "agreed", lambda name, decide: wrote)
    with pytest.raises(UserError, match=message):
        machines.check_machines(OmegaConf.create({"paths": {"run": str(tmp_path / "run")}, "data": {"root": "photos"}}), None)


@pytest.mark.e2e
@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(("number", "reason"), [("SIGKILL", "another process failed"), ("SIGSTOP", "another process has not answered")])
def test_a_process_that_dies_or_hangs_on_one_machine_ends_the_other_with_the_line_that_resumes(folders, tmp_path, number, reason):
    words = (
        "scenario=large_similar",
        "schedule=all_at_once",
        "head=linear",
        "trainer.max_epochs=50",
        "data.per_class=4",
        "rank_timeout=0.3",
    )
    odd = ("+callbacks.odd._target_=odd.Odd", f"+callbacks.odd.number={number}")
    first, second = torchrun_nodes(folders, free_port(), *words, *odd, f"hydra.run.dir={tmp_path}/run")
    deadline = time.monotonic() + 200
    while not (folders[1] / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    try:
        _, errors = first.output(timeout=120)
        assert time.monotonic() - began < 60
    finally:
        os.kill(int((folders[1] / "pid").read_text()), signal.SIGKILL) if number == "SIGSTOP" else None
        second.output(timeout=120)
    (line,) = [line for line in errors.splitlines() if line.startswith("ftlit: ")]
    assert line.startswith(f"ftlit: process 0 stops: {reason}") and line.endswith("resume=true") and "trainer.num_nodes" not in line
