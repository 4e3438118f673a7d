"""Jobs of a sweep that run side by side share the GPUs and the cores of the machine."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from ftlit.cli.sweep import sweep_devices
from ftlit.cli.sweep.sweep_devices import ALL, GPU_VARIABLE, GPUS, THREADS_VARIABLE, TO_RUN, launch_beside, take_gpu


@pytest.fixture
def two_gpus(monkeypatch):
    for name in (GPU_VARIABLE, GPUS, TO_RUN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sweep_devices, "INITIAL_ENVIRONMENT", {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


def config(**trainer):
    return OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 1, **trainer}})


def test_a_job_takes_the_gpu_of_its_number_and_its_process_keeps_it(two_gpus):
    assert take_gpu(config(), 3) == "1" == os.environ[GPU_VARIABLE] == sweep_devices.INITIAL_ENVIRONMENT[GPU_VARIABLE]
    assert take_gpu(config(), 4) is None and os.environ[GPU_VARIABLE] == "1"
    two_gpus.delenv(GPU_VARIABLE)
    assert take_gpu(config(devices="1", accelerator="gpu"), 4) == "0"


@pytest.mark.parametrize("trainer", [{"devices": -1}, {"devices": [1]}, {"accelerator": "cpu"}, {"num_nodes": 2}])
def test_other_devices_of_the_trainer_are_left(two_gpus, trainer):
    assert take_gpu(config(**trainer), 1) is None


def test_a_single_gpu_and_a_process_that_uses_one_are_left(two_gpus):
    two_gpus.setattr(torch.cuda, "is_initialized", lambda: True)
    assert take_gpu(config(), 1) is None
    two_gpus.setattr(torch.cuda, "is_initialized", lambda: False)
    two_gpus.setattr(torch.cuda, "device_count", lambda: 1)
    assert take_gpu(config(), 1) is None


def test_the_gpus_that_the_user_lists_are_shared_and_jobs_that_are_done_take_none(two_gpus):
    two_gpus.setenv(GPU_VARIABLE, "5,GPU-7,9")
    two_gpus.setenv(TO_RUN, "3 6 9")
    chosen = []
    for number in (3, 6, 9, 4):  # the last one is of a later launch
        two_gpus.setenv(GPU_VARIABLE, "5,GPU-7,9")
        chosen.append(take_gpu(config(), number))
    assert chosen == ["5", "GPU-7", "9", "GPU-7"]
    two_gpus.setenv(GPU_VARIABLE, "7")
    assert take_gpu(config(), 1) is None and os.environ[GPU_VARIABLE] == "7"


@pytest.mark.parametrize(
    ("given", "before", "seen"), [("", ALL, "1"), ("0", ALL, "1"), ("", "4,6", "6"), ("", "", None), ("2,3", ALL, "3")]
)
def test_what_submitit_sets_on_one_machine_is_undone_unless_it_gives_a_job_several(two_gpus, given, before, seen):
    two_gpus.setenv(GPU_VARIABLE, given)
    two_gpus.setenv(GPUS, before)
    assert take_gpu(config(), 1) == seen
    assert os.environ[GPU_VARIABLE] == (seen or "")


def test_a_job_with_several_gpus_sees_all_of_them_beside_submitit(two_gpus):
    two_gpus.setenv(GPU_VARIABLE, "")
    two_gpus.setenv(GPUS, ALL)
    assert take_gpu(config(devices=2), 0) is None and GPU_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("launcher", "threads", "seen"),
    [
        ("basic", None, (None, None, None)),
        ("joblib", None, ("1 3", None, None)),
        ("submitit_local", None, ("1 3", "4", "6,7")),
        ("submitit_local", "8", ("1 3", "8", "6,7")),
    ],
)
def test_the_processes_of_the_jobs_are_told_what_they_share(two_gpus, launcher, threads, seen):
    two_gpus.setattr(sweep_devices, "usable_cores", lambda: 8 + 1)
    two_gpus.setenv(GPU_VARIABLE, "6,7")
    two_gpus.delenv(THREADS_VARIABLE, raising=False)
    if threads:
        two_gpus.setenv(THREADS_VARIABLE, threads)
    before = dict(os.environ)

    def launch(jobs, initial_job_idx):
        return jobs, initial_job_idx, tuple(os.environ.get(name) for name in (TO_RUN, THREADS_VARIABLE, GPUS))

    config = OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": launcher}}}})
    assert launch_beside(config, launch, [["seed=1"]], 1, [1, 3]) == ([["seed=1"]], 1, seen)
    assert dict(os.environ) == before
