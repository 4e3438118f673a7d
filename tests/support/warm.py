"""`run`: as `subprocess.run` of this Python, but forked from a process that has imported torch, Lightning and Hydra already, which takes
each run some seconds otherwise. ftlit itself is imported anew each time. Where there is no fork, and for `-c`, it is `subprocess.run`.
"""

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

IMPORTS = ("torch", "torchvision", "torchmetrics", "lightning.pytorch", "hydra", "sklearn.base", "rich.progress", "safetensors.torch")
STARTED: list[subprocess.Popen[str]] = []


def run(
    command: Sequence[Any], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT ...` or `python -m MODULE ...` of this interpreter, with what it printed.

    Raises:
        subprocess.TimeoutExpired: it was killed after so many seconds.
    """
    command = [str(word) for word in command]
    env, cwd = dict(os.environ if env is None else env), Path.cwd() if cwd is None else cwd
    if not hasattr(os, "fork") or command[1] == "-c":
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    assert command[0] == sys.executable
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"words": command[1:], "cwd": str(cwd), "env": env, "out": str(out), "err": str(err), "timeout": timeout}
        status = _ask(asked)
        if status is None:
            raise subprocess.TimeoutExpired(command, timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())


def _ask(asked: dict[str, Any]) -> int | None:
    if not STARTED or STARTED[0].poll() is not None:
        STARTED[:] = [subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)]
        atexit.register(STARTED[0].kill)
    server = STARTED[0]
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())  # type: ignore[no-any-return]


def serve() -> None:
    """A fork for each line that comes in; its exit status goes out, `null` where it took too long."""
    for name in IMPORTS:
        __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        print(json.dumps(_waited(child, asked["timeout"])), flush=True)


def _waited(child: int, timeout: float) -> int | None:
    def too_late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _become(asked: dict[str, Any]) -> None:
    """Become that run; does not return."""
    os.setsid()  # whatever it starts ends with it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    first, *rest = asked["words"]
    sys.orig_argv = [sys.executable, first, *rest]
    path = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = [asked["cwd"] if first == "-m" else str(Path(first).resolve().parent), *filter(None, path)]
    status = 0
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(BaseException):
        threading._shutdown()  # as Python ends: pools of processes are told before what waits for them
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
