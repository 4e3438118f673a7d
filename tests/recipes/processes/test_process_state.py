"""Changes to the whole process are undone where their block ends, also after an error."""

import logging
import os
import sys
import warnings
from contextlib import suppress

import pytest

from ftlit.recipes.processes.process_state import (
    HYDRA_FULL_ERROR,
    TRACEBACK,
    error_environment,
    hide_warnings,
    job_state,
    process_state,
    wants_traceback,
)


def state():
    import torch

    level = logging.getLogger("lightning.pytorch").level
    torch_settings = (torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision())
    return sys.argv[:], dict(os.environ), warnings.formatwarning, warnings.filters[:], level, torch_settings


@pytest.mark.parametrize("error", [None, ValueError])
def test_command_line_environment_and_warnings_are_restored(error, monkeypatch):
    monkeypatch.setenv("FTLIT_TEST_OLD", "old")
    before = state()
    with suppress(ValueError), process_state(argv=["program", "argument"], environment={"FTLIT_TEST_NEW": "1", "FTLIT_TEST_OLD": None}):
        assert sys.argv == ["program", "argument"] and os.environ["FTLIT_TEST_NEW"] == "1" and "FTLIT_TEST_OLD" not in os.environ
        hide_warnings()
        assert warnings.formatwarning("one\nline", UserWarning, "file", 1) == "warning: one\nline\n"
        os.environ["FTLIT_TEST_OTHER"] = "2"
        if error:
            raise error
    assert state() == before


def test_a_job_restores_seed_determinism_and_precision_of_the_process():
    import torch
    from lightning.pytorch import Trainer, seed_everything

    before = state()
    with process_state(), job_state():
        seed_everything(3, verbose=False)
        Trainer(deterministic=True, accelerator="cpu", logger=False)
        torch.set_float32_matmul_precision("high")
        assert torch.are_deterministic_algorithms_enabled()
    assert state() == before


@pytest.mark.parametrize(("given", "expected"), [(None, False), ("", False), ("1", True)])
def test_hydra_full_error_asks_for_a_traceback_also_in_processes_of_a_job(given, expected, monkeypatch):
    monkeypatch.delenv(TRACEBACK, raising=False)
    if given is None:
        monkeypatch.delenv(HYDRA_FULL_ERROR, raising=False)
    else:
        monkeypatch.setenv(HYDRA_FULL_ERROR, given)
    with process_state(environment=error_environment()):
        assert os.environ[HYDRA_FULL_ERROR] == "1" and wants_traceback() == expected
        with job_state():
            assert (HYDRA_FULL_ERROR in os.environ) == expected and wants_traceback() == expected
        with process_state(environment=error_environment()):  # a launcher's process
            assert wants_traceback() == expected
    assert wants_traceback() == expected
