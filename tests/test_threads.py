"""Small problems run on one thread, and threads of the command line leave their core to other programs while they wait."""

import os
import subprocess
import sys

import pytest
import torch

from ftlit.probes.logme import logme
from ftlit.probes.solver import solve
from ftlit.threads import MIN_OPERATIONS, threads_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_only_small_problems_run_on_one_thread(two_threads):
    with threads_for(MIN_OPERATIONS - 1):
        assert torch.get_num_threads() == 1
    with threads_for(MIN_OPERATIONS):
        assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_restored_also_after_an_error(two_threads):
    with pytest.raises(RuntimeError), threads_for(1):
        raise RuntimeError
    assert torch.get_num_threads() == 2


def test_blocks_in_several_threads_of_python_restore_the_first_number(two_threads):
    first, second = threads_for(1), threads_for(1)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == 2


def softmax(features, labels):
    solve(features, labels, 3, [0.1], "softmax")


def ridge(features, labels):
    solve(features, labels, 3, [0.1], "ridge")


@pytest.mark.parametrize("small", [softmax, ridge, logme])
def test_small_fits_set_one_thread(two_threads, monkeypatch, small):
    numbers = []
    set_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda number: (numbers.append(number), set_threads(number)))
    small(torch.randn(30, 4), torch.arange(30) % 3)
    assert numbers == [1, 2]


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_of_the_command_line_wait_passively_unless_the_user_says_otherwise(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    code = "import sys, os, ftlit.cli; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"]
