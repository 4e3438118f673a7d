"""The process that forks the programs of `warm`: it has imported the big packages, and nothing of ftlit."""

import atexit
import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import warm
from warm import receive, send

IMPORTS = (
    *("torch", "torchvision", "torchvision.transforms.v2", "torchmetrics", "lightning.pytorch", "hydra", "rich.progress"),
    *("sklearn.datasets", "sklearn.manifold", "safetensors.torch"),
)


def serve(connection: socket.socket, last: bool = False) -> None:
    """Fork a program for each request that asks for one, answer with its number, or with the status of one; end with the connection.

    Args:
        connection: to the process that asks.
        last: whether the programs end too: a test process that was killed leaves none.
    """
    programs: set[int] = set()
    for number in (signal.SIGINT, signal.SIGTERM):  # of the group: meant for the programs
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            request, files = receive(connection)
        except (EOFError, OSError):  # that process has ended
            for program in programs if last else ():
                os.kill(program, signal.SIGKILL)
            os._exit(0)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            programs.discard(pid)
            send(connection, os.waitstatus_to_exitcode(status) if pid else None)
            continue
        child = os.fork()
        if child == 0:
            connection.close()
            _become(request, files)
        for descriptor in files:
            os.close(descriptor)
        programs.add(child)
        send(connection, child)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Become that program; does not return."""
    if request.get("start_new_session"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warm.SERVERS[:] = [_server_within(files)]
    subprocess.Popen = warm.StartedPopen  # type: ignore[misc]
    for descriptor, number in zip(files, (0, 1, 2), strict=True):
        os.dup2(descriptor, number)
    for descriptor in set(files) - {0, 1, 2}:
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    _set_rank()
    status = _run_program(*request["words"])
    with suppress(BaseException):
        threading._shutdown()  # as Python ends: pools of processes are told before what waits for them
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _set_rank() -> None:
    """Set what Lightning and torchmetrics have read from the environment when they were imported."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from torchmetrics.utilities.prints import rank_zero_only as torchmetrics_rank_zero_only

    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK") if name in os.environ]
    rank_zero_only.rank = int(ranks[0]) if ranks else 0
    torchmetrics_rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))


def _server_within(files: list[int]) -> warm.Server:
    """A fork of this process, before it has become anything, that starts the programs that it starts."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        for descriptor in (ours.detach(), *files):
            os.close(descriptor)
        serve(theirs)
    theirs.close()
    return warm.Server(ours)


def _run_program(first: str, *rest: str) -> int:
    """Run `python FIRST REST` in this process. Returns its exit status."""
    sys.orig_argv = [sys.executable, first, *rest]
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = [os.getcwd() if first == "-m" else str(Path(first).resolve().parent), *filter(None, path)]
    try:
        if first == "-m":
            sys.argv = list(rest)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in IMPORTS:
        __import__(name)
    gc.freeze()  # a collection in a program then skips what is imported here: a tenth of its CPU time
    serve(socket.socket(fileno=int(sys.argv[1])), last=True)
