"""The one writer: a file is the old one or the new one, whatever stops the program; an error is one line that names it."""

import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ftlit.errors import UserError
from ftlit.files import WriteError, disk_error, naming, part_of, remove_parts, replacing, scratch_folder, write_atomically, write_rows

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)


def test_a_file_appears_as_a_whole_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode() and list(path.parent.iterdir()) == [path]
    write_rows(path, [("a", "b"), (1, "x,y")])
    assert path.read_bytes() == b'a,b\r\n1,"x,y"\r\n'


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, MemoryError])
def test_whatever_stops_it_the_old_file_stays_and_nothing_else(tmp_path, stop):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(stop), replacing(path) as file:
        file.write(b"half")
        assert path.read_text() == "old"
        raise stop
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", ERRORS)
def test_an_error_of_the_disk_is_one_line_with_file_reason_and_remedy(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else ("pathlib.Path.replace",)), fail)
    with pytest.raises(WriteError) as caught:
        write_atomically(path, "new")
    text = str(caught.value)
    assert text.startswith(f"cannot write {path} ({os.strerror(number)}): ") and "\n" not in text
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_in_place_of_the_file_or_a_file_in_place_of_its_folder_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=r"folder \(Is a directory\): remove the folder"):
        write_atomically(tmp_path / "folder", "x")
    (tmp_path / "file").touch()
    line = f"cannot make the folder {tmp_path / 'file'}, because a file has that name: remove or rename this file"
    for below in ("x", "folder/x"):
        with pytest.raises(WriteError, match=f"^{re.escape(line)}$"):
            write_atomically(tmp_path / "file" / below, "x")


def test_errors_of_the_disk_are_recognised_and_faults_of_the_program_are_not(tmp_path):
    full = disk_error(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, UserError) and str(full) == "cannot access a file (No space left on device): free some space"
    with (tmp_path / "log").open("w") as file, pytest.raises(OSError, match="full") as caught:
        file.write("a file that is open where the error is raised")
        raise OSError(errno.ENOSPC, "full")
    assert str(disk_error(caught.value)) == f"cannot access {tmp_path / 'log'} (full): free some space"
    assert disk_error(FileNotFoundError(errno.ENOENT, "x")) is None and disk_error(ValueError()) is None
    with pytest.raises(WriteError, match=r"cannot write metrics\.csv"), naming("metrics.csv"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_what_a_killed_program_was_writing_is_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("a.json", "notes.part", ".hidden.part")]
    for path in (*kept, part_of(kept[0], 12), part_of(kept[1])):
        path.touch()
    part_of(tmp_path / "shards").mkdir()
    remove_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_two_processes_that_write_one_file_do_not_share_the_unfinished_one(tmp_path):
    path = tmp_path / "file"
    child = os.fork()
    with replacing(path) as file:
        if child == 0:
            file.write(b"half")
            file.flush()
            os._exit(0)  # as if killed while it wrote
        os.waitpid(child, 0)
        file.write(b"whole")
    assert path.read_text() == "whole" and len(list(tmp_path.iterdir())) == 2
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import sys, time
from pathlib import Path
from ftlit.files import scratch_folder
with scratch_folder(Path(sys.argv[1]), ".x-"):
    time.sleep(60)
"""


def test_a_scratch_folder_of_a_killed_program_goes_and_that_of_a_running_one_stays(tmp_path):
    holders = [subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)]) for _ in range(2)]
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    time.sleep(0.1)
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    with scratch_folder(tmp_path, ".x-") as own:
        assert own.is_dir() and len(list(tmp_path.iterdir())) == 2  # this one, and that of the program that runs
    assert len(list(tmp_path.iterdir())) == 1
    holders[1].kill()
    holders[1].wait()
    with scratch_folder(tmp_path, ".x-"):
        pass
    assert not list(tmp_path.iterdir())


STARTS = """
import sys
from pathlib import Path
from ftlit.files import scratch_folder
for _ in range(200):
    with scratch_folder(Path(sys.argv[1]), ".x-") as own:
        (own / "file").touch()
"""


def test_programs_that_begin_scratch_folders_at_once_leave_each_other_alone(tmp_path):
    programs = [subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(3)]
    assert [program.communicate()[1] for program in programs] == [b""] * 3
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_keeps_the_folders_of_others(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with scratch_folder(tmp_path, ".x-") as one, scratch_folder(tmp_path, ".x-") as other:
        assert one.is_dir() and other.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_killed_program_did_not_name_goes_after_an_hour(tmp_path):
    young, old = tmp_path / "new-.x-1", tmp_path / "new-.x-2"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    with scratch_folder(tmp_path, ".x-"):
        assert young.exists() and not old.exists()
    assert list(tmp_path.iterdir()) == [young]
