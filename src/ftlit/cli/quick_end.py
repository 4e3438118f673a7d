"""End a program without freeing its objects one by one, which takes most of a second where torch is imported."""

import atexit
import os
import sys
import threading


def end_at_once() -> None:
    """End the process with status 0 after its exit handlers, as mypy does. It returns where nothing would be saved or more than objects is
    to be closed: torch is not imported, processes train together, or another thread still runs.
    """
    torch = sys.modules.get("torch")
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if torch is None or others or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed before the program began
        stream.flush()
    os._exit(0)
