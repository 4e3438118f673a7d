"""One thread a process: for nets this small threads cost more than they give, most of all where several processes share the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
