"""Start programs of this Python as `subprocess` does, but as forks of a process that has imported torch, Lightning and Hydra already, which
costs each program many seconds otherwise. ftlit itself is imported anew each time.

A program that starts programs of this Python, as Lightning does for further processes, gets forks too: each has a server of its own.
Without `os.fork`, and for `python -c`, it is plain `subprocess`.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

KNOWN = {"cwd", "env", "stdin", "stdout", "stderr", "start_new_session"}  # arguments of Popen that a fork can have
Popen = subprocess.Popen
SERVER = Path(__file__).with_name("warm_server.py")
SERVERS: list["Server"] = []  # the server of this process, once it is needed


def run(
    command: Sequence[Any], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT ...` or `python -m MODULE ...` of this interpreter, and its output.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed with all that it started.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("w") as stdout, err.open("w") as stderr:
            process = start(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise subprocess.TimeoutExpired(command, timeout, out.read_bytes(), err.read_bytes()) from None
        return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())


def start(command: Sequence[Any], **settings: Any) -> Any:
    """`subprocess.Popen(command, **settings)`, without pipes, as a fork where that is possible."""
    command = [str(word) for word in command]
    if not _can_fork(command, settings):
        return Popen(command, **settings)
    if not SERVERS or SERVERS[0].owner != os.getpid():
        SERVERS[:] = [_first_server()]
    return SERVERS[0].start(command, **settings)


def _can_fork(command: Any, settings: Mapping[str, Any]) -> bool:
    if not hasattr(os, "fork") or not isinstance(command, list) or len(command) < 2 or command[0] != sys.executable:
        return False
    return command[1] != "-c" and KNOWN.issuperset(settings) and subprocess.PIPE not in (settings.get("stdout"), settings.get("stderr"))


class StartedPopen(Popen):  # type: ignore[type-arg]
    """In the place of `subprocess.Popen` in a program that was forked."""

    def __new__(cls, *arguments: Any, args: Any = None, **settings: Any) -> Any:
        """A `Process` where a fork is possible, else a `Popen`."""
        command, *arguments = (args, *arguments) if args is not None else arguments
        forks = not arguments and not settings.keys() - KNOWN and _can_fork(command, settings)
        return start(command, **settings) if forks else Popen(command, *arguments, **settings)


class Server:
    """The connection to a process that forks programs: one request at a time.

    Args:
        connection: to the process.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.owner, self.lock = connection, os.getpid(), threading.Lock()

    def ask(self, request: dict[str, Any], files: Sequence[int] = ()) -> Any:
        """Send a request, with open files, and return the answer."""
        with self.lock:
            send(self.connection, request, files)
            return receive(self.connection)[0]

    def start(
        self, command: list[str], cwd: Any = None, env: Any = None, stdin: Any = None, stdout: Any = None, stderr: Any = None, **more: Any
    ) -> "Process":
        """See `subprocess.Popen`."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        nothing = os.open(os.devnull, os.O_RDWR)
        out = _descriptor(stdout, 1, nothing)
        files = [nothing, out, out if stderr == subprocess.STDOUT else _descriptor(stderr, 2, nothing)]
        environment = dict(os.environ if env is None else env)
        pid = self.ask({"words": command[1:], "cwd": str(cwd or Path.cwd()), "env": environment, **more}, files)
        os.close(nothing)
        return Process(self, pid)


def _descriptor(stream: Any, inherited: int, nothing: int) -> int:
    if stream is None:
        return inherited
    if stream == subprocess.DEVNULL:
        return nothing
    return stream if isinstance(stream, int) else stream.fileno()  # type: ignore[no-any-return]


class Process:
    """What callers use of `subprocess.Popen`, for a fork of the server."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid, self.returncode, self.lock = server, pid, None, threading.Lock()

    def poll(self) -> int | None:
        """See `subprocess.Popen`."""
        with self.lock:
            if self.returncode is None:
                self.returncode = self.server.ask({"poll": self.pid})
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """See `subprocess.Popen`."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """See `subprocess.Popen`."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """See `subprocess.Popen`."""
        self.send_signal(signal.SIGKILL)


def _first_server() -> Server:
    """A new process that imports what programs need; it ends with this one."""
    ours, theirs = socket.socketpair()
    process = Popen([sys.executable, str(SERVER), str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(process.kill)
    return Server(ours)


def send(connection: socket.socket, message: Any, files: Sequence[int] = ()) -> None:
    """Send a message that JSON can hold, with open files."""
    content = json.dumps(message).encode()
    head = len(content).to_bytes(8, "big")
    if files:
        socket.send_fds(connection, [head], files)
    else:
        connection.sendall(head)
    connection.sendall(content)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """The next message, and its open files. Raises `EOFError` at the end of the connection."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    if not head:
        raise EOFError
    length, content = int.from_bytes(head, "big"), b""
    while len(content) < length:
        content += connection.recv(length - len(content))
    return json.loads(content), files
