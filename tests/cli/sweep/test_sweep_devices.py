"""Jobs of a sweep that run side by side are spread over the GPUs."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from ftlit.cli.sweep import sweep_devices
from ftlit.cli.sweep.sweep_devices import GPU_VARIABLE, take_gpu


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.delenv(GPU_VARIABLE, raising=False)
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
