"""What a block changes for the whole process is as before afterwards, also where it raises."""

import logging
import os
import sys
import warnings
from contextlib import suppress

import pytest

from ftlit.recipes.run.process_state import (
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
    return sys.argv[:], dict(os.environ), warnings.formatwarning, warnings.filters[:], level, torch.get_deterministic_debug_mode()


@pytest.mark.parametrize("error", [None, ValueError])
def test_command_line_environment_and_warnings_are_restored(error, monkeypatch):
    monkeypatch.setenv("FTLIT_TEST_OLD", "old")
    before = state()
    with suppress(ValueError), process_state(argv=["program", "word"], environment={"FTLIT_TEST_NEW": "1", "FTLIT_TEST_OLD": None}):
        assert sys.argv == ["program", "word"] and os.environ["FTLIT_TEST_NEW"] == "1" and "FTLIT_TEST_OLD" not in os.environ
        hide_warnings()
        assert warnings.formatwarning("one\nline", UserWarning, "file", 1) == "warning: one\nline\n"
        os.environ["FTLIT_TEST_OTHER"] = "2"
        if error:
            raise error
    assert state() == before


def test_a_job_leaves_seed_and_determinism_as_they_were():
    import torch
    from lightning.pytorch import Trainer, seed_everything

    before = state()
    with process_state(), job_state():
        seed_everything(3, verbose=False)
        Trainer(deterministic=True, accelerator="cpu", logger=False)
        assert torch.are_deterministic_algorithms_enabled()
    assert state() == before


@pytest.mark.parametrize(("given", "wanted"), [(None, False), ("", False), ("1", True)])
def test_a_traceback_is_shown_where_the_user_asked_hydra_for_it_also_in_processes_that_a_job_starts(given, wanted, monkeypatch):
    monkeypatch.delenv(TRACEBACK, raising=False)
    if given is None:
        monkeypatch.delenv(HYDRA_FULL_ERROR, raising=False)
    else:
        monkeypatch.setenv(HYDRA_FULL_ERROR, given)
    with process_state(environment=error_environment()):
        assert os.environ[HYDRA_FULL_ERROR] == "1" and wants_traceback() == wanted
        with job_state():
            assert (HYDRA_FULL_ERROR in os.environ) == wanted and wants_traceback() == wanted
        with process_state(environment=error_environment()):  # a launcher's process
            assert wants_traceback() == wanted
    assert wants_traceback() == wanted
