"""The end of a program."""

import subprocess
import sys

import pytest

BEGIN = """
import atexit, sys, threading, types
from ftlit.cli.quick_end import end_at_once
class Kept:
    def __del__(self): print("freed")
kept, released = Kept(), threading.Event()
atexit.register(print, "handler")
distributed = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: {initialized})
sys.modules["torch"] = types.SimpleNamespace(distributed=distributed)
print("run")
"""


def _lines(program: str, *, initialized: bool = False) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(initialized=initialized) + program], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_output_is_flushed_and_exit_handlers_run_but_no_object_is_freed():
    assert _lines("end_at_once(); print('after')") == ["run", "handler"]


@pytest.mark.parametrize(
    ("program", "initialized"),
    [
        ("end_at_once()", True),
        ("del sys.modules['torch']; end_at_once()", False),
        ("threading.Thread(target=released.wait).start(); end_at_once(); released.set()", False),
    ],
    ids=["processes train together", "without torch", "another thread runs"],
)
def test_other_programs_end_as_usual(program, initialized):
    assert _lines(program, initialized=initialized) == ["run", "handler", "freed"]
