"""Settings of every test process and of the processes that it starts."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile

import pytest
from hypothesis import settings

from ftlit.errors import named_options

# One thread per process: more threads slow down such small networks, in particular if several processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that a shell starts in the background ignore Ctrl-C, and so do their children; the tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What programs print without a terminal is as wide as this variable of the shell.
os.environ.pop("COLUMNS", None)

# No test reads or writes the feature cache of the user who runs it.
if "FTLIT_CACHE" not in os.environ:
    os.environ["FTLIT_CACHE"] = tempfile.mkdtemp(prefix="ftlit-features-")
    atexit.register(shutil.rmtree, os.environ["FTLIT_CACHE"], ignore_errors=True)

# No deadlines: the machine may be shared with other work.
settings.register_profile("ftlit", deadline=None)
settings.load_profile("ftlit")

collect_ignore = ["fixtures", "support"]

PROCESS_GROUP_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE")


def pytest_collection_finish():
    """Exclude all that is imported and collected by now from garbage collections: they take seconds in total."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def options_in_errors():
    """Errors name options as on the command line, also where a test calls the function itself; in Python: `tests/test_errors.py`."""
    with named_options():
        yield


@pytest.fixture(autouse=True)
def end_process_group():
    """End a process group that a test has started, and remove its port from the environment, which later tests pass to programs."""
    before = {name: os.environ.get(name) for name in PROCESS_GROUP_VARIABLES}
    yield
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
