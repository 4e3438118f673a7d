"""stdout and stderr escape what they cannot encode. A run outlives the reader of its output; a program whose result is printed ends."""

import os
import pty
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOWrapper

import pytest
import torch
import warm
from paths import ROOT
from train_command import FAST

from ftlit.cli import output
from ftlit.cli.output import UNREAD_STATUS, one_line_warnings, robust_output


@contextmanager
def unread():
    """stdout and stderr lead to a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out, open(os.dup(write), "w") as err, redirect_stdout(out), redirect_stderr(err):
        yield


def leads_nowhere(stream) -> bool:
    return os.path.sameopenfile(stream.fileno(), os.open(os.devnull, os.O_WRONLY))


def test_stdout_escapes_what_it_cannot_encode_within_the_block_only(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with robust_output():
            print("caf\udce9 é")
        with pytest.raises(UnicodeEncodeError):
            print("é")
    assert (tmp_path / "out").read_bytes() == b"caf\\udce9 \\xe9\n"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_line_is_written_at_once_where_python_buffers_nothing(monkeypatch, tmp_path, unbuffered):
    binary = open(tmp_path / "out", "wb", buffering=0 if unbuffered else -1)  # as `python -u` opens stdout and stderr
    with TextIOWrapper(binary, "utf-8", write_through=unbuffered) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with robust_output():
            print("text")
            assert (tmp_path / "out").read_text() == ("text\n" if unbuffered else "")


def test_a_program_goes_on_without_readers():
    with unread(), robust_output():
        for stream in (sys.stdout, sys.stderr, sys.stdout):
            print("text", file=stream, flush=True)
        assert leads_nowhere(sys.stdout) and leads_nowhere(sys.stderr)


def test_a_program_goes_on_without_its_terminal(monkeypatch):
    main, terminal = pty.openpty()
    with open(terminal, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        os.close(main)
        with robust_output():
            print("text", flush=True)
            assert leads_nowhere(sys.stdout)


def test_a_program_goes_on_with_stdout_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with robust_output():
        print(sys.stdout.isatty())
        assert sys.stdout.name == os.devnull


@pytest.mark.parametrize("flush", [False, True])
def test_a_program_whose_result_is_printed_ends(flush):
    with unread(), pytest.raises(SystemExit, match=str(UNREAD_STATUS)), robust_output(end_unread=True):
        print("text", file=sys.stderr, flush=True)
        print("text", flush=flush)
        assert not flush


@pytest.mark.e2e
@pytest.mark.parametrize(("program", "status"), [(["train.py", *FAST], 0), (["-m", "ftlit.cli.main", "cache", "list"], UNREAD_STATUS)])
def test_training_has_its_results_without_readers_and_other_commands_end(program, status, tmp_path):
    read, write = os.pipe()
    os.close(read)
    words = [str(ROOT / word) if word == "train.py" else word for word in program]
    words += ["hydra.run.dir=run"] if "train.py" in program else []
    with (tmp_path / "err").open("w") as err:
        process = warm.start(
            [sys.executable, *words], cwd=tmp_path, env={**os.environ, "FTLIT_CACHE": str(tmp_path)}, stdout=write, stderr=err
        )
    os.close(write)
    assert (process.wait(), (tmp_path / "err").read_text()) == (status, "")
    assert (tmp_path / "run" / "result.json").is_file() == (status == 0)


def test_only_warnings_of_ftlit_are_called_so():
    before = warnings.formatwarning
    with one_line_warnings():
        shown = [warnings.formatwarning(UserWarning("far"), UserWarning, file, 1) for file in (output.__file__, torch.__file__)]
    assert shown[0] == "ftlit: warning: far\n" and shown[1].startswith(f"{torch.__file__}:1: UserWarning: far")
    assert warnings.formatwarning is before
