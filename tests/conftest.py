"""What every test process, and every process that it starts, begins with."""

import atexit
import os
import shutil
import signal
import tempfile

# One thread a process: for nets this small threads cost more than they give, most of all where several processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and they hand that on; the tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test reads or leaves features in the store of the person who runs it.
if "FTLIT_CACHE" not in os.environ:
    os.environ["FTLIT_CACHE"] = tempfile.mkdtemp(prefix="ftlit-features-")
    atexit.register(shutil.rmtree, os.environ["FTLIT_CACHE"], ignore_errors=True)

collect_ignore = ["fixtures", "support"]
